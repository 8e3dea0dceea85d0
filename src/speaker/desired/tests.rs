//! Who announces what, and why the others do not: MetalLB's cases (with our hash), our own, and properties.

use proptest::prelude::*;

use super::*;
use crate::membership::{Life, Members};
use crate::model::claim::{Claim, Holder, Tenure};
use crate::model::endpoints::{Conditions, EndpointSlice, SliceEndpoint, SliceKey};
use crate::model::link::{Link, Links, Mac, Unusable};
use crate::model::programmed::Programmed;
use crate::names::PoolName;
use crate::speaker::index::{AnnouncedService, Change, Observation, PoolLabels, UsableEndpoints};
use crate::speaker::interfaces::NoInterface;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const READY: Conditions = Conditions { is_ready: true, is_serving: true, is_terminating: false };
const UNREADY: Conditions = Conditions { is_ready: false, is_serving: false, is_terminating: false };
const DRAINING: Conditions = Conditions { is_ready: false, is_serving: true, is_terminating: true };

fn node(name: &str) -> Node {
    Node {
        name: name.into(),
        labels: [("kubernetes.io/hostname".to_owned(), name.to_owned())].into(),
        zone: None,
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        is_ready: true,
        is_network_unavailable: false,
        is_excluded: false,
        is_out_of_service: false,
        is_leaving: false,
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

fn service(name: &str, policy: TrafficPolicy) -> AnnouncedService {
    let labels = [("app".to_owned(), name.to_owned())].into();
    AnnouncedService { key: key(name), uid: format!("uid-{name}"), labels, is_load_balancer: true, policy }
}

fn claim(address: &str, services: &[&str]) -> Claim {
    let address: IpAddr = address.parse().unwrap();
    let holders = services.iter().map(|name| Holder { service: key(name), uid: format!("uid-{name}") }).collect();
    Claim {
        name: crate::api::claim_name::claim_name(address),
        uid: String::new(),
        resource_version: String::new(),
        address,
        tenure: Tenure {
            pool: PoolName::new("pool"),
            holders,
            released_at: None,
            last_holder: None,
            lingers_until: None,
        },
        is_quarantined: false,
        is_deleting: false,
    }
}

fn advertisement(spec: &str) -> L2Advertisement {
    let yaml =
        format!("apiVersion: steelyard.dev/v1alpha1\nkind: L2Advertisement\nmetadata: {{name: lan}}\nspec: {spec}");
    L2Advertisement::try_from(&serde_saphyr::from_str::<crate::api::L2Advertisement>(&yaml).unwrap()).unwrap()
}

/// A slice of a Service: endpoints by node.
fn slice(name: &str, service: &str, family: Family, endpoints: &[(&str, Conditions)]) -> UsableEndpoints {
    let endpoint = |(node, conditions): &(&str, Conditions)| SliceEndpoint {
        address: "10.0.0.1".parse().unwrap(),
        conditions: *conditions,
        node: (!node.is_empty()).then(|| NodeName::new(*node)),
        hints: None,
    };
    UsableEndpoints::from(&EndpointSlice {
        key: SliceKey { namespace: "default".into(), name: name.into() },
        service: key(service),
        family,
        ports: Default::default(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        triggered: None,
    })
}

fn links() -> Links {
    let eth0 = Link {
        index: InterfaceIndex::new(2),
        name: "eth0".into(),
        mac: Some(Mac::new([2, 0, 0, 0, 0, 1])),
        is_up: true,
        has_carrier: true,
        is_loopback: false,
        resolves_neighbours: true,
        master: None,
        addresses: ["10.20.30.250/24", "2001:db8::250/64"].iter().map(|net| net.parse().unwrap()).collect(),
    };
    Links { by_index: [(eth0.index, eth0)].into(), default_routes: Default::default() }
}

/// A cluster of these nodes, all alive, with an advertisement of everything.
fn cluster(nodes: &[&str]) -> Index {
    let mut index = Index::default();
    let seen = nodes.iter().map(|name| node(name));
    let lives = nodes.iter().map(|name| (NodeName::new(*name), Life::Serving)).collect();
    for observation in [
        Observation::Node(Change::Replaced(seen.collect())),
        Observation::Service(Change::Replaced(Vec::new())),
        Observation::Endpoints(Change::Replaced(Vec::new())),
        Observation::Pool(Change::Replaced(Vec::new())),
        Observation::Advertisement(Change::Replaced(vec![advertisement("{}")])),
        Observation::Claim(Change::Replaced(Vec::new())),
        Observation::Links(Arc::new(links())),
        Observation::Members(Arc::new(Members { nodes: lives, is_informed: true })),
        Observation::Programmed(Arc::new(Programmed::All)),
    ] {
        index.observe(observation);
    }
    assert!(index.is_complete());
    index
}

/// A Service with an address, and its endpoints.
fn add(index: &mut Index, name: &str, address: &str, policy: TrafficPolicy, endpoints: &[(&str, Conditions)]) {
    let family = Family::of(address.parse().unwrap());
    index.observe(Observation::Service(Change::Applied(service(name, policy))));
    index.observe(Observation::Claim(Change::Applied(claim(address, &[name]))));
    index.observe(Observation::Endpoints(Change::Applied(slice(&format!("{name}-{family}"), name, family, endpoints))));
}

fn verdict(index: &Index, me: &str, address: &str) -> Verdict {
    let decisions = desired(index, &me.into(), NOW);
    decisions.get(&address.parse().unwrap()).expect("nobody holds the address").verdict.clone()
}

fn silence(index: &Index, me: &str, address: &str) -> Silence {
    match verdict(index, me, address) {
        Verdict::Silent(silence) => silence,
        Verdict::Announce(interfaces) => panic!("announced on {interfaces:?}"),
    }
}

/// The nodes that announce, each asked by itself.
fn announcers(index: &Index, address: &str) -> Vec<String> {
    let is_announcer = |name: &&NodeName| matches!(verdict(index, name.as_str(), address), Verdict::Announce(_));
    let names: Vec<NodeName> = index.nodes().map(|node| node.name.clone()).collect();
    names.iter().filter(is_announcer).map(ToString::to_string).collect()
}

/// The cases L1 to L12 of `metallb.md`: which nodes may announce. Where both may, the hash decides, and it is ours.
#[test]
fn metallb_cases() {
    use TrafficPolicy::Local;
    let (a, b) = ("iris1", "iris2");
    let both: &[&str] = &[a, b];
    let serving_unready = Conditions { is_ready: false, is_serving: true, is_terminating: false };
    let ready_not_serving = Conditions { is_ready: true, is_serving: false, is_terminating: false };
    type Case<'a> = (&'a str, &'a [(&'a str, Conditions)], &'a [&'a str]);
    let cases: [Case<'_>; 12] = [
        ("L1", &[(a, READY), (a, READY)], &[a]),
        ("L2", &[(a, UNREADY), (b, UNREADY)], &[]),
        ("L3", &[(a, READY), (b, READY)], both),
        ("L5", &[(a, READY), (b, UNREADY)], &[a]),
        ("L8", &[(a, READY), (b, READY), (b, READY)], both),
        ("L9a", &[(a, READY), (a, UNREADY), (b, READY)], both),
        ("L9b", &[(a, READY), (b, UNREADY), (b, UNREADY)], &[a]),
        ("L11, terminating", &[(a, DRAINING)], &[a]),
        ("terminating here, ready there", &[(a, DRAINING), (b, READY)], &[b]),
        ("L11, not terminating: the datapath would not use it", &[(a, serving_unready)], &[]),
        ("L12", &[(a, ready_not_serving)], &[a]),
        ("an endpoint of no node", &[("", READY)], &[]),
    ];
    for (case, endpoints, allowed) in cases {
        let mut index = cluster(both);
        add(&mut index, "web", "10.20.30.1", Local, endpoints);
        let announcers = announcers(&index, "10.20.30.1");
        assert_eq!(announcers.len(), usize::from(!allowed.is_empty()), "{case}: {announcers:?}");
        assert!(announcers.iter().all(|name| allowed.contains(&name.as_str())), "{case}: {announcers:?}");
    }
}

#[test]
fn endpoints_of_two_slices_are_one_set() {
    let mut index = cluster(&["iris1", "iris2"]);
    add(&mut index, "web", "10.20.30.1", TrafficPolicy::Local, &[("iris1", UNREADY)]);
    index.observe(Observation::Endpoints(Change::Applied(slice("more", "web", Family::V4, &[("iris2", READY)]))));
    assert_eq!(announcers(&index, "10.20.30.1"), ["iris2"]);
    index.observe(Observation::Endpoints(Change::Removed(SliceKey {
        namespace: "default".into(),
        name: "more".into(),
    })));
    assert_eq!(announcers(&index, "10.20.30.1"), [""; 0]);
}

#[test]
fn every_no_has_its_reason() {
    let edit_node = |edit: fn(&mut Node)| {
        let mut node = node("iris1");
        edit(&mut node);
        Observation::Node(Change::Applied(node))
    };
    let excluded = |exclusion| Silence::NodeExcluded(exclusion);
    let cases: Vec<(Observation, Silence)> = vec![
        (
            Observation::Node(Change::Applied(Node {
                addresses: vec!["10.20.30.1".parse().unwrap()],
                ..node("iris9")
            })),
            Silence::AddressOfNode { node: "iris9".into() },
        ),
        (Observation::Advertisement(Change::Removed("lan".into())), Silence::NoMatchingAdvertisement),
        (
            Observation::Advertisement(Change::Applied(advertisement("{ipAddressPools: [other]}"))),
            Silence::NoMatchingAdvertisement,
        ),
        (
            Observation::Advertisement(Change::Applied(advertisement("{nodeSelectors: [{matchLabels: {rack: a}}]}"))),
            Silence::NoMatchingAdvertisement,
        ),
        (
            Observation::Advertisement(Change::Applied(advertisement(
                "{serviceSelectors: [{matchLabels: {app: db}}]}",
            ))),
            Silence::NoMatchingAdvertisement,
        ),
        (
            Observation::Endpoints(Change::Applied(slice("web-IPv4", "web", Family::V4, &[("iris1", UNREADY)]))),
            Silence::NoUsableEndpoint,
        ),
        (edit_node(|node| node.is_excluded = true), excluded(Exclusion::Label)),
        (edit_node(|node| node.is_network_unavailable = true), excluded(Exclusion::NetworkUnavailable)),
        (edit_node(|node| node.is_out_of_service = true), excluded(Exclusion::OutOfService)),
        (edit_node(|node| node.is_leaving = true), excluded(Exclusion::Leaving)),
        (Observation::Members(Arc::default()), Silence::NodeNotReady),
        (Observation::Programmed(Arc::new(Programmed::Starting)), Silence::NotProgrammed),
        (Observation::Programmed(Arc::new(Programmed::These(Default::default()))), Silence::NotProgrammed),
        (
            Observation::Advertisement(Change::Applied(advertisement("{interfaces: [bond*]}"))),
            Silence::NoUsableInterface(NoInterface::NoneMatches),
        ),
        (
            Observation::Links({
                let mut links = links();
                links.by_index.values_mut().for_each(|link| link.has_carrier = false);
                Arc::new(links)
            }),
            Silence::NoUsableInterface(NoInterface::Unusable { name: "eth0".into(), why: Unusable::NoCarrier }),
        ),
    ];
    for (observation, expected) in cases {
        let mut index = cluster(&["iris1"]);
        add(&mut index, "web", "10.20.30.1", TrafficPolicy::Cluster, &[("iris1", READY)]);
        assert_eq!(announcers(&index, "10.20.30.1"), ["iris1"]);
        let what = format!("{observation:?}");
        assert!(index.observe(observation), "nothing new in {what}");
        assert_eq!(silence(&index, "iris1", "10.20.30.1"), expected, "{what}");
    }
    let mut index = cluster(&["iris1", "iris2"]);
    add(&mut index, "web", "10.20.30.1", TrafficPolicy::Local, &[("iris2", READY)]);
    assert_eq!(silence(&index, "iris1", "10.20.30.1"), Silence::NoLocalEndpoint);
}

#[test]
fn who_is_not_elected_knows_by_whom() {
    let mut index = cluster(&["iris1", "iris2", "iris3"]);
    add(&mut index, "web", "10.20.30.1", TrafficPolicy::Cluster, &[("iris1", READY)]);
    let [owner] = announcers(&index, "10.20.30.1").try_into().unwrap();
    for other in ["iris1", "iris2", "iris3"].iter().filter(|name| **name != owner) {
        assert_eq!(silence(&index, other, "10.20.30.1"), Silence::NotElected { by: NodeName::new(owner.as_str()) });
    }
}

#[test]
fn the_dead_the_departed_and_the_starting_are_no_candidates() {
    for life in [Life::Dead, Life::Left, Life::Starting, Life::Unheard] {
        let mut index = cluster(&["iris1", "iris2"]);
        add(&mut index, "web", "10.20.30.1", TrafficPolicy::Cluster, &[("iris1", READY)]);
        let [owner] = announcers(&index, "10.20.30.1").try_into().unwrap();
        let mut members = index.members().clone();
        members.nodes.insert(NodeName::new(owner.as_str()), life);
        index.observe(Observation::Members(Arc::new(members)));
        let survivor = if owner == "iris1" { "iris2" } else { "iris1" };
        assert_eq!(announcers(&index, "10.20.30.1"), [survivor], "{life:?}");
    }
}

#[test]
fn preferred_nodes_win_while_they_live() {
    let mut index = cluster(&["iris1", "iris2", "iris3"]);
    let spec = "{preferredNodeSelectors: [{weight: 1, preference: {matchLabels: {kubernetes.io/hostname: iris2}}}]}";
    index.observe(Observation::Advertisement(Change::Applied(advertisement(spec))));
    for number in 1..20 {
        let address = format!("10.20.30.{number}");
        add(&mut index, &format!("s{number}"), &address, TrafficPolicy::Cluster, &[("iris1", READY)]);
        assert_eq!(announcers(&index, &address), ["iris2"]);
    }
}

#[test]
fn both_families_and_shared_addresses_stay_together() {
    let mut index = cluster(&["iris1", "iris2", "iris3", "iris4", "iris5"]);
    add(&mut index, "a", "10.20.30.7", TrafficPolicy::Cluster, &[("iris1", READY)]);
    add(&mut index, "a", "2001:db8::7", TrafficPolicy::Cluster, &[("iris1", READY)]);
    add(&mut index, "b", "2001:db8::8", TrafficPolicy::Cluster, &[("iris1", READY)]);
    index.observe(Observation::Claim(Change::Applied(claim("2001:db8::7", &["a", "b"]))));
    let owner = announcers(&index, "10.20.30.7");
    assert_eq!(owner.len(), 1);
    assert_eq!(announcers(&index, "2001:db8::7"), owner);
    assert_eq!(announcers(&index, "2001:db8::8"), owner);
}

#[test]
fn a_family_without_endpoints_is_not_announced() {
    let mut index = cluster(&["iris1"]);
    add(&mut index, "web", "10.20.30.1", TrafficPolicy::Cluster, &[("iris1", READY)]);
    index.observe(Observation::Claim(Change::Applied(claim("2001:db8::1", &["web"]))));
    assert_eq!(silence(&index, "iris1", "2001:db8::1"), Silence::NoUsableEndpoint);
}

#[test]
fn a_claim_without_its_holder_is_nobodys() {
    let mut index = cluster(&["iris1"]);
    add(&mut index, "web", "10.20.30.1", TrafficPolicy::Cluster, &[("iris1", READY)]);
    let successor = AnnouncedService { uid: "another".to_owned(), ..service("web", TrafficPolicy::Cluster) };
    let retyped = AnnouncedService { is_load_balancer: false, ..service("web", TrafficPolicy::Cluster) };
    for change in [Change::Applied(successor), Change::Applied(retyped), Change::Removed(key("web"))] {
        index.observe(Observation::Service(change));
        assert_eq!(desired(&index, &"iris1".into(), NOW), BTreeMap::new());
    }
}

#[test]
fn an_address_lingers_for_the_service_that_moved_on() {
    let mut index = cluster(&["iris1"]);
    add(&mut index, "web", "10.20.30.1", TrafficPolicy::Cluster, &[("iris1", READY)]);
    let until = NOW + jiff::SignedDuration::from_secs(60);
    let mut old = claim("10.20.30.1", &[]);
    old.tenure.last_holder = Some(Holder { service: key("web"), uid: "uid-web".to_owned() });
    old.tenure.lingers_until = Some(until);
    index.observe(Observation::Claim(Change::Applied(old)));
    assert_eq!(announcers(&index, "10.20.30.1"), ["iris1"]);
    assert_eq!(next_change(&index, NOW), Some(until));
    assert_eq!(desired(&index, &"iris1".into(), until), BTreeMap::new());
    assert_eq!(next_change(&index, until), None);
}

#[test]
fn a_pool_is_selected_by_its_labels() {
    let mut index = cluster(&["iris1"]);
    add(&mut index, "web", "10.20.30.1", TrafficPolicy::Cluster, &[("iris1", READY)]);
    let spec = "{ipAddressPoolSelectors: [{matchLabels: {tier: gold}}]}";
    index.observe(Observation::Advertisement(Change::Applied(advertisement(spec))));
    assert_eq!(silence(&index, "iris1", "10.20.30.1"), Silence::NoMatchingAdvertisement);
    let labels = [("tier".to_owned(), "gold".to_owned())].into();
    index.observe(Observation::Pool(Change::Applied(PoolLabels { name: "pool".into(), labels })));
    assert_eq!(announcers(&index, "10.20.30.1"), ["iris1"]);
}

/// A random cluster in which every node sees the same.
fn any_cluster() -> impl Strategy<Value = Index> {
    let life = (prop::sample::select(vec![Life::Serving, Life::Dead, Life::Starting, Life::Awaited]), any::<bool>());
    let service = (any::<bool>(), prop::collection::vec((0usize..5, 0u8..3), 0..4), 0usize..12);
    let nodes = prop::collection::vec(life, 1..5);
    (nodes, prop::collection::vec(service, 0..12), 0usize..3).prop_map(|(lives, services, spec)| {
        let names: Vec<String> = (0..lives.len()).map(|number| format!("node{number}")).collect();
        let mut index = cluster(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut members = index.members().clone();
        for (name, (life, is_excluded)) in names.iter().zip(lives) {
            members.nodes.insert(NodeName::new(name.as_str()), life);
            let node = Node { is_excluded, ..node(name) };
            index.observe(Observation::Node(Change::Applied(node)));
        }
        index.observe(Observation::Members(Arc::new(members)));
        let specs = ["{}", "{serviceSelectors: [{matchLabels: {app: s1}}]}", "{interfaces: ['e*']}"];
        index.observe(Observation::Advertisement(Change::Applied(advertisement(specs[spec]))));
        for (number, (is_local, endpoints, address)) in services.into_iter().enumerate() {
            let policy = if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
            let nodes: Vec<String> = endpoints.iter().map(|(node, _)| format!("node{node}")).collect();
            let endpoints: Vec<(&str, Conditions)> = nodes
                .iter()
                .map(String::as_str)
                .zip(endpoints.iter().map(|(_, kind)| [READY, UNREADY, DRAINING][usize::from(*kind)]))
                .collect();
            add(&mut index, &format!("s{number}"), &format!("10.20.30.{address}"), policy, &endpoints);
        }
        index
    })
}

proptest! {
    #[test]
    fn nobody_or_one_node_announces_and_all_know_which(index in any_cluster()) {
        let names: Vec<NodeName> = index.nodes().map(|node| node.name.clone()).collect();
        let views: BTreeMap<&NodeName, _> = names.iter().map(|name| (name, desired(&index, name, NOW))).collect();
        for held in index.held(NOW) {
            let verdicts: Vec<(&NodeName, &Verdict)> =
                views.iter().map(|(name, view)| (*name, &view[&held.address].verdict)).collect();
            let owners: Vec<&NodeName> = verdicts
                .iter()
                .filter(|(_, verdict)| matches!(verdict, Verdict::Announce(_)))
                .map(|(name, _)| *name)
                .collect();
            prop_assert!(owners.len() <= 1, "{:?}", verdicts);
            for (_, verdict) in &verdicts {
                if let Verdict::Silent(Silence::NotElected { by }) = verdict {
                    // The one who is named announces, unless it cannot hear this itself: we wait for it to speak.
                    let awaited = index.members().nodes.get(by) == Some(&Life::Awaited);
                    prop_assert!(owners == [by] || awaited, "{:?}", verdicts);
                }
            }
        }
    }

    #[test]
    fn what_is_told_again_changes_nothing(index in any_cluster()) {
        let before = desired(&index, &"node0".into(), NOW);
        let mut again = index.clone();
        let members = Arc::new(index.members().clone());
        prop_assert!(!again.observe(Observation::Members(members)));
        prop_assert_eq!(desired(&again, &"node0".into(), NOW), before);
    }
}
