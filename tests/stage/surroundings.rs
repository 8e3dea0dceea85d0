//! What a node has around it, and where that is to be seen from a scenario.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use steelyard::model::address::{parse_address, parse_prefix};

use crate::flows::form::Scenario;
use crate::flows::world::World;

/// What a node has around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Every address of the node, loopback included.
    pub local: BTreeSet<IpAddr>,
    /// What is reached by the link of the pods.
    pub pod_prefixes: BTreeSet<IpNet>,
}

impl Surroundings {
    /// Of a scenario: pods' prefixes, and endpoints wherever they are, are reached by the link of the pods.
    pub fn of(scenario: &Scenario, world: &World) -> Self {
        let local = world.local_addresses.clone();
        let detected = scenario.node.local_detector.iter().flat_map(|detector| detector.cidrs.iter().flatten());
        let endpoints = scenario.endpoints.iter().filter_map(|endpoint| parse_address(&endpoint.ip));
        let pod_prefixes = detected
            .filter_map(|text| parse_prefix(text))
            .chain(endpoints.filter(|address| !local.contains(address)).map(IpNet::from))
            .collect();
        Self { local, pod_prefixes }
    }
}
