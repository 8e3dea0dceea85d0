//! What should become of packets by the agent's own judgement, from the objects as the API server shows them; and by
//! kube-proxy's, as far as its differences are a matter of reading the objects otherwise.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as api;
use steelyard::datapath::desired::Desired;
use steelyard::datapath::index::Index;
use steelyard::datapath::settings::{NodePortSelector, Settings};
use steelyard::datapath::simulate::{Packet, Place, Step, Trace, simulate};
use steelyard::model::Family;
use steelyard::model::address::parse_prefix;
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::node::Node;
use steelyard::model::service::Service;
use steelyard::model::service_cidr::ServiceCidr;

use crate::cluster::Listed;
use crate::flows::expect::Expect;

/// Marks what no proxy serves.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Every address of a family.
const EVERYTHING: [(Family, &str); 2] = [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")];

/// What is seen and what follows from it.
pub struct Expected {
    pub index: Index,
    pub desired: Desired,
    pub local: BTreeSet<IpAddr>,
    /// What was served until a moment ago, as far as is known.
    pub released: BTreeSet<IpAddr>,
}

/// The same objects as the agent reads them and as kube-proxy does.
pub struct Views {
    pub ours: Expected,
    pub theirs: Expected,
}

impl Views {
    pub fn of(listed: &Listed, settings: &Settings, local: &BTreeSet<IpAddr>) -> Result<Self, String> {
        Ok(Self {
            ours: Expected::of(listed, settings, local)?,
            theirs: Expected::of(&as_kube_proxy_reads(listed), &as_kube_proxy_takes(settings), local)?,
        })
    }

    /// What kube-proxy should make of a packet. Of ports that no Service has it knows at cluster IPs alone.
    pub fn of_kube_proxy(&self, packet: Packet) -> Expect {
        let trace = self.theirs.trace(packet);
        let node = self.theirs.desired.node();
        let is_routed = trace
            .steps
            .iter()
            .any(|step| matches!(step, Step::UnlistedPort { address, .. } if !node.cluster_ips.contains(address)));
        if is_routed { Expect::Passthrough } else { Expect::from(&trace.verdict) }
    }
}

impl Expected {
    fn of(listed: &Listed, settings: &Settings, local: &BTreeSet<IpAddr>) -> Result<Self, String> {
        let mut index = Index::default();
        for service in &listed.services {
            index.apply_service(Service::try_from(service).map_err(|error| error.to_string())?);
        }
        // The agent's watch leaves them out.
        let is_watched = |slice: &&api::EndpointSlice| {
            let labels = slice.metadata.labels.as_ref();
            !labels.is_some_and(|labels| labels.contains_key(HEADLESS))
        };
        // Slices that are not for us are not used, whatever is wrong with them.
        let slices = listed.slices.iter().filter(is_watched);
        slices.filter_map(|slice| EndpointSlice::try_from(slice).ok()).for_each(|slice| index.apply_slice(slice));
        index.apply_node(Node::try_from(&listed.node).map_err(|error| error.to_string())?);
        index.set_local_addresses(local.clone());
        let cidrs = listed.service_cidrs.iter().filter_map(|cidr| ServiceCidr::try_from(cidr).ok());
        index.set_service_cidrs(cidrs.flat_map(|cidr| cidr.ranges).collect::<Vec<_>>());
        let desired = Desired::from_index(&index, settings);
        Ok(Self { index, desired, local: local.clone(), released: BTreeSet::new() })
    }

    pub fn trace(&self, packet: Packet) -> Trace {
        simulate(Place { released: &self.released, ..Place::new(&self.desired, &self.local) }, packet)
    }
}

/// Objects that mean to the agent what these mean to kube-proxy. Each change has its row in `docs/datapath.md`.
fn as_kube_proxy_reads(listed: &Listed) -> Listed {
    let mut listed = listed.clone();
    for service in &mut listed.services {
        if let Some(labels) = &mut service.metadata.labels {
            labels.remove(HEADLESS);
        }
        let ranges = service.spec.as_mut().and_then(|spec| spec.load_balancer_source_ranges.as_mut());
        if let Some(ranges) = ranges.filter(|ranges| !ranges.is_empty()) {
            let is_named = |wanted: Family| {
                ranges.iter().filter_map(|text| parse_prefix(text)).any(|range| Family::of(range.addr()) == wanted)
            };
            let open: Vec<&str> = EVERYTHING.iter().filter(|(family, _)| !is_named(*family)).map(|it| it.1).collect();
            ranges.extend(open.into_iter().map(str::to_owned));
        }
    }
    for endpoint in listed.slices.iter_mut().flat_map(|slice| &mut slice.endpoints) {
        endpoint.node_name.get_or_insert_with(|| "elsewhere".to_owned());
    }
    listed
}

/// The same for settings.
fn as_kube_proxy_takes(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    let is_named = |wanted: Family| {
        settings.node_port_addresses.iter().any(|selector| match selector {
            NodePortSelector::Within(range) => Family::of(range.addr()) == wanted,
            _ => true,
        })
    };
    if !settings.node_port_addresses.is_empty() {
        let open: Vec<&str> = EVERYTHING.iter().filter(|(family, _)| !is_named(*family)).map(|it| it.1).collect();
        settings.node_port_addresses.extend(open.iter().filter_map(|text| text.parse::<NodePortSelector>().ok()));
    }
    settings
}
