//! Following changes one by one ends where working everything out at once does, and what comes out is sound.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use steelyard::datapath::desired::{Conflict, Desired};
use steelyard::datapath::entry::{EntryKey, ForwardingEntry, NodeForwarding, Target};
use steelyard::datapath::index::Index;
use steelyard::datapath::settings::{DetectLocal, NodePortSelector, Settings};
use steelyard::datapath::simulate::{Memory, Packet, Place, Step, Verdict, simulate};
use steelyard::model::Protocol;
use steelyard::model::endpoints::{EndpointSlice, SliceKey};
use steelyard::model::flat::FlatSet;
use steelyard::model::node::Node;
use steelyard::model::service::{Service, TrafficPolicy};
use steelyard::names::ServiceKey;

use crate::objects::{ADDRESSES, ENDPOINTS, SERVICES, SLICES, node, service, slice};

/// Something that a watch or the kernel tells, or a turn of the loop.
#[derive(Clone, Debug)]
enum Event {
    Service(Box<Service>),
    NoService(&'static str),
    Services(Vec<Service>),
    Slice(EndpointSlice),
    NoSlice(&'static str),
    Slices(Vec<EndpointSlice>),
    Node(Box<Node>),
    Peer(&'static str, &'static str),
    NoPeer(&'static str),
    LocalAddresses(BTreeSet<IpAddr>),
    ServiceCidrs(Vec<&'static str>),
    Turn,
}

const PEERS: [&str; 2] = ["peer1", "peer2"];

fn event() -> impl Strategy<Value = Event> {
    let locals = vec!["192.168.0.2", "192.168.1.2", "2001:db8::2", "127.0.0.1", "::1", "192.0.2.1"];
    prop_oneof![
        6 => service().prop_map(|service| Event::Service(Box::new(service))),
        2 => select(SERVICES.to_vec()).prop_map(Event::NoService),
        1 => vec(service(), 0..4).prop_map(Event::Services),
        6 => slice().prop_map(Event::Slice),
        2 => select(SLICES.to_vec()).prop_map(Event::NoSlice),
        1 => vec(slice(), 0..4).prop_map(Event::Slices),
        2 => node().prop_map(|node| Event::Node(Box::new(node))),
        1 => (select(PEERS.to_vec()), select(vec!["192.0.2.1", "192.168.0.9", "2001:db8::9"]))
            .prop_map(|(name, address)| Event::Peer(name, address)),
        1 => select(PEERS.to_vec()).prop_map(Event::NoPeer),
        1 => btree_set(select(locals), 0..5)
            .prop_map(|texts| Event::LocalAddresses(texts.into_iter().map(|text| text.parse().unwrap()).collect())),
        1 => subsequence(vec!["172.30.0.0/16", "fd00:10:96::/112"], 0..=2).prop_map(Event::ServiceCidrs),
        5 => Just(Event::Turn),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let selectors = vec!["primary", "all", "0.0.0.0/0", "::/0", "192.168.1.0/24", "127.0.0.0/8"];
    let detect = prop_oneof![
        Just(DetectLocal::NodePrefixes),
        Just(DetectLocal::Off),
        Just(DetectLocal::Prefixes(vec!["10.0.0.0/8".parse().unwrap()])),
    ];
    (detect, any::<bool>(), subsequence(selectors, 0..=2)).prop_map(|(detect_local, masquerade_all, selectors)| {
        Settings {
            detect_local,
            masquerade_all,
            answer_ping: true,
            node_port_addresses: selectors.into_iter().map(|text| text.parse::<NodePortSelector>().unwrap()).collect(),
            ..Settings::default()
        }
    })
}

fn see(index: &mut Index, event: Event) {
    match event {
        Event::Service(service) => index.apply_service(*service),
        Event::NoService(name) => index.remove_service(&ServiceKey::new("ns", name)),
        Event::Services(services) => index.replace_services(services),
        Event::Slice(slice) => index.apply_slice(slice),
        Event::NoSlice(name) => index.remove_slice(&SliceKey { namespace: "ns".into(), name: name.into() }),
        Event::Slices(slices) => index.replace_slices(slices),
        Event::Node(node) => index.apply_node(*node),
        Event::Peer(name, address) => index.apply_peer(name.into(), vec![address.parse().unwrap()]),
        Event::NoPeer(name) => index.remove_peer(&name.into()),
        Event::LocalAddresses(addresses) => index.set_local_addresses(addresses),
        Event::ServiceCidrs(cidrs) => index.set_service_cidrs(cidrs.into_iter().map(|text| text.parse().unwrap())),
        Event::Turn => {}
    }
}

/// Takes a turn and checks that what it names as changed is exactly what changed.
fn turn(index: &mut Index, settings: &Settings, desired: &mut Desired) -> Result<(), TestCaseError> {
    let before = desired.entries().clone();
    let node_before = desired.node().clone();
    let changes = index.take_changes();
    let update = desired.update(index, settings, &changes);
    let keys: BTreeSet<&EntryKey> = before.keys().chain(desired.entries().keys()).collect();
    let changed: BTreeSet<EntryKey> =
        keys.into_iter().filter(|key| before.get(key) != desired.entries().get(key)).cloned().collect();
    prop_assert_eq!(&update.entries, &changed);
    let node = desired.node();
    let came_or_went: BTreeSet<IpAddr> =
        node.cluster_ips.symmetric_difference(&node_before.cluster_ips).copied().collect();
    prop_assert!(update.cluster_ips.is_superset(&came_or_went));
    let came_or_went: BTreeSet<IpAddr> = (node.served.symmetric_difference(&node_before.served))
        .chain(node.served_elsewhere.symmetric_difference(&node_before.served_elsewhere))
        .copied()
        .collect();
    prop_assert!(update.served.is_superset(&came_or_went));
    let rest = |node: &NodeForwarding| NodeForwarding {
        cluster_ips: BTreeSet::new(),
        served: BTreeSet::new(),
        served_elsewhere: BTreeSet::new(),
        ..node.clone()
    };
    prop_assert_eq!(update.is_node_changed, rest(node) != rest(&node_before));
    Ok(())
}

fn check_soundness(entries: &BTreeMap<EntryKey, ForwardingEntry>) -> Result<(), TestCaseError> {
    let mut owned = BTreeSet::new();
    for (key, entry) in entries {
        prop_assert!(!entry.frontends.is_empty(), "{:?} has no frontend", key);
        for frontend in entry.frontends.keys() {
            prop_assert!(owned.insert((key.family, key.port.protocol, *frontend)), "{:?} has two owners", frontend);
        }
        for target in [&entry.cluster, &entry.local] {
            prop_assert!(*target != Target::Endpoints(FlatSet::new()), "{:?} has an empty set", key);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn following_changes_ends_where_starting_afresh_does(
        events in vec(event(), 0..40),
        first in node(),
        settings in settings(),
    ) {
        let mut index = Index::default();
        let mut desired = Desired::default();
        for (number, event) in events.into_iter().enumerate() {
            // The node comes late, as it may when watches start.
            if number == 3 {
                index.apply_node(first.clone());
            }
            let is_turn = matches!(event, Event::Turn);
            see(&mut index, event);
            if is_turn {
                turn(&mut index, &settings, &mut desired)?;
                check_soundness(desired.entries())?;
            }
        }
        turn(&mut index, &settings, &mut desired)?;
        let fresh = Desired::from_index(&index, &settings);
        prop_assert_eq!(desired.entries(), fresh.entries());
        prop_assert_eq!(desired.node(), fresh.node());
        prop_assert_eq!(desired.conflicts().collect::<Vec<Conflict>>(), fresh.conflicts().collect::<Vec<Conflict>>());
        let again = desired.update(&index, &settings, &index.everything());
        prop_assert!(again.is_empty(), "a second turn changed {:?}", again);
    }

    #[test]
    fn the_order_of_arrival_decides_nothing(
        services in vec(service(), 0..5),
        slices in vec(slice(), 0..6),
        node in node(),
        settings in settings(),
    ) {
        let of = |services: Vec<Service>, slices: Vec<EndpointSlice>| {
            let mut index = Index::default();
            index.apply_node(node.clone());
            services.into_iter().for_each(|service| index.apply_service(service));
            slices.into_iter().for_each(|slice| index.apply_slice(slice));
            Desired::from_index(&index, &settings).entries().clone()
        };
        let services: BTreeMap<_, _> = services.into_iter().map(|service| (service.key.clone(), service)).collect();
        let slices: BTreeMap<_, _> = slices.into_iter().map(|slice| (slice.key.clone(), slice)).collect();
        let forwards = of(services.values().cloned().collect(), slices.values().cloned().collect());
        let backwards = of(services.values().rev().cloned().collect(), slices.values().rev().cloned().collect());
        prop_assert_eq!(forwards, backwards);
    }

    #[test]
    fn no_packet_goes_to_an_endpoint_that_may_not_be_used(
        services in vec(service(), 1..5),
        slices in vec(slice(), 0..6),
        node in node(),
        settings in settings(),
        source in select([&ADDRESSES[..], &ENDPOINTS[..]].concat()),
        destination in select(ADDRESSES.to_vec()),
        port in prop_oneof![80..83_u16, 3001..3004_u16],
        protocol in select(vec![Protocol::Tcp, Protocol::Udp]),
        remembered in (select(ENDPOINTS.to_vec()), 8080..8082_u16),
    ) {
        let mut index = Index::default();
        index.replace_services(services);
        index.replace_slices(slices);
        index.apply_node(node.clone());
        let local_addresses: BTreeSet<IpAddr> = node.addresses.into_iter().collect();
        index.set_local_addresses(local_addresses.clone());
        let desired = Desired::from_index(&index, &settings);
        let packet = Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            port: NonZeroU16::new(port).unwrap(),
            protocol,
        };
        // Wherever the client was before.
        let mut memory = Memory::default();
        let endpoint = SocketAddr::new(remembered.0.parse().unwrap(), remembered.1);
        for key in desired.entries().keys() {
            for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
                memory.remember(key, policy, packet.source, endpoint);
            }
        }
        let trace = simulate(Place { memory: Some(&memory), ..Place::new(&desired, &local_addresses) }, packet);
        prop_assert!(!trace.steps.is_empty(), "a verdict without a reason");
        prop_assert!(trace.steps.iter().all(|step| !step.to_string().is_empty()));
        if let Verdict::Dnat { endpoints, masquerade_when, .. } = &trace.verdict {
            prop_assert!(!endpoints.is_empty());
            prop_assert!(masquerade_when.is_subset(endpoints));
            let Some(Step::Frontend { entry, .. }) = trace.steps.first() else {
                return Err(TestCaseError::fail("dnat without a frontend"));
            };
            let key = &entry.port;
            for endpoint in endpoints {
                let mut known = index.slices_of(&key.service).flat_map(|slice| slice.endpoints_of(&key.port, key.protocol));
                let is_usable = known.any(|known| {
                    let conditions = known.conditions;
                    known.address == *endpoint
                        && (conditions.is_ready || (conditions.is_serving && conditions.is_terminating))
                });
                prop_assert!(is_usable, "{} may not be used", endpoint);
            }
        }
    }
}
