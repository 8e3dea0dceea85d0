//! Where the agent differs from kube-proxy on purpose. Each has its row in the table of `docs/datapath.md`; whatever else
//! differs is a bug.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use steelyard::datapath::desired::FrontendKey;
use steelyard::datapath::entry::{Frontend, NodePortAddresses, Target, Treatment};
use steelyard::datapath::simulate::Step;
use steelyard::model::Family;
use steelyard::model::endpoints::Endpoint;
use steelyard::model::flat::FlatSet;

use crate::flows::expect::Expect;
use crate::judge::{self, Case};

/// One such difference.
pub struct Deliberate {
    /// How its row in the documentation begins.
    pub title: &'static str,
    /// Whether it explains what was seen.
    explains: fn(&Case<'_>) -> bool,
}

/// Where kube-proxy reads objects or settings otherwise, or knows less; what it then does is foreseen.
pub const FORESEEN: &[Deliberate] = &[
    Deliberate { title: "`loadBalancerSourceRanges` of one family only", explains: is_closed_by_other_family },
    Deliberate { title: "label `service.kubernetes.io/headless` on a Service", explains: is_labelled_headless },
    Deliberate { title: "NodePort addresses of one family only", explains: is_node_port_of_other_family },
    Deliberate { title: "an endpoint that no node is named for", explains: is_hairpin_without_a_node },
    Deliberate { title: "unlisted ports of a load-balancer address", explains: is_unlisted_port },
    Deliberate { title: "a load-balancer address just released", explains: is_just_released },
];

/// Where kube-proxy does what nobody can foresee, or what the agent would never do.
pub const DONE_OTHERWISE: &[Deliberate] = &[
    Deliberate { title: "two Services that want one address and port", explains: is_contested },
    Deliberate { title: "a Service without endpoints at a node's address", explains: is_node_port_behind_an_address },
    Deliberate { title: "one address in two slices that contradict each other", explains: is_contradictory },
];

/// Where the agent does not do all that kube-proxy does.
pub const HALF_REMEMBERED: Deliberate = Deliberate {
    title: "session affinity in IPv6 where endpoints have different port numbers",
    explains: is_half_remembered,
};

/// The documentation that lists them.
const DOCUMENTATION: &str = include_str!("../../docs/datapath.md");

/// The one that explains a difference.
pub fn of(case: &Case<'_>, known: &'static [Deliberate]) -> Option<&'static Deliberate> {
    known.iter().find(|known| (known.explains)(case))
}

/// Those of which the documentation says nothing.
pub fn undocumented() -> impl Iterator<Item = &'static str> {
    let all = FORESEEN.iter().chain(DONE_OTHERWISE).chain([&HALF_REMEMBERED]);
    all.map(|known| known.title).filter(|title| !DOCUMENTATION.contains(&format!("\n| {title} |")))
}

/// The memory of IPv6 has no room for a port: clients of endpoints with the most common one are remembered.
pub fn is_half_remembered(case: &Case<'_>) -> bool {
    let Some((_, entry)) = case.dialled().filter(|(_, entry)| entry.family == Family::V6) else { return false };
    let Some(entry) = case.views.ours.desired.entries().get(entry) else { return false };
    let endpoints = |target: &Target| match target {
        Target::Endpoints(endpoints) => endpoints.clone(),
        Target::Drop | Target::Reject => FlatSet::new(),
    };
    let ports: BTreeSet<u16> =
        endpoints(&entry.cluster).iter().chain(&endpoints(&entry.local)).map(SocketAddr::port).collect();
    entry.affinity.is_some() && ports.len() > 1
}

/// kube-proxy leaves a family open for which no range is given.
fn is_closed_by_other_family(case: &Case<'_>) -> bool {
    let Some((_, entry)) = case.dialled() else { return false };
    let is_filtered =
        case.trace.steps.iter().any(|step| {
            matches!(step, Step::Frontend { treatment: Treatment::External { is_filtered: true, .. }, .. })
        });
    let has_no_ranges =
        case.views.ours.desired.entries().get(entry).is_some_and(|entry| entry.source_ranges.is_empty());
    is_filtered && has_no_ranges && case.simulated == Expect::Drop
}

/// kube-proxy loads the rules of both, and who wins may change with each of its turns.
fn is_contested(case: &Case<'_>) -> bool {
    let dialled = [
        Frontend::Address(SocketAddr::new(case.packet.destination, case.packet.port.get())),
        Frontend::NodePort(case.packet.port),
    ];
    case.views.theirs.desired.conflicts().any(|conflict| {
        conflict.frontend.family == Family::of(case.packet.destination)
            && conflict.frontend.protocol == case.packet.protocol
            && dialled.contains(&conflict.frontend.frontend)
    })
}

/// kube-proxy knows such ports of cluster IPs alone.
fn is_unlisted_port(case: &Case<'_>) -> bool {
    let node = case.views.ours.desired.node();
    let address = case.packet.destination;
    let is_unlisted = case.trace.steps.iter().any(|step| matches!(step, Step::UnlistedPort { .. }));
    is_unlisted && node.serves(address) && !node.cluster_ips.contains(&address)
}

/// kube-proxy forgets an address with its Service.
fn is_just_released(case: &Case<'_>) -> bool {
    case.trace.steps.iter().any(|step| matches!(step, Step::JustReleased { .. }))
}

/// kube-proxy has come to look for it on EndpointSlices alone.
fn is_labelled_headless(case: &Case<'_>) -> bool {
    let destination = case.packet.destination;
    case.views.ours.index.services().any(|service| {
        let addresses = service.cluster_ips.iter().chain(&service.external_ips).copied();
        service.labels.contains_key("service.kubernetes.io/headless")
            && !service.labels.contains_key("service.kubernetes.io/service-proxy-name")
            && (addresses.chain(service.virtual_addresses()).any(|address| address == destination)
                || service.ports.iter().any(|port| port.node_port == Some(case.packet.port)))
    })
}

/// In kube-proxy the family for which nothing is named answers at every address.
fn is_node_port_of_other_family(case: &Case<'_>) -> bool {
    let answers = case.views.ours.desired.node().node_ports.of(Family::of(case.packet.destination));
    let is_elsewhere = case.trace.steps.iter().any(|step| matches!(step, Step::NodePortElsewhere { .. }));
    is_elsewhere && *answers == NodePortAddresses::default() && !case.packet.destination.is_loopback()
}

/// An address wins over a NodePort, also while nothing stands behind it. In kube-proxy the NodePort of another Service takes
/// over in that time.
fn is_node_port_behind_an_address(case: &Case<'_>) -> bool {
    let view = &case.views.theirs;
    let trace = view.trace(case.packet);
    let Some((Frontend::Address(_), entry)) = judge::dialled(&trace) else { return false };
    let family = Family::of(case.packet.destination);
    let answers = match view.desired.node().node_ports.of(family) {
        NodePortAddresses::These(addresses) => addresses.contains(&case.packet.destination),
        NodePortAddresses::All => view.local.contains(&case.packet.destination),
    };
    let frontend =
        FrontendKey { family, protocol: case.packet.protocol, frontend: Frontend::NodePort(case.packet.port) };
    let is_empty =
        view.desired.entries().get(entry).is_some_and(|entry| {
            !matches!((&entry.cluster, &entry.local), (Target::Endpoints(_), Target::Endpoints(_)))
        });
    answers && is_empty && view.desired.owner(&frontend).is_some_and(|other| other != entry)
}

/// Nobody says where it runs, so it may be here, and meet itself.
fn is_hairpin_without_a_node(case: &Case<'_>) -> bool {
    let (
        Expect::Dnat { endpoints, masqueraded },
        Ok(Expect::Dnat { endpoints: theirs, masqueraded: their_masqueraded }),
    ) = (&case.simulated, &case.theirs)
    else {
        return false;
    };
    let without_node = |address: &SocketAddr| {
        address.ip() == case.packet.source
            && endpoints_of(case).iter().any(|it| it.address == *address && it.node.is_none())
    };
    theirs.is_subset(endpoints) && masqueraded.symmetric_difference(their_masqueraded).all(without_node)
}

/// kube-proxy takes the one that it reads last, which may be any.
fn is_contradictory(case: &Case<'_>) -> bool {
    let mut known: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    endpoints_of(case).into_iter().any(|endpoint| {
        let before = known.insert(endpoint.address, endpoint.clone());
        before.is_some_and(|before| before != endpoint)
    })
}

/// Every endpoint of the Service port that was dialled, as often as it stands somewhere.
fn endpoints_of(case: &Case<'_>) -> Vec<Endpoint> {
    let trace = case.views.theirs.trace(case.packet);
    let Some((_, entry)) = case.dialled().or_else(|| judge::dialled(&trace)) else { return Vec::new() };
    let slices = case.views.ours.index.slices_of(&entry.port.service).filter(|slice| slice.family == entry.family);
    slices.flat_map(|slice| slice.endpoints_of(&entry.port.port, entry.port.protocol)).collect()
}
