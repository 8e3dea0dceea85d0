//! Session affinity with real packets: where new connections of a client go, in namespaces, in both families.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "helpers of tests, some of them another test program's"
)]

mod forgetting;
#[path = "../stage/links.rs"]
mod links;
#[path = "../stage/namespace.rs"]
mod namespace;
#[path = "../stage/sockets.rs"]
mod sockets;
#[path = "../stage/wire.rs"]
mod wire;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use steelyard::datapath::entry::Target;
use steelyard::datapath::plan::Scope;
use steelyard::model::{Family, Protocol};

use crate::world::{EXTERNAL, EXTERNAL_LOCAL, Entries, INTERNAL, Places, World, entry};

const TIMEOUT: Option<u64> = Some(10_800);

/// A Service at a cluster IP, with four endpoints.
fn at_cluster_ip(places: Places, protocol: Protocol, timeout: Option<u64>) -> Entries {
    let web = entry(&[(places.cluster_ip(80), INTERNAL)], places.endpoints(1..=4), timeout);
    [(places.key("web", protocol), web)].into()
}

fn in_both_families(purpose: &str, test: impl Fn(&mut World, Places)) {
    let mut world = World::new(purpose);
    for family in Family::ALL {
        test(&mut world, Places { family });
        world.program(&Entries::new(), &Scope::All);
    }
}

/// Where each of some clients goes.
fn pins(world: &mut World, to: SocketAddr, places: Places, clients: u8) -> BTreeMap<IpAddr, SocketAddr> {
    let each = (1..=clients).map(|number| places.client(number));
    each.map(|client| (client, world.connect(client, to, Protocol::Tcp))).collect()
}

#[test]
fn a_client_keeps_its_endpoint_over_many_connections_with_every_protocol() {
    in_both_families("pin", |world, places| {
        for protocol in Protocol::ALL {
            let to = places.cluster_ip(80);
            world.program(&at_cluster_ip(places, protocol, None), &Scope::All);
            let spread = world.connect_often(40, places.client(1), to, protocol);
            assert!(spread.len() > 1, "without affinity all went to {spread:?}");
            world.program(&at_cluster_ip(places, protocol, TIMEOUT), &Scope::All);
            world.settle();
            let mut all = BTreeSet::new();
            for number in 1..=20 {
                let pinned = world.connect_often(10, places.client(number), to, protocol);
                assert_eq!(pinned.len(), 1, "{protocol} from client {number}");
                all.extend(pinned);
            }
            assert!(all.len() > 1, "all clients went to {all:?}");
            assert_eq!(world.remembered(places.family).len(), 20);
        }
    });
}

#[test]
fn all_addresses_of_a_service_port_share_what_they_remember() {
    in_both_families("shared", |world, places| {
        let frontends =
            [(places.cluster_ip(80), INTERNAL), (places.balanced(80), EXTERNAL), (places.node_port(), EXTERNAL)];
        let key = places.key("web", Protocol::Tcp);
        world.program(&[(key, entry(&frontends, places.endpoints(1..=8), TIMEOUT))].into(), &Scope::All);
        let clients = (1..=8).map(|number| places.client(number)).chain([places.pod(5), places.node()]);
        for client in clients.collect::<Vec<_>>() {
            let pinned: BTreeSet<SocketAddr> =
                (0..9).map(|turn| world.connect(client, frontends[turn % 3].0, Protocol::Tcp)).collect();
            assert_eq!(pinned.len(), 1, "{client}");
        }
    });
}

#[test]
fn ports_remember_apart() {
    in_both_families("ports", |world, places| {
        let at = |port| entry(&[(places.cluster_ip(port), INTERNAL)], places.endpoints(1..=8), TIMEOUT);
        let (one, other) = (places.key("one", Protocol::Tcp), places.key("other", Protocol::Tcp));
        world.program(&[(one, at(80)), (other, at(81))].into(), &Scope::All);
        let at_one = pins(world, places.cluster_ip(80), places, 12);
        let at_other = pins(world, places.cluster_ip(81), places, 12);
        assert_ne!(at_one, at_other);
        assert_eq!(pins(world, places.cluster_ip(80), places, 12), at_one);
        assert_eq!(pins(world, places.cluster_ip(81), places, 12), at_other);
    });
}

#[test]
fn each_new_connection_begins_the_time_anew_and_without_one_it_ends() {
    in_both_families("expiry", |world, places| {
        world.program(&at_cluster_ip(places, Protocol::Tcp, Some(2)), &Scope::All);
        let to = places.cluster_ip(80);
        let first = pins(world, to, places, 16);
        let begin = Instant::now();
        // Twice as long as a client is remembered that does not come again.
        while begin.elapsed() < Duration::from_secs(4) {
            assert_eq!(pins(world, to, places, 16), first, "after {:?}", begin.elapsed());
        }
        world.wait_for("clients are forgotten", |world| world.remembered(places.family).is_empty());
        assert_ne!(pins(world, to, places, 16), first, "nobody was led elsewhere");
    });
}

#[test]
fn a_full_memory_costs_affinity_and_no_connection() {
    const SIZE: u32 = steelyard::datapath::nft::layout::AFFINITY_SIZE;
    in_both_families("full", |world, places| {
        world.program(&at_cluster_ip(places, Protocol::Tcp, TIMEOUT), &Scope::All);
        let to = places.cluster_ip(80);
        let old = places.client(200);
        let pinned = world.connect(old, to, Protocol::Tcp);
        let mut fill = String::new();
        let word = match places.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        write!(fill, "add element {word} steelyard affinity {{").unwrap();
        for number in 1..SIZE {
            let (high, low) = (number >> 16, number & 0xffff);
            match places.family {
                Family::V4 => {
                    let [_, b, c, d] = number.to_be_bytes();
                    write!(fill, "f000:ffff . 11.{b}.{c}.{d} timeout 1h : 10.0.1.1 . 8080,").unwrap();
                }
                Family::V6 => {
                    write!(fill, "f000:ffff . 2001:db8:7::{high:x}:{low:x} timeout 1h : fd00:10:1::1,").unwrap()
                }
            }
        }
        fill.push('}');
        world.nft(&["-f", "-"], &fill);
        let spread = world.connect_often(40, places.client(1), to, Protocol::Tcp);
        assert!(spread.len() > 1, "who cannot be remembered went to {spread:?} alone");
        assert_eq!(world.connect_often(10, old, to, Protocol::Tcp), [pinned].into(), "who is remembered stays so");
        // A resync clears away what is nobody's, and there is room again.
        world.settle();
        assert!(!world.program(&at_cluster_ip(places, Protocol::Tcp, TIMEOUT), &Scope::All).is_rebuilt);
        assert_eq!(world.settle(), usize::try_from(SIZE).unwrap() - 1);
        assert_eq!(world.connect_often(10, places.client(1), to, Protocol::Tcp).len(), 1);
        assert_eq!(world.connect(old, to, Protocol::Tcp), pinned);
    });
}

#[test]
fn both_policies_share_the_memory_of_endpoints_that_both_may_use() {
    in_both_families("policies", |world, places| {
        let (inside, outside) = (places.cluster_ip(80), places.balanced(80));
        let frontends = [(inside, INTERNAL), (outside, EXTERNAL_LOCAL)];
        let mut web = entry(&frontends, places.endpoints(1..=4), TIMEOUT);
        web.local = places.endpoints(1..=2);
        world.program(&[(places.key("web", Protocol::Tcp), web)].into(), &Scope::All);
        let here = [places.endpoint(1), places.endpoint(2)];
        for number in 1..=20 {
            let client = places.client(number);
            let pinned = world.connect(client, outside, Protocol::Tcp);
            assert!(here.contains(&pinned));
            assert_eq!(world.connect_often(5, client, inside, Protocol::Tcp), [pinned].into());
            assert_eq!(world.connect_often(5, client, outside, Protocol::Tcp), [pinned].into());
        }
        for number in 21..=50 {
            let client = places.client(number);
            let pinned = world.connect(client, inside, Protocol::Tcp);
            let local = world.connect(client, outside, Protocol::Tcp);
            assert!(here.contains(&local));
            assert!(local == pinned || !here.contains(&pinned), "{client} was at {pinned}, came to {local}");
            assert_eq!(world.connect_often(5, client, inside, Protocol::Tcp), [pinned].into());
            assert_eq!(world.connect_often(5, client, outside, Protocol::Tcp), [local].into());
        }
        // Clients on this node are inside, whatever they dial.
        for client in [places.pod(7), places.node()] {
            let pinned = world.connect(client, inside, Protocol::Tcp);
            assert_eq!(world.connect_often(8, client, outside, Protocol::Tcp), [pinned].into());
        }
    });
}

#[test]
fn an_endpoint_in_the_network_of_the_node_is_remembered_too() {
    in_both_families("host", |world, places| {
        let on_node = SocketAddr::new(places.node(), 8080);
        let targets = Target::Endpoints([on_node, places.endpoint(1)].into());
        let web = entry(&[(places.balanced(80), EXTERNAL)], targets, TIMEOUT);
        world.program(&[(places.key("web", Protocol::Tcp), web)].into(), &Scope::All);
        let first = pins(world, places.balanced(80), places, 20);
        assert!(first.values().any(|endpoint| *endpoint == on_node));
        assert_eq!(pins(world, places.balanced(80), places, 20), first);
    });
}

#[test]
fn endpoints_on_several_ports_are_never_confused() {
    in_both_families("several", |world, places| {
        let other = SocketAddr::new(places.endpoint(3).ip(), 9090);
        let same = SocketAddr::new(places.endpoint(1).ip(), 9090);
        let all: BTreeSet<SocketAddr> =
            [places.endpoint(1), places.endpoint(2), places.endpoint(4), other, same].into();
        let mut entries: Entries = [(
            places.key("web", Protocol::Tcp),
            entry(&[(places.cluster_ip(80), INTERNAL)], Target::Endpoints(all.iter().copied().collect()), TIMEOUT),
        )]
        .into();
        world.program(&entries, &Scope::All);
        let to = places.cluster_ip(80);
        for number in 1..=20 {
            let client = places.client(number);
            assert!(world.connect_often(10, client, to, Protocol::Tcp).is_subset(&all));
            // In IPv6 only the port that most have is remembered: in the end everybody is at such an endpoint.
            world.wait_for("the client has an endpoint", |world| {
                world.connect_often(4, client, to, Protocol::Tcp).len() == 1
            });
            assert_eq!(world.connect_often(10, client, to, Protocol::Tcp).len(), 1);
        }
        // The address stays, on another port only.
        let gone = places.endpoint(1);
        world.change(&mut entries, &places.key("web", Protocol::Tcp), |entry| {
            if let Target::Endpoints(endpoints) = &mut entry.cluster {
                endpoints.remove(&gone);
            }
        });
        world.settle();
        for number in 1..=20 {
            assert!(!world.connect_often(3, places.client(number), to, Protocol::Tcp).contains(&gone));
        }
    });
}
