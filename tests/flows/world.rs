//! A scenario as the datapath sees it after its watches have delivered everything.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use steelyard::datapath::desired::Desired;
use steelyard::datapath::index::Index;
use steelyard::datapath::settings::{DetectLocal, NodePortSelector, Settings};
use steelyard::model::address::parse_prefix;
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::node::Node;
use steelyard::model::service::Service;

use super::form::{NodeForm, Scenario, address};
use super::objects::Objects;

/// What has been seen, and what should be true.
#[derive(Debug)]
pub struct World {
    pub index: Index,
    pub settings: Settings,
    pub desired: Desired,
    /// Every address of this node, loopback included.
    pub local_addresses: BTreeSet<IpAddr>,
}

impl World {
    /// Reads a scenario's objects as the watches would.
    pub fn of(scenario: &Scenario) -> Result<Self, String> {
        let objects = Objects::of(scenario)?;
        let settings = settings(&scenario.node)?;
        let local_addresses = local_addresses(&scenario.node)?;
        let mut index = Index::default();
        for service in &objects.services {
            index.apply_service(Service::try_from(service).map_err(|error| error.to_string())?);
        }
        for slice in &objects.slices {
            index.apply_slice(EndpointSlice::try_from(slice).map_err(|error| error.to_string())?);
        }
        index.apply_node(Node::try_from(&objects.node).map_err(|error| error.to_string())?);
        index.set_local_addresses(local_addresses.clone());
        index.set_service_cidrs(prefixes(scenario.node.service_cidrs.as_deref())?);
        let mut desired = Desired::default();
        let changes = index.take_changes();
        desired.update(&index, &settings, &changes);
        Ok(Self { index, settings, desired, local_addresses })
    }
}

fn local_addresses(form: &NodeForm) -> Result<BTreeSet<IpAddr>, String> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut addresses = BTreeSet::from(loopback);
    for text in form.primary_ips.iter().chain(&form.other_ips).flatten() {
        addresses.insert(address(text)?);
    }
    Ok(addresses)
}

fn settings(form: &NodeForm) -> Result<Settings, String> {
    let detector = form.local_detector.as_ref();
    let cidrs = || prefixes(detector.and_then(|detector| detector.cidrs.as_deref()));
    let detect_local = match detector.map(|detector| detector.mode.as_deref()) {
        None | Some(Some("none" | "")) => DetectLocal::Off,
        Some(None | Some("pod-cidr" | "cluster-cidr" | "node-cidr")) => DetectLocal::Prefixes(cidrs()?),
        Some(Some(other)) => return Err(format!("local_detector.mode {other:?} is not known to this runner")),
    };
    let selectors: Result<Vec<NodePortSelector>, _> =
        form.nodeport_addresses.iter().flatten().map(|text| text.parse()).collect();
    Ok(Settings {
        detect_local,
        masquerade_all: form.masquerade_all.unwrap_or_default(),
        node_port_addresses: selectors.map_err(|error| format!("nodeport_addresses: {error}"))?,
        // The tables tell what kube-proxy does, which leaves TCP alone.
        reset_gone_endpoints: None,
        drop_invalid: false,
    })
}

fn prefixes(texts: Option<&[String]>) -> Result<Vec<IpNet>, String> {
    let read = |text: &String| parse_prefix(text).ok_or_else(|| format!("{text:?} is no address range"));
    texts.unwrap_or_default().iter().map(read).collect()
}
