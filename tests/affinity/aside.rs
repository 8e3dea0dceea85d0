//! Clients are forgotten by a thread of its own, as in the agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use steelyard::datapath::entry::Target;
use steelyard::datapath::metrics::Metrics;
use steelyard::datapath::plan::Scope;
use steelyard::model::{Family, Protocol};

use crate::world::{Entries, Places, World};
use crate::{TIMEOUT, at_cluster_ip, in_both_families, pins};

const CLIENTS: u8 = 40;

fn start(world: &mut World, registry: &mut Registry) {
    world.restart_with_a_thread(Metrics::register(registry));
}

fn forgotten(registry: &Registry) -> usize {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("datapath_affinity_forgotten_total ")).unwrap();
    line.parse().unwrap()
}

fn set(world: &mut World, entries: &mut Entries, places: Places, endpoint: SocketAddr, is_there: bool) {
    let key = places.key("web", Protocol::Tcp);
    world.change(entries, &key, |entry| {
        if let Target::Endpoints(endpoints) = &mut entry.cluster {
            let _ = if is_there { endpoints.insert(endpoint) } else { endpoints.remove(&endpoint) };
        }
    });
}

fn settled(world: &mut World) {
    world.wait_for("the thread is done", |world| !world.programmer.is_unsettled());
}

fn at(endpoint: SocketAddr, pins: &BTreeMap<IpAddr, SocketAddr>) -> usize {
    pins.values().filter(|to| **to == endpoint).count()
}

#[test]
fn clients_of_an_endpoint_that_goes_move_and_all_others_stay() {
    in_both_families("aside", |world, places| {
        let mut registry = Registry::default();
        start(world, &mut registry);
        let mut entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        world.program(&entries, &Scope::All);
        let to = places.cluster_ip(80);
        let before = pins(world, to, places, CLIENTS);
        let gone = before[&places.client(1)];
        set(world, &mut entries, places, gone, false);
        world.wait_for("clients are forgotten", |world| {
            world.remembered(places.family).len() == usize::from(CLIENTS) - at(gone, &before)
        });
        let after = pins(world, to, places, CLIENTS);
        assert!(before.iter().all(|(client, endpoint)| *endpoint == gone || after[client] == *endpoint));
        assert_eq!(at(gone, &after), 0);
        settled(world);
        assert_eq!(pins(world, to, places, CLIENTS), after, "somebody was forgotten who had a new endpoint");
        assert_eq!(forgotten(&registry), at(gone, &before));
    });
}

#[test]
fn who_has_chosen_an_endpoint_that_came_back_keeps_it() {
    in_both_families("aside-back", |world, places| {
        let mut registry = Registry::default();
        start(world, &mut registry);
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
        settled(world);
        assert_eq!(pins(world, to, places, CLIENTS), after);
    });
}

#[test]
fn a_service_that_is_made_again_at_once_remembers_anew() {
    in_both_families("aside-again", |world, places| {
        let mut registry = Registry::default();
        start(world, &mut registry);
        let entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        let scope = Scope::Keys(entries.keys().cloned().collect());
        world.program(&entries, &Scope::All);
        let to = places.cluster_ip(80);
        let before = pins(world, to, places, CLIENTS);
        world.program(&Entries::new(), &scope);
        world.program(&entries, &scope);
        let after = pins(world, to, places, CLIENTS);
        assert_ne!(after, before);
        settled(world);
        assert_eq!(pins(world, to, places, CLIENTS), after);
        assert_eq!(world.remembered(places.family).len(), usize::from(CLIENTS), "only the new Service's are left");
    });
}

#[test]
fn what_was_not_done_when_the_agent_ended_is_done_by_the_next() {
    let mut world = World::new("aside-end");
    for family in Family::ALL {
        let places = Places { family };
        let mut entries = at_cluster_ip(places, Protocol::Tcp, TIMEOUT);
        world.program(&entries, &Scope::All);
        let to = places.cluster_ip(80);
        let before = pins(&mut world, to, places, CLIENTS);
        let gone = before[&places.client(1)];
        start(&mut world, &mut Registry::default());
        world.program(&entries, &Scope::All);
        set(&mut world, &mut entries, places, gone, false);
        start(&mut world, &mut Registry::default());
        world.program(&entries, &Scope::All);
        settled(&mut world);
        assert_eq!(world.remembered(family).len(), usize::from(CLIENTS) - at(gone, &before));
        assert_eq!(at(gone, &pins(&mut world, to, places, CLIENTS)), 0);
        world.program(&Entries::new(), &Scope::All);
    }
}
