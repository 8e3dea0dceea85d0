//! What should become of packets by the agent's own judgement, from the objects as the API server shows them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as api;
use steelyard::datapath::desired::Desired;
use steelyard::datapath::index::Index;
use steelyard::datapath::settings::Settings;
use steelyard::datapath::simulate::{Packet, Trace, simulate};
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::node::Node;
use steelyard::model::service::Service;
use steelyard::model::service_cidr::ServiceCidr;

use crate::cluster::Listed;

/// What is seen and what follows from it.
pub struct Expected {
    pub index: Index,
    pub desired: Desired,
    pub local: BTreeSet<IpAddr>,
}

impl Expected {
    pub fn of(listed: &Listed, settings: &Settings, local: &BTreeSet<IpAddr>) -> Result<Self, String> {
        let mut index = Index::default();
        for service in &listed.services {
            index.apply_service(Service::try_from(service).map_err(|error| error.to_string())?);
        }
        // The agent's watch leaves them out.
        let is_watched = |slice: &&api::EndpointSlice| {
            let labels = slice.metadata.labels.as_ref();
            !labels.is_some_and(|labels| labels.contains_key("service.kubernetes.io/headless"))
        };
        // Slices that are not for us are not used, whatever is wrong with them.
        let slices = listed.slices.iter().filter(is_watched);
        slices.filter_map(|slice| EndpointSlice::try_from(slice).ok()).for_each(|slice| index.apply_slice(slice));
        index.apply_node(Node::try_from(&listed.node).map_err(|error| error.to_string())?);
        index.set_local_addresses(local.clone());
        let cidrs = listed.service_cidrs.iter().filter_map(|cidr| ServiceCidr::try_from(cidr).ok());
        index.set_service_cidrs(cidrs.flat_map(|cidr| cidr.ranges).collect::<Vec<_>>());
        let desired = Desired::from_index(&index, settings);
        Ok(Self { index, desired, local: local.clone() })
    }

    pub fn trace(&self, packet: Packet) -> Trace {
        simulate(self.desired.entries(), self.desired.node(), &self.local, packet)
    }
}
