//! What holds for all Services: who counts as a pod, where NodePorts answer, which addresses are cluster IPs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::datapath::entry::{NodePortAddresses, NodePorts};
use crate::datapath::service::ForwardedService;
use crate::datapath::settings::{DetectLocal, NodePortSelector, Settings};
use crate::model::Family;
use crate::model::flat::pack;
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

/// This node's addresses that answer echo requests: the primary one of each family, or where the machine does not have
/// that (behind a translator, say) the first that it has.
pub(super) fn echo_answers(settings: &Settings, node: &Node, local_addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let answer = |family| {
        let primary = node.primary_address(family).filter(|address| local_addresses.contains(address));
        primary.or_else(|| {
            local_addresses.iter().copied().find(|address| Family::of(*address) == family && is_reachable(*address))
        })
    };
    if settings.answer_ping { Family::ALL.into_iter().filter_map(answer).collect() } else { BTreeSet::new() }
}

fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

/// The load-balancer addresses that a Service has us serve: of the families in which it has a cluster IP.
pub(super) fn served_addresses(service: &ForwardedService) -> Vec<IpAddr> {
    let is_served = |address: &IpAddr| service.is_proxied && service.cluster_ip(Family::of(*address)).is_some();
    service.virtual_addresses().filter(is_served).collect()
}

/// The addresses at which somebody else serves it.
pub(super) fn addresses_elsewhere(service: &ForwardedService) -> Vec<IpAddr> {
    let served = served_addresses(service);
    let external = service.external_ips.iter().filter(|_| !service.is_proxied);
    let named: BTreeSet<IpAddr> =
        service.ingress.iter().map(|ingress| ingress.address).chain(external.copied()).collect();
    named.into_iter().filter(|address| !served.contains(address)).collect()
}

/// Addresses of each Service, of one sort; an address counts as long as any Service has it.
#[derive(Debug, Default)]
pub(super) struct HeldAddresses {
    of_service: BTreeMap<ServiceKey, Box<[IpAddr]>>,
    holders: BTreeMap<IpAddr, usize>,
}

impl HeldAddresses {
    /// Gives back memory to spare.
    pub(super) fn pack(&mut self) {
        pack(&mut self.of_service);
        pack(&mut self.holders);
    }

    /// Takes a Service's addresses in place of those that it had, keeps `all` up to date and returns what came or went.
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
