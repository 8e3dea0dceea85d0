//! What holds for all Services: who counts as a pod, where NodePorts answer, which addresses are cluster IPs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::datapath::entry::{NodePortAddresses, NodePorts};
use crate::datapath::settings::{DetectLocal, NodePortSelector, Settings};
use crate::model::Family;
use crate::model::node::Node;
use crate::names::ServiceKey;

/// The prefixes by which pods are known.
pub(super) fn pod_prefixes(settings: &Settings, node: &Node) -> Vec<IpNet> {
    match &settings.detect_local {
        DetectLocal::NodePrefixes => node.pod_cidrs.clone(),
        DetectLocal::Prefixes(prefixes) => prefixes.clone(),
        DetectLocal::Off => Vec::new(),
    }
}

/// Where NodePorts answer: an empty list of selectors means the primary addresses.
pub(super) fn node_ports(settings: &Settings, node: &Node, local_addresses: &BTreeSet<IpAddr>) -> NodePorts {
    let of = |family| node_ports_of(family, &settings.node_port_addresses, node, local_addresses);
    NodePorts { v4: of(Family::V4), v6: of(Family::V6) }
}

fn node_ports_of(
    family: Family,
    selectors: &[NodePortSelector],
    node: &Node,
    local_addresses: &BTreeSet<IpAddr>,
) -> NodePortAddresses {
    let is_everything = |selector: &NodePortSelector| match selector {
        NodePortSelector::All => true,
        NodePortSelector::Within(prefix) => prefix.prefix_len() == 0 && Family::of(prefix.addr()) == family,
        NodePortSelector::Primary | NodePortSelector::Localhost => false,
    };
    if selectors.iter().any(is_everything) {
        return NodePortAddresses::All;
    }
    let is_primary_wanted = selectors.is_empty() || selectors.contains(&NodePortSelector::Primary);
    let primary = node.primary_address(family).filter(|_| is_primary_wanted);
    let listed = local_addresses
        .iter()
        .copied()
        .filter(|address| Family::of(*address) == family && selectors.iter().any(|selector| selector.covers(*address)));
    NodePortAddresses::These(primary.into_iter().chain(listed).collect())
}

/// The cluster IPs of each Service that is served; an address counts as long as any Service has it.
#[derive(Debug, Default)]
pub(super) struct ClusterIps {
    of_service: BTreeMap<ServiceKey, Box<[IpAddr]>>,
    holders: BTreeMap<IpAddr, usize>,
}

impl ClusterIps {
    /// Takes a Service's cluster IPs in place of those that it had, keeps `all` up to date and returns what came or went.
    pub(super) fn replace(
        &mut self,
        service: &ServiceKey,
        addresses: &[IpAddr],
        all: &mut BTreeSet<IpAddr>,
    ) -> BTreeSet<IpAddr> {
        let before = self.of_service.get(service).cloned().unwrap_or_default();
        if *before == *addresses {
            return BTreeSet::new();
        }
        for address in addresses {
            *self.holders.entry(*address).or_default() += 1;
        }
        for address in &before {
            if let Some(count) = self.holders.get_mut(address) {
                *count = count.saturating_sub(1);
            }
        }
        if addresses.is_empty() {
            self.of_service.remove(service);
        } else {
            self.of_service.insert(service.clone(), addresses.into());
        }
        let mut changed = BTreeSet::new();
        for address in before.iter().chain(addresses).copied() {
            let is_held = self.holders.get(&address).is_some_and(|count| *count > 0);
            if !is_held {
                self.holders.remove(&address);
            }
            if is_held != all.contains(&address) {
                if is_held {
                    all.insert(address)
                } else {
                    all.remove(&address)
                };
                changed.insert(address);
            }
        }
        changed
    }
}
