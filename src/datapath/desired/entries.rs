//! What one Service wants on this node, port by port and family by family, as if it were the only Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;

use crate::datapath::endpoints::{self, Needs, Place};
use crate::datapath::entry::{EntryKey, ForwardingEntry, Frontend, Treatment};
use crate::datapath::service::ForwardedService;
use crate::model::Family;
use crate::model::endpoints::EndpointSlice;
use crate::model::node::Node;
use crate::model::service::ServicePort;
use crate::names::ServicePortKey;

/// By whose word a Service has a frontend. Where two Services want the same one, the better word wins before age does:
/// or whoever may write `externalIPs` could take another Service's address (CVE-2020-8554).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// A cluster IP: the API server gave it to this Service alone.
    ClusterIp,
    /// A load-balancer address: a controller wrote it.
    LoadBalancer,
    /// An external IP or a NodePort: the Service's author may write it.
    Author,
}

/// A frontend that a Service wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) treatment: Treatment,
    pub(super) standing: Standing,
}

/// What a Service wants, given its slices and this node. Empty for a Service that no proxy, or another one, serves.
///
/// A family in which the Service has no cluster IP is left out whole, also its external IPs of that family. A port that
/// stands twice under one name and protocol counts once.
pub fn entries_of<'a>(
    service: &ForwardedService,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &Node,
) -> BTreeMap<EntryKey, ForwardingEntry> {
    let entry = |(key, port): (EntryKey, &ServicePort)| {
        let family = key.family;
        let slices = slices.clone().filter(move |slice| slice.family == family);
        (key, entry_of(service, port, family, slices, node))
    };
    ports_of(service).into_iter().map(entry).collect()
}

/// The ports of a Service in each family in which it has a cluster IP.
pub(super) fn ports_of(service: &ForwardedService) -> BTreeMap<EntryKey, &ServicePort> {
    let mut ports = BTreeMap::new();
    let has_family = |family: &Family| service.is_proxied && service.cluster_ip(*family).is_some();
    for family in Family::ALL.into_iter().filter(has_family) {
        for port in &service.ports {
            let name =
                ServicePortKey { service: service.key.clone(), port: port.name.clone(), protocol: port.protocol };
            ports.entry(EntryKey { port: name, family }).or_insert(port);
        }
    }
    ports
}

fn entry_of<'a>(
    service: &ForwardedService,
    port: &ServicePort,
    family: Family,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    node: &Node,
) -> ForwardingEntry {
    let frontends = frontends_of(service, port, family);
    let is_external = frontends.values().any(|wanted| match wanted.treatment {
        Treatment::External { .. } => true,
        Treatment::Internal(_) => false,
    });
    let selection = endpoints::select(
        slices.flat_map(|slice| slice.endpoints_of(&port.name, port.protocol)),
        Place { node: &node.name, zone: node.zone.as_ref() },
        Needs::of(service.internal_policy, service.external_policy, is_external),
    );
    ForwardingEntry {
        frontends: frontends.iter().map(|(frontend, wanted)| (*frontend, wanted.treatment)).collect(),
        cluster: selection.cluster_target(),
        local: selection.local_target(),
        affinity: service.affinity,
        source_ranges: source_ranges_of(service, family, node),
        local_addresses: selection.addresses_here.into_iter().collect(),
    }
}

/// Where clients may dial a port. An address that stands in two lists is what the more trusted list says.
pub(super) fn frontends_of(
    service: &ForwardedService,
    port: &ServicePort,
    family: Family,
) -> BTreeMap<Frontend, Wanted> {
    let mut frontends = BTreeMap::new();
    let mut want = |frontend, treatment, standing| {
        frontends.entry(frontend).or_insert(Wanted { treatment, standing });
    };
    let at = |address| Frontend::Address(SocketAddr::new(address, port.port.get()));
    let policy = service.external_policy;
    if let Some(address) = service.cluster_ip(family) {
        want(at(address), Treatment::Internal(service.internal_policy), Standing::ClusterIp);
    }
    let guarded = Treatment::External { policy, is_filtered: has_source_ranges(service) };
    for address in service.virtual_addresses().filter(|address| Family::of(*address) == family) {
        want(at(address), guarded, Standing::LoadBalancer);
    }
    let open = Treatment::External { policy, is_filtered: false };
    for address in service.external_ips.iter().filter(|address| Family::of(**address) == family) {
        want(at(*address), open, Standing::Author);
    }
    if let Some(node_port) = port.node_port {
        want(Frontend::NodePort(node_port), open, Standing::Author);
    }
    frontends
}

/// Whether the Service asks for a filter at all. Ranges of one family, or ranges that nobody can read, close the rest:
/// kube-proxy leaves the other family of a dual-stack Service open.
fn has_source_ranges(service: &ForwardedService) -> bool {
    !service.source_ranges.is_empty()
        || service.ignored.iter().any(|ignored| ignored.field == "spec.loadBalancerSourceRanges")
}

/// The ranges of one family. Where they admit this node they admit its load-balancer addresses too: on a node that has
/// such an address bound locally, its own packets to the address carry it as their source.
fn source_ranges_of(service: &ForwardedService, family: Family, node: &Node) -> Vec<IpNet> {
    let ranges = || service.source_ranges.iter().copied().filter(|range| Family::of(range.addr()) == family);
    let admits_node = ranges().any(|range| node.addresses.iter().any(|address| range.contains(address)));
    let own = service.virtual_addresses().filter(|address| admits_node && Family::of(*address) == family);
    let unique: BTreeSet<IpNet> = ranges().chain(own.map(IpNet::from)).collect();
    unique.into_iter().collect()
}
