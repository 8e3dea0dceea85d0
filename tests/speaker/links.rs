//! Interfaces as the kernel tells of them.

use std::sync::Arc;
use std::time::Duration;

use steelyard::model::Family;
use steelyard::model::link::{Link, Links};
use steelyard::netlink::links::follow;
use steelyard::runtime::shutdown::shutdown;
use tokio::sync::watch;

use crate::namespace::{INTERFACE, Pair, join, wait};

const LIMIT: Duration = Duration::from_secs(10);

fn link(links: &watch::Receiver<Arc<Links>>, name: &str) -> Option<Link> {
    links.borrow().iter().find(|link| link.name.as_str() == name).cloned()
}

#[test]
fn changes_of_links_addresses_and_routes_are_seen() {
    let pair = Pair::new("links");
    let (sender, started) = std::sync::mpsc::channel();
    let (trigger, handle) = shutdown();
    let thread = pair.node.spawn(async move || {
        let mut handle = handle;
        sender.send(follow(handle.clone()).await.unwrap()).unwrap();
        handle.requested().await;
    });
    let links = started.recv().unwrap();
    let node = &pair.node;

    let first = link(&links, INTERFACE).unwrap();
    assert_eq!(first.mac.unwrap().to_string(), node.mac());
    assert!(first.is_up && first.has_carrier && first.unusable().is_none());
    assert!(first.subnet_holds("192.0.2.200".parse().unwrap()));
    assert!(first.addresses.iter().any(|net| net.to_string().starts_with("fe80:")));
    assert!(link(&links, "lo").unwrap().is_loopback);

    pair.client.ip(&format!("link set {INTERFACE} down"));
    let took = wait(LIMIT, "lost carrier", || !link(&links, INTERFACE).unwrap().has_carrier);
    // The kernel itself tells of carriers no more often than once a second, those of the whole machine together.
    assert!(took < Duration::from_millis(1500), "{took:?}");
    pair.client.ip(&format!("link set {INTERFACE} up"));
    wait(LIMIT, "carrier", || link(&links, INTERFACE).unwrap().has_carrier);

    node.ip(&format!("addr add 203.0.113.5/28 dev {INTERFACE}"));
    wait(LIMIT, "address", || link(&links, INTERFACE).unwrap().subnet_holds("203.0.113.1".parse().unwrap()));
    node.ip(&format!("addr del 203.0.113.5/28 dev {INTERFACE}"));
    wait(LIMIT, "no address", || !link(&links, INTERFACE).unwrap().subnet_holds("203.0.113.1".parse().unwrap()));

    let has_default = |family| links.borrow().has_default_route(family, first.index);
    assert!(!has_default(Family::V4));
    node.ip("route add default via 192.0.2.1");
    node.ip("-6 route add default via 2001:db8::1");
    wait(LIMIT, "default routes", || has_default(Family::V4) && has_default(Family::V6));
    node.ip("route del default");
    wait(LIMIT, "no default route", || !has_default(Family::V4));
    node.ip("route add default via 192.0.2.1");
    wait(LIMIT, "default route", || has_default(Family::V4));
    // The kernel says nothing of the IPv4 routes that it drops with an interface.
    node.ip(&format!("link set {INTERFACE} down"));
    wait(LIMIT, "down", || !link(&links, INTERFACE).unwrap().is_up && !has_default(Family::V4));
    node.ip(&format!("link set {INTERFACE} address 02:00:00:00:00:77 up"));
    wait(LIMIT, "new address", || link(&links, INTERFACE).unwrap().mac.unwrap().to_string() == "02:00:00:00:00:77");

    node.ip("link add br0 type bridge");
    node.ip("link add silent0 type veth peer silent1");
    node.ip("link set silent0 arp off");
    wait(LIMIT, "new links", || link(&links, "br0").is_some() && link(&links, "silent1").is_some());
    wait(LIMIT, "no neighbours", || !link(&links, "silent0").unwrap().resolves_neighbours);
    assert!(link(&links, "br0").unwrap().resolves_neighbours);
    node.ip(&format!("link set {INTERFACE} master br0"));
    let bridge = link(&links, "br0").unwrap().index;
    wait(LIMIT, "enslaved", || link(&links, INTERFACE).unwrap().master == Some(bridge));
    // Leaving a bridge is told as a removed link of the bridge's family: the interface must survive that.
    node.ip(&format!("link set {INTERFACE} nomaster"));
    wait(LIMIT, "free", || link(&links, INTERFACE).unwrap().master.is_none());
    node.ip("link del br0");
    wait(LIMIT, "no bridge", || link(&links, "br0").is_none());

    trigger.request();
    join(thread);
}

#[test]
fn a_flood_of_changes_ends_in_the_right_picture() {
    let pair = Pair::new("flood");
    let (sender, started) = std::sync::mpsc::channel();
    let (trigger, handle) = shutdown();
    let thread = pair.node.spawn(async move || {
        let mut handle = handle;
        sender.send(follow(handle.clone()).await.unwrap()).unwrap();
        // The runtime's only thread sleeps while the notices come, so that the socket overruns.
        std::thread::park_timeout(Duration::from_secs(4));
        handle.requested().await;
    });
    let links = started.recv().unwrap();
    let batch = tempfile::NamedTempFile::new().unwrap();
    let lines: String = (0..4000)
        .map(|number| format!("addr add 10.{}.{}.1/24 dev {INTERFACE}\n", number / 250, number % 250))
        .collect();
    std::fs::write(batch.path(), lines).unwrap();
    pair.node.ip(&format!("-batch {}", batch.path().display()));
    wait(Duration::from_secs(30), "all addresses", || {
        let link = link(&links, INTERFACE).unwrap();
        link.addresses.iter().filter(|net| net.to_string().starts_with("10.")).count() == 4000
    });
    trigger.request();
    join(thread);
}
