//! What an entry comes to, and what the node itself comes to: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::classes::{Classes, Memory, Recall};
use super::elements::{Element, Range};
use super::ids::{Class, Exhausted, FrontendValue, Id, Ids};
use crate::datapath::entry::{
    EntryKey, ForwardingEntry, Frontend, NodeForwarding, NodePortAddresses, Target, Treatment,
};
use crate::model::Family;
use crate::model::flat::FlatSet;
use crate::model::service::TrafficPolicy;

/// The prefixes of one family as ranges that do not overlap: the kernel refuses overlapping ones.
fn ranges<'a>(nets: impl IntoIterator<Item = &'a IpNet>, family: Family) -> impl Iterator<Item = Range> {
    let nets: Vec<IpNet> = nets.into_iter().filter(|net| Family::of(net.addr()) == family).copied().collect();
    IpNet::aggregate(&nets).into_iter().map(Range::from)
}

/// All addresses but loopback.
fn not_loopback(family: Family) -> Vec<Range> {
    let all = Range::all_of(family);
    match family {
        Family::V4 => vec![
            Range { first: all.first, last: Ipv4Addr::new(126, 255, 255, 255).into() },
            Range { first: Ipv4Addr::new(128, 0, 0, 0).into(), last: all.last },
        ],
        Family::V6 => vec![Range { first: Ipv6Addr::from(2).into(), last: all.last }],
    }
}

/// The elements of one entry, in order. Takes ids and classes for it. `previous` is what it had before: endpoints that
/// stay keep their slot.
///
/// # Errors
///
/// When there is no id or class left.
pub fn elements_of(
    key: &EntryKey,
    entry: &ForwardingEntry,
    ids: &mut Ids,
    classes: &mut Classes,
    previous: &[Element],
) -> Result<Vec<Element>, Exhausted> {
    let mut elements = Vec::new();
    let mut sticky = Vec::new();
    for policy in policies(entry) {
        let id = ids.take(key, policy)?;
        let target = match policy {
            TrafficPolicy::Cluster => &entry.cluster,
            TrafficPolicy::Local => &entry.local,
        };
        let recall = recall_of(key, entry, target);
        let memory = recall.map(|recall| classes.take_memory(recall)).transpose()?;
        elements.extend(target_elements(id, target, memory, classes, previous)?);
        if let (Some(memory), Target::Endpoints(endpoints)) = (memory, target) {
            sticky.push((id, memory, endpoints));
        }
    }
    if let [one, other] = sticky.as_slice() {
        elements.extend(twins(*one, *other).chain(twins(*other, *one)));
    }
    for (frontend, treatment) in &entry.frontends {
        let value = FrontendValue::new(*treatment, ids.take(key, policy_of(*treatment))?);
        elements.push(match *frontend {
            Frontend::Address(address) => Element::Frontend { address, protocol: key.port.protocol, value },
            Frontend::NodePort(port) => Element::NodePort { port, protocol: key.port.protocol, value },
        });
        if let Treatment::External { policy, is_filtered } = *treatment {
            if policy == TrafficPolicy::Local {
                elements.push(Element::Inside { local: value, cluster: ids.take(key, TrafficPolicy::Cluster)? });
            }
            if is_filtered {
                let ranges = ranges(&entry.source_ranges, key.family);
                elements.extend(ranges.map(|range| Element::SourceRange { frontend: value, range }));
            }
        }
    }
    elements.extend(entry.local_addresses.iter().map(|address| Element::Hairpin(*address)));
    elements.sort_unstable();
    // Frontends of one treatment share what stands behind them.
    elements.dedup();
    Ok(elements)
}

/// The policies whose targets packets may come to.
pub fn policies(entry: &ForwardingEntry) -> BTreeSet<TrafficPolicy> {
    let used = |treatment: &Treatment| match *treatment {
        Treatment::Internal(policy) => [policy; 2],
        // Clients on this node get all endpoints.
        Treatment::External { policy, .. } => [policy, TrafficPolicy::Cluster],
    };
    entry.frontends.values().flat_map(used).collect()
}

/// The policy whose id a frontend leads to.
pub const fn policy_of(treatment: Treatment) -> TrafficPolicy {
    match treatment {
        Treatment::Internal(policy) | Treatment::External { policy, .. } => policy,
    }
}

/// How the clients of a target are remembered.
fn recall_of(key: &EntryKey, entry: &ForwardingEntry, target: &Target) -> Option<Recall> {
    let (Some(timeout), Target::Endpoints(endpoints)) = (entry.affinity, target) else { return None };
    let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1);
    let port = match key.family {
        Family::V4 => None,
        Family::V6 => most_common_port(endpoints),
    };
    Some(Recall { seconds, port })
}

/// The lowest of those that most endpoints have.
fn most_common_port(endpoints: &FlatSet<SocketAddr>) -> Option<u16> {
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for endpoint in endpoints {
        *counts.entry(endpoint.port()).or_default() += 1;
    }
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(port, _)| port)
}

/// What leads from one policy's memory of an endpoint to the other's, where both may use it.
fn twins<'a>(
    (id, memory, endpoints): (Id, Memory, &'a FlatSet<SocketAddr>),
    (other, its_memory, its_endpoints): (Id, Memory, &'a FlatSet<SocketAddr>),
) -> impl Iterator<Item = Element> + 'a {
    let is_remembered = move |to: &&SocketAddr| memory.recall.port.is_none_or(|port| port == to.port());
    let both =
        endpoints.iter().filter(move |to| memory == its_memory && its_endpoints.contains(*to)).filter(is_remembered);
    both.map(move |to| Element::Twin { id, memory: memory.class, to: *to, other })
}

fn target_elements(
    id: Id,
    target: &Target,
    memory: Option<Memory>,
    classes: &mut Classes,
    previous: &[Element],
) -> Result<Vec<Element>, Exhausted> {
    let endpoints = match target {
        Target::Reject => return Ok(vec![Element::Service { id, class: Class::REJECT }]),
        Target::Drop => return Ok(vec![Element::Service { id, class: Class::DROP }]),
        Target::Endpoints(endpoints) => assign_slots(id, endpoints, previous),
    };
    let Some(count) = u32::try_from(endpoints.len()).ok().filter(|count| *count > 0) else {
        return Ok(vec![Element::Service { id, class: Class::REJECT }]);
    };
    let class = classes.take(count, memory)?;
    let memory = memory.map(|memory| memory.class);
    let mut elements = vec![Element::Service { id, class }];
    elements.extend((0u32..).zip(endpoints).map(|(slot, to)| Element::Endpoint { id, memory, slot, to }));
    Ok(elements)
}

/// Gives each endpoint a slot, without a gap. Who has one below the new number of slots keeps it, so that the change of
/// one endpoint is the change of one slot or two.
fn assign_slots(id: Id, endpoints: &FlatSet<SocketAddr>, previous: &[Element]) -> Vec<SocketAddr> {
    let mut slots: Vec<Option<SocketAddr>> = vec![None; endpoints.len()];
    let mut waiting: BTreeSet<SocketAddr> = endpoints.iter().copied().collect();
    for element in previous {
        if let Element::Endpoint { id: owner, slot, to, .. } = element
            && *owner == id
            && let Some(place) = usize::try_from(*slot).ok().and_then(|slot| slots.get_mut(slot))
            && waiting.remove(to)
        {
            *place = Some(*to);
        }
    }
    let mut waiting = waiting.into_iter();
    slots.into_iter().filter_map(|place| place.or_else(|| waiting.next())).collect()
}

/// The elements of one family that belong to the node itself, in order.
pub fn node_elements(node: &NodeForwarding, family: Family) -> Vec<Element> {
    let pods: Vec<Range> = ranges(&node.pod_cidrs, family).collect();
    let mut elements: Vec<Element> = pods.iter().copied().map(Element::PodCidr).collect();
    // Without prefixes of pods nobody can be told to be none, and nobody is masqueraded.
    match (node.masquerade_all, pods.is_empty()) {
        (true, _) => {}
        (false, true) => elements.push(Element::Unmasqueraded(Range::all_of(family))),
        (false, false) => elements.extend(pods.into_iter().map(Element::Unmasqueraded)),
    }
    match node.node_ports.of(family) {
        NodePortAddresses::These(addresses) => {
            elements.extend(of_family(addresses, family).map(Element::NodePortAddress));
        }
        NodePortAddresses::All => elements.extend(not_loopback(family).into_iter().map(Element::NodePortRange)),
    }
    elements.extend(of_family(&node.cluster_ips, family).map(Element::ClusterIp));
    elements.extend(ranges(&node.service_cidrs, family).map(Element::ServiceCidr));
    elements.extend(of_family(&node.served, family).filter(|address| node.serves(*address)).map(Element::Served));
    elements.extend(of_family(&node.echo_answers, family).map(Element::EchoAnswer));
    elements.sort_unstable();
    elements
}

fn of_family(addresses: &BTreeSet<IpAddr>, family: Family) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| Family::of(*address) == family)
}

#[cfg(test)]
pub(crate) mod test;
