//! Who is forgotten, and who is not.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use steelyard::datapath::entry::Target;
use steelyard::datapath::plan::Scope;
use steelyard::model::{Family, Protocol};

use crate::world::{Entries, INTERNAL, Places, World, entry};
use crate::{TIMEOUT, at_cluster_ip, in_both_families, pins};

const CLIENTS: u8 = 40;

fn set(world: &mut World, entries: &mut Entries, places: Places, endpoint: SocketAddr, is_there: bool) {
    let key = places.key("web", Protocol::Tcp);
    world.change(entries, &key, |entry| {
        if let Target::Endpoints(endpoints) = &mut entry.cluster {
            let _ = if is_there { endpoints.insert(endpoint) } else { endpoints.remove(&endpoint) };
        }
    });
}

fn at(endpoint: SocketAddr, pins: &BTreeMap<IpAddr, SocketAddr>) -> usize {
    pins.values().filter(|to| **to == endpoint).count()
}

#[test]
fn clients_of_an_endpoint_that_goes_move_and_all_others_stay() {
    in_both_families("removed", |world, places| {
        let mut entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        world.program(&entries, &Scope::All);
        world.settle();
        let to = places.cluster_ip(80);
        let before = pins(world, to, places, CLIENTS);
        let gone = before[&places.client(1)];
        set(world, &mut entries, places, gone, false);
        world.wait_for("clients are forgotten", |world| {
            world.remembered(places.family).len() == usize::from(CLIENTS) - at(gone, &before)
        });
        let after = pins(world, to, places, CLIENTS);
        for (client, endpoint) in &before {
            assert!(*endpoint == gone || after[client] == *endpoint, "{client} moved from {endpoint} for nothing");
        }
        assert_eq!(at(gone, &after), 0);
        assert_eq!(world.settle(), at(gone, &before), "somebody was forgotten who had a new endpoint");
        assert_eq!(pins(world, to, places, CLIENTS), after);
        // It comes back, and nobody moves.
        set(world, &mut entries, places, gone, true);
        assert_eq!(world.settle(), 0);
        assert_eq!(pins(world, to, places, CLIENTS), after);
        // All endpoints go, and with them all memory.
        world.change(&mut entries, &places.key("web", Protocol::Tcp), |entry| entry.cluster = Target::Drop);
        assert_eq!(world.settle(), usize::from(CLIENTS));
        assert_eq!(world.remembered(places.family).len(), 0);
    });
}

#[test]
fn who_has_chosen_an_endpoint_that_came_back_keeps_it() {
    in_both_families("back", |world, places| {
        let mut entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        world.program(&entries, &Scope::All);
        let to = places.cluster_ip(80);
        for _ in 0..20 {
            let gone = pins(world, to, places, CLIENTS)[&places.client(1)];
            set(world, &mut entries, places, gone, false);
            set(world, &mut entries, places, gone, true);
            let after = pins(world, to, places, CLIENTS);
            assert_eq!(pins(world, to, places, CLIENTS), after, "somebody was forgotten after the endpoint was back");
        }
        let after = pins(world, to, places, CLIENTS);
        world.settle();
        assert_eq!(pins(world, to, places, CLIENTS), after);
    });
}

#[test]
fn a_service_that_is_made_again_at_once_remembers_anew() {
    in_both_families("again", |world, places| {
        let entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        let scope = Scope::Keys(entries.keys().cloned().collect());
        world.program(&entries, &Scope::All);
        let to = places.cluster_ip(80);
        let before = pins(world, to, places, CLIENTS);
        world.program(&Entries::new(), &scope);
        world.program(&entries, &scope);
        let after = pins(world, to, places, CLIENTS);
        assert_ne!(after, before);
        world.settle();
        assert_eq!(pins(world, to, places, CLIENTS), after);
        assert_eq!(world.remembered(places.family).len(), usize::from(CLIENTS), "only the new Service's are left");
    });
}

#[test]
fn what_was_not_done_when_the_agent_ended_is_done_by_the_next() {
    let mut world = World::new("end");
    for family in Family::ALL {
        let places = Places { family };
        let mut entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        world.program(&entries, &Scope::All);
        let to = places.cluster_ip(80);
        let before = pins(&mut world, to, places, CLIENTS);
        let gone = before[&places.client(1)];
        world.restart();
        world.program(&entries, &Scope::All);
        set(&mut world, &mut entries, places, gone, false);
        world.restart();
        world.program(&entries, &Scope::All);
        world.settle();
        assert_eq!(world.remembered(family).len(), usize::from(CLIENTS) - at(gone, &before));
        assert_eq!(at(gone, &pins(&mut world, to, places, CLIENTS)), 0);
        world.program(&Entries::new(), &Scope::All);
    }
}

#[test]
fn what_packets_left_behind_during_a_change_is_cleared_away_after_it() {
    in_both_families("left-behind", |world, places| {
        let key = places.key("web", Protocol::Tcp);
        let mut entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        world.program(&entries, &Scope::All);
        world.settle();
        world.change(&mut entries, &key, |entry| entry.cluster = places.endpoints(1..=3));
        // As if a packet had chosen the fourth before, and was remembered after.
        let (word, gone) = match places.family {
            Family::V4 => ("ip", "10.0.1.4 . 8080"),
            Family::V6 => ("ip6", "fd00:10:1::4"),
        };
        let client = places.client(9);
        let pin = format!("add element {word} steelyard affinity {{ f000:1 . {client} timeout 1h : {gone} }}");
        world.nft(&["-f", "-"], &pin);
        assert_eq!(world.settle(), 1);
        assert_ne!(world.connect(client, places.cluster_ip(80), Protocol::Tcp), places.endpoint(4));
    });
}

#[test]
fn a_table_that_others_deleted_leaves_nothing_to_clear_away() {
    in_both_families("flushed", |world, places| {
        let key = places.key("web", Protocol::Tcp);
        let mut entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        world.program(&entries, &Scope::All);
        pins(world, places.cluster_ip(80), places, 3);
        world.change(&mut entries, &key, |entry| entry.cluster = places.endpoints(1..=3));
        world.nft(&["flush", "ruleset"], "");
        world.settle();
        assert!(world.program(&entries, &Scope::All).is_rebuilt);
        assert_eq!(world.connect_often(9, places.client(1), places.cluster_ip(80), Protocol::Tcp).len(), 1);
    });
}

#[test]
fn another_timeout_and_the_end_of_affinity_drop_the_memory() {
    in_both_families("changes", |world, places| {
        let key = places.key("web", Protocol::Tcp);
        let mut entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        world.program(&entries, &Scope::All);
        world.settle();
        let to = places.cluster_ip(80);
        let mut before = pins(world, to, places, 30);
        for timeout in [Some(60), None, TIMEOUT] {
            let had_memory = !world.remembered(places.family).is_empty();
            let report = world.change(&mut entries, &key, |entry| entry.affinity = timeout.map(Duration::from_secs));
            assert!(!report.is_rebuilt);
            assert_eq!(world.settle(), if had_memory { 30 } else { 0 });
            assert_eq!(world.remembered(places.family).len(), 0);
            let after = pins(world, to, places, 30);
            assert_ne!(after, before, "nobody was led elsewhere by {timeout:?}");
            assert_eq!(pins(world, to, places, 30) == after, timeout.is_some());
            before = after;
        }
        // Gone and back: another id, and no memory.
        let web = entries.remove(&key).unwrap();
        world.program(&entries, &Scope::Keys([key.clone()].into()));
        assert_eq!(world.settle(), 30);
        entries.insert(key.clone(), web);
        world.program(&entries, &Scope::Keys([key].into()));
        assert_ne!(pins(world, to, places, 30), before);
    });
}

#[test]
fn a_restart_keeps_the_memory_and_clears_what_changed_meanwhile() {
    in_both_families("restart", |world, places| {
        let key = places.key("web", Protocol::Tcp);
        let mut entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        let web = entry(&[(places.cluster_ip(81), INTERNAL)], places.endpoints(1..=4), Some(60));
        entries.insert(places.key("other", Protocol::Tcp), web);
        world.program(&entries, &Scope::All);
        world.settle();
        let to = places.cluster_ip(80);
        let before = pins(world, to, places, 40);
        for _ in 0..2 {
            world.restart();
            let report = world.program(&entries, &Scope::All);
            assert_eq!((report.deleted, report.added, report.is_rebuilt), (0, 0, false));
            assert_eq!(world.settle(), 0);
            assert_eq!(pins(world, to, places, 40), before);
        }
        let gone = before[&places.client(1)];
        let Target::Endpoints(endpoints) = &mut entries.get_mut(&key).unwrap().cluster else { panic!() };
        endpoints.remove(&gone);
        world.restart();
        world.program(&entries, &Scope::All);
        assert_eq!(world.settle(), at(gone, &before));
        let after = pins(world, to, places, 40);
        assert!(before.iter().all(|(client, endpoint)| *endpoint == gone || after[client] == *endpoint));
        assert!(after.values().all(|endpoint| *endpoint != gone));
    });
}
