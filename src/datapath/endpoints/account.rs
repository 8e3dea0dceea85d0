//! Why each endpoint of a Service port is used on a node, or is not: in words for people.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use super::{Place, Topology, cluster_set, deduplicate, is_fallback, is_local, is_ready, local_set, topology};
use crate::model::endpoints::Endpoint;
use crate::model::service::TrafficPolicy;
use crate::names::NodeName;

/// Why an endpoint is used or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is ready, and everything allows it.
    Used,
    /// It terminates and still serves, and there is none that is ready.
    UsedAtLast,
    /// It is not ready.
    NotReady,
    /// It terminates, and serves no more.
    Ended,
    /// It terminates, and others are ready.
    Terminating,
    /// The policy is `Local`, and it runs elsewhere.
    OnAnotherNode,
    /// The policy is `Local`, and nobody says where it runs.
    OnUnknownNode,
    /// Its hints name other nodes, and some endpoint's name this one.
    HintsOfOtherNodes,
    /// Its hints name other zones, and some endpoint's name this one.
    HintsOfOtherZones,
}

impl Standing {
    /// Whether packets go there.
    pub const fn is_used(self) -> bool {
        matches!(self, Self::Used | Self::UsedAtLast)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Used => "used",
            Self::UsedAtLast => "used: terminating but still serving, and no endpoint is ready",
            Self::NotReady => "left out: not ready",
            Self::Ended => "left out: terminating and no longer serving",
            Self::Terminating => "left out: terminating, and others are ready",
            Self::OnAnotherNode => "left out: runs on another node, and the policy is Local",
            Self::OnUnknownNode => "left out: no node is named for it, and the policy is Local",
            Self::HintsOfOtherNodes => "left out: topology hints keep this node's traffic on the node",
            Self::HintsOfOtherZones => "left out: topology hints keep this node's traffic in its zone",
        })
    }
}

/// Gives account of every endpoint of a Service port under a policy.
pub fn account(
    endpoints: impl IntoIterator<Item = Endpoint>,
    place: Place<'_>,
    policy: TrafficPolicy,
) -> BTreeMap<SocketAddr, (Option<NodeName>, Standing)> {
    let endpoints = deduplicate(endpoints, place);
    let used = match policy {
        TrafficPolicy::Cluster => cluster_set(&endpoints, place),
        TrafficPolicy::Local => local_set(&endpoints, place),
    };
    let topology = topology(&endpoints, place);
    let standing = |address: &SocketAddr, endpoint: &Endpoint| match (used.contains(address), policy) {
        (true, _) if is_ready(endpoint) => Standing::Used,
        (true, _) => Standing::UsedAtLast,
        (false, TrafficPolicy::Local) if endpoint.node.is_none() => Standing::OnUnknownNode,
        (false, TrafficPolicy::Local) if !is_local(endpoint, place) => Standing::OnAnotherNode,
        (false, _) if is_fallback(endpoint) && !is_ready(endpoint) => Standing::Terminating,
        (false, _) if !is_ready(endpoint) && endpoint.conditions.is_terminating => Standing::Ended,
        (false, _) if !is_ready(endpoint) => Standing::NotReady,
        (false, _) => match topology {
            Topology::SameNode => Standing::HintsOfOtherNodes,
            Topology::SameZone => Standing::HintsOfOtherZones,
            Topology::Anywhere => Standing::NotReady,
        },
    };
    endpoints
        .iter()
        .map(|(address, endpoint)| (*address, (endpoint.node.clone(), standing(address, endpoint))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::endpoints::Conditions;
    use crate::names::ZoneName;

    fn endpoint(host: u8, node: Option<&str>, [ready, serving, terminating]: [bool; 3], zone: &str) -> Endpoint {
        Endpoint {
            address: SocketAddr::from(([10, 0, 0, host], 80)),
            conditions: Conditions { is_ready: ready, is_serving: serving, is_terminating: terminating },
            node: node.map(NodeName::new),
            zone_hints: [ZoneName::new(zone)].into(),
            node_hints: Default::default(),
        }
    }

    #[test]
    fn every_endpoint_is_accounted_for() {
        let endpoints = [
            endpoint(1, Some("here"), [true, true, false], "a"),
            endpoint(2, Some("there"), [true, true, false], "b"),
            endpoint(3, Some("here"), [false, false, false], "a"),
            endpoint(4, Some("here"), [false, true, true], "a"),
            endpoint(5, None, [false, false, true], "a"),
        ];
        let (node, zone) = (NodeName::new("here"), ZoneName::new("a"));
        let place = Place { node: &node, zone: Some(&zone) };
        let of = |policy| -> Vec<Standing> {
            account(endpoints.clone(), place, policy).into_values().map(|(_, standing)| standing).collect()
        };
        use Standing::{Ended, HintsOfOtherZones, NotReady, OnAnotherNode, OnUnknownNode, Terminating, Used};
        assert_eq!(of(TrafficPolicy::Cluster), [Used, HintsOfOtherZones, NotReady, Terminating, Ended]);
        assert_eq!(of(TrafficPolicy::Local), [Used, OnAnotherNode, NotReady, Terminating, OnUnknownNode]);
    }
}
