//! With a large table of tracked connections: a client still moves in time, and what a look costs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use serde_json::json;
use socket2::{Domain, Protocol as Kind, Socket, Type};
use steelyard::datapath::conntrack::{Fate, View};
use steelyard::datapath::desired::FrontendKey;
use steelyard::datapath::entry::Frontend;
use steelyard::datapath::sweeper::{Metrics, Sweeper};
use steelyard::model::{Family, Protocol};
use steelyard::netlink::ctnetlink::{Conntrack, Filter};

use crate::agent::{State, service, slice};
use crate::endpoints::Server;
use crate::namespace::run_program;
use crate::stage::{LIMIT, Place, Stage, wait};
use crate::udp::{Client, Heard, Times};

const PORT: u16 = 5353;
const OTHERS: u32 = 200_000;
const STALE: u32 = 50_000;
/// Reading so many entries takes the kernel most of the hundred milliseconds that a client waits without them.
const IN_TIME: Duration = Duration::from_millis(250);
const ALL: Filter = Filter { family: Family::V4, protocol: Protocol::Udp, destination: None, port: None };

fn count(stage: &Stage) -> usize {
    stage.node.run(|| {
        let mut count = 0;
        Conntrack::open().unwrap().dump(&ALL, |_| count += 1).unwrap();
        count
    })
}

/// The kernel has one table for all namespaces: what many entries leave there slows the next test down, for as long as the
/// kernel takes to clear away after a namespace that is gone.
struct Cleared<'a>(&'a Stage);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        self.0.node.run(|| run_program("conntrack", &["--flush"], "")).unwrap();
    }
}

#[test]
fn two_hundred_thousand_other_entries_keep_no_client_waiting() {
    let stage = Stage::new(Family::V4);
    let _cleared = Cleared(&stage);
    stage.node.set(&[("netfilter/nf_conntrack_udp_timeout", "3000")]).unwrap();
    let _servers: Vec<Server> =
        (1..=2).map(|number| Server::start(&stage.pods, stage.endpoint(number, PORT))).collect();
    let endpoints = |number| slice(&[(stage.endpoint(number, PORT), State::Ready)]);
    stage.agent().lists(vec![service(stage.cluster_ip(53), json!({}), &[])], vec![endpoints(1)]);
    // One packet to each of many addresses behind the node.
    let socket = stage.client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    for number in 0..OTHERS {
        let to = Ipv4Addr::from(0x0b00_0000 + number);
        let _lost = socket.send_to(b"?", SocketAddr::new(to.into(), 53));
    }
    let there = count(&stage);
    assert!(there > OTHERS as usize * 9 / 10, "only {there} entries: raise nf_conntrack_max of this machine");

    let times = Times::new();
    let client = Client::new(&stage, Place::Outside, stage.cluster_ip(53), &times);
    client.until("served", |heard| heard == Heard::From(stage.endpoint(1, PORT)));
    for number in [2, 1, 2, 1, 2] {
        stage.agent().slice(endpoints(number));
        client.moves(&format!("with {there} other entries, moves"), |heard| {
            heard == Heard::From(stage.endpoint(number, PORT))
        });
    }
    times.are_within(IN_TIME, "beside many others");

    stage.node.run(|| {
        let mut conntrack = Conntrack::open().unwrap();
        let one = Filter { destination: Some(stage.cluster_ip(53).ip()), port: 53.try_into().ok(), ..ALL };
        for (what, filter) in [("one frontend's", one), ("all UDP", ALL)] {
            let start = Instant::now();
            let mut count = 0;
            conntrack.dump(&filter, |_| count += 1).unwrap();
            println!("reading {what} entries of {there}: {count} in {:.1} ms", start.elapsed().as_secs_f64() * 1000.0);
        }
    });
}

#[test]
fn fifty_thousand_stale_entries_go_together() {
    let stage = Stage::new(Family::V4);
    let _cleared = Cleared(&stage);
    stage.node.set(&[("netfilter/nf_conntrack_udp_timeout", "3000")]).unwrap();
    stage.agent().lists(vec![], vec![]);
    // Datagrams of many ports to one address.
    let raw = stage.client.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Kind::UDP)).unwrap());
    let to = stage.external(53);
    for port in 0..STALE {
        let mut datagram = [0u8; 8];
        datagram[0..2].copy_from_slice(&u16::try_from(port + 1000).unwrap().to_be_bytes());
        datagram[2..4].copy_from_slice(&53u16.to_be_bytes());
        datagram[4..6].copy_from_slice(&8u16.to_be_bytes());
        let _lost = raw.send_to(&datagram, &SocketAddr::new(to.ip(), 0).into());
    }
    let there = count(&stage);
    assert!(there > STALE as usize * 9 / 10, "only {there} entries");
    let key = FrontendKey { family: Family::V4, protocol: Protocol::Udp, frontend: Frontend::Address(to) };
    let served = Fate::ServedBy(std::sync::Arc::new([SocketAddr::new(IpAddr::from([10, 0, 0, 1]), 1)].into()));
    stage.node.run(|| {
        let sweeper = Sweeper::start(Metrics::register(&mut Registry::default())).unwrap();
        let start = Instant::now();
        sweeper.hand_over(View { fates: [(key, served)].into(), ..View::default() });
        let mut conntrack = Conntrack::open().unwrap();
        wait(LIMIT, "all are deleted", || {
            let mut left = 0;
            conntrack.dump(&ALL, |_| left += 1).unwrap();
            left == 0
        });
        println!("reading and deleting {there} entries: {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
    });
}
