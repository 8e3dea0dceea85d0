//! Which endpoints of a Service port may be used on this node: a pure function of the port's endpoints, the node and
//! the traffic policies.
//!
//! The rules are those of kube-proxy (`pkg/proxy/topology.go`), with KEP-1669 (terminating endpoints), KEP-2433 and
//! KEP-3015 (zone and node hints).

mod account;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::model::endpoints::Endpoint;
use crate::model::service::TrafficPolicy;
use crate::names::{NodeName, ZoneName};

use super::entry::Target;

pub use self::account::{Standing, account};

/// Where endpoints are chosen: what decides about "local" and about hints.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// This node's name.
    pub node: &'a NodeName,
    /// This node's zone, if it has one.
    pub zone: Option<&'a ZoneName>,
}

/// Which of the two sets a Service port uses. A set that nothing uses is not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The endpoints of the whole cluster.
    pub cluster: bool,
    /// The endpoints of this node.
    pub local: bool,
}

impl Needs {
    /// Derives them from the policies; `is_external`: the port has a NodePort, an external IP or a load-balancer address.
    ///
    /// An external `Local` policy still needs the cluster set, for the short-circuit of pods and of the node itself.
    pub fn of(internal: TrafficPolicy, external: TrafficPolicy, is_external: bool) -> Self {
        Self {
            cluster: internal != TrafficPolicy::Local || is_external,
            local: internal == TrafficPolicy::Local || (external == TrafficPolicy::Local && is_external),
        }
    }
}

/// The endpoints that may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// For policy `Cluster`; `None` where nothing needs it.
    pub cluster: Option<BTreeSet<SocketAddr>>,
    /// For policy `Local`; `None` where nothing needs it.
    pub local: Option<BTreeSet<SocketAddr>>,
    /// Whether any endpoint anywhere could be used: tells "none here" from "none at all".
    pub has_any_endpoint: bool,
    /// Addresses of selected endpoints that run on this node, or of which nobody knows where they run.
    pub addresses_here: BTreeSet<IpAddr>,
}

impl Selection {
    /// Everything that may be used under either policy.
    pub fn all(&self) -> BTreeSet<SocketAddr> {
        self.cluster.iter().chain(&self.local).flatten().copied().collect()
    }

    /// What the datapath does under policy `Cluster`.
    pub fn cluster_target(&self) -> Target {
        self.target(self.cluster.as_ref())
    }

    /// What the datapath does under policy `Local`.
    pub fn local_target(&self) -> Target {
        self.target(self.local.as_ref())
    }

    fn target(&self, set: Option<&BTreeSet<SocketAddr>>) -> Target {
        match set {
            Some(set) if !set.is_empty() => Target::Endpoints(set.iter().copied().collect()),
            Some(_) if self.has_any_endpoint => Target::Drop,
            Some(_) | None => Target::Reject,
        }
    }
}

/// How hints narrow the cluster set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

/// Chooses.
pub fn select(endpoints: impl IntoIterator<Item = Endpoint>, place: Place<'_>, needs: Needs) -> Selection {
    let endpoints = deduplicate(endpoints, place);
    let mut selection = Selection {
        cluster: needs.cluster.then(|| cluster_set(&endpoints, place)),
        local: needs.local.then(|| local_set(&endpoints, place)),
        has_any_endpoint: endpoints.values().any(|endpoint| is_ready(endpoint) || is_fallback(endpoint)),
        addresses_here: BTreeSet::new(),
    };
    selection.addresses_here = selection
        .all()
        .iter()
        .filter(|address| {
            endpoints.get(address).is_some_and(|found| found.node.as_ref().is_none_or(|at| at == place.node))
        })
        .map(SocketAddr::ip)
        .collect();
    selection
}

/// The same address may stand in two slices while an endpoint moves between them. An entry for this node wins, then the
/// one that is ready, then the one that serves: whatever the slices are called, the result is the same.
fn deduplicate(endpoints: impl IntoIterator<Item = Endpoint>, place: Place<'_>) -> BTreeMap<SocketAddr, Endpoint> {
    let mut unique: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for endpoint in endpoints {
        match unique.get_mut(&endpoint.address) {
            Some(known) if standing(known, place) >= standing(&endpoint, place) => {}
            Some(known) => *known = endpoint,
            None => {
                unique.insert(endpoint.address, endpoint);
            }
        }
    }
    unique
}

fn standing<'a>(endpoint: &'a Endpoint, place: Place<'_>) -> impl Ord + use<'a> {
    let Endpoint { address: _, conditions, node, zone_hints, node_hints } = endpoint;
    (is_local(endpoint, place), conditions.is_ready, conditions.is_serving, conditions, node, zone_hints, node_hints)
}

/// Ready endpoints that hints allow, else all that still serve while they terminate, whatever their hints.
fn cluster_set(endpoints: &BTreeMap<SocketAddr, Endpoint>, place: Place<'_>) -> BTreeSet<SocketAddr> {
    let topology = topology(endpoints, place);
    ready_or_fallback(endpoints.values(), |endpoint| match (topology, place.zone) {
        (Topology::SameNode, _) => endpoint.node_hints.contains(place.node),
        (Topology::SameZone, Some(zone)) => endpoint.zone_hints.contains(zone),
        (Topology::SameZone, None) | (Topology::Anywhere, _) => true,
    })
}

/// The same on this node alone. Hints do not count here.
fn local_set(endpoints: &BTreeMap<SocketAddr, Endpoint>, place: Place<'_>) -> BTreeSet<SocketAddr> {
    ready_or_fallback(endpoints.values().filter(|endpoint| is_local(endpoint, place)), |_| true)
}

fn ready_or_fallback<'a>(
    endpoints: impl Iterator<Item = &'a Endpoint> + Clone,
    is_allowed: impl Fn(&Endpoint) -> bool,
) -> BTreeSet<SocketAddr> {
    let ready: BTreeSet<SocketAddr> = endpoints
        .clone()
        .filter(|endpoint| is_ready(endpoint) && is_allowed(endpoint))
        .map(|endpoint| endpoint.address)
        .collect();
    if ready.is_empty() {
        endpoints.filter(|endpoint| is_fallback(endpoint)).map(|endpoint| endpoint.address).collect()
    } else {
        ready
    }
}

/// Hints count only where every ready endpoint has one (one without switches them off for all) and at least one names
/// where we are.
fn topology(endpoints: &BTreeMap<SocketAddr, Endpoint>, place: Place<'_>) -> Topology {
    let ready = || endpoints.values().filter(|endpoint| is_ready(endpoint));
    let all_name_nodes = ready().all(|endpoint| !endpoint.node_hints.is_empty());
    if all_name_nodes && ready().any(|endpoint| endpoint.node_hints.contains(place.node)) {
        return Topology::SameNode;
    }
    let all_name_zones = ready().all(|endpoint| !endpoint.zone_hints.is_empty());
    match place.zone {
        Some(zone) if all_name_zones && ready().any(|endpoint| endpoint.zone_hints.contains(zone)) => {
            Topology::SameZone
        }
        Some(_) | None => Topology::Anywhere,
    }
}

fn is_local(endpoint: &Endpoint, place: Place<'_>) -> bool {
    endpoint.node.as_ref() == Some(place.node)
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.is_ready
}

/// Used only where nothing is ready, so that a rollout with one last pod loses no connection (KEP-1669).
fn is_fallback(endpoint: &Endpoint) -> bool {
    endpoint.conditions.is_serving && endpoint.conditions.is_terminating
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::endpoints::Conditions;

    const READY: Conditions = Conditions { is_ready: true, is_serving: true, is_terminating: false };
    const UNREADY: Conditions = Conditions { is_ready: false, is_serving: false, is_terminating: false };

    fn endpoint(address: &str, node: Option<&str>, conditions: Conditions) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            conditions,
            node: node.map(NodeName::new),
            zone_hints: Default::default(),
            node_hints: Default::default(),
        }
    }

    fn select_here(endpoints: Vec<Endpoint>) -> Selection {
        let place = Place { node: &NodeName::new("here"), zone: None };
        select(endpoints, place, Needs { cluster: true, local: true })
    }

    #[test]
    fn of_two_entries_for_one_address_the_local_one_wins_in_any_order() {
        let local = endpoint("10.0.0.1:80", Some("here"), READY);
        let remote = endpoint("10.0.0.1:80", Some("there"), READY);
        for order in [vec![local.clone(), remote.clone()], vec![remote, local]] {
            let selection = select_here(order);
            assert_eq!(selection.local.as_ref().map(BTreeSet::len), Some(1));
            assert_eq!(selection.cluster.as_ref().map(BTreeSet::len), Some(1));
        }
    }

    #[test]
    fn none_here_is_dropped_and_none_at_all_is_rejected() {
        let selection = select_here(vec![endpoint("10.0.0.1:80", Some("there"), READY)]);
        assert_eq!(selection.local_target(), Target::Drop);
        let selection = select_here(vec![endpoint("10.0.0.1:80", Some("here"), UNREADY)]);
        assert_eq!((selection.cluster_target(), selection.local_target()), (Target::Reject, Target::Reject));
    }

    #[test]
    fn only_endpoints_that_may_be_here_can_meet_themselves() {
        let selection = select_here(vec![
            endpoint("10.0.0.1:80", Some("there"), READY),
            endpoint("10.0.0.2:80", Some("here"), READY),
            endpoint("10.0.0.3:80", None, READY),
        ]);
        let expected = ["10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap());
        assert_eq!(selection.addresses_here, BTreeSet::from(expected));
    }
}
