//! A node between a link to pods and one to clients, programmed with what a test wants, and first packets of connections
//! through it.
//!
//! ```text
//!   clients ◀── out0 [ node: rules under test ] pods0 ──▶ endpoints
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Once;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use prometheus_client::metrics::counter::Counter;
use steelyard::datapath::apply::{Programmer, Report};
use steelyard::datapath::entry::{
    EntryKey, ForwardingEntry, Frontend, NodeForwarding, NodePortAddresses, NodePorts, Target, Treatment,
};
use steelyard::datapath::plan::Scope;
use steelyard::datapath::simulate::Packet;
use steelyard::model::service::TrafficPolicy;
use steelyard::model::{Family, Protocol};
use steelyard::names::{PortName, ServiceKey, ServicePortKey};

use crate::links::Links;
use crate::namespace::{Namespace, run_program};
use crate::sockets::{Link, Own};
use crate::wire::{self, Seen, Sight};

const LIMIT: Duration = Duration::from_secs(60);

pub const INTERNAL: Treatment = Treatment::Internal(TrafficPolicy::Cluster);
pub const EXTERNAL: Treatment = Treatment::External { policy: TrafficPolicy::Cluster, is_filtered: false };
pub const EXTERNAL_LOCAL: Treatment = Treatment::External { policy: TrafficPolicy::Local, is_filtered: false };
pub const NODE_PORT: u16 = 30_080;

pub type Entries = BTreeMap<EntryKey, ForwardingEntry>;

/// The same places in either family.
#[derive(Clone, Copy)]
pub struct Places {
    pub family: Family,
}

impl Places {
    fn choose(self, v4: String, v6: String) -> IpAddr {
        match self.family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
        .parse()
        .unwrap()
    }

    pub fn client(self, number: u8) -> IpAddr {
        self.choose(format!("203.0.113.{number}"), format!("2001:db8:2::{number:x}"))
    }

    /// A pod of this node.
    pub fn pod(self, number: u8) -> IpAddr {
        self.choose(format!("10.0.0.{number}"), format!("fd00:10::{number:x}"))
    }

    pub fn endpoint(self, number: u8) -> SocketAddr {
        SocketAddr::new(self.choose(format!("10.0.1.{number}"), format!("fd00:10:1::{number:x}")), 8080)
    }

    pub fn endpoints(self, numbers: impl IntoIterator<Item = u8>) -> Target {
        Target::Endpoints(numbers.into_iter().map(|number| self.endpoint(number)).collect())
    }

    pub fn node(self) -> IpAddr {
        self.choose("192.168.0.2".to_owned(), "2001:db8::2".to_owned())
    }

    pub fn cluster_ip(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.choose("172.30.0.1".to_owned(), "fd00:96::1".to_owned()), port)
    }

    pub fn balanced(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.choose("192.0.2.1".to_owned(), "2001:db8:1::1".to_owned()), port)
    }

    pub fn node_port(self) -> SocketAddr {
        SocketAddr::new(self.node(), NODE_PORT)
    }

    pub fn key(self, name: &str, protocol: Protocol) -> EntryKey {
        let port = ServicePortKey { service: ServiceKey::new("ns", name), port: PortName::new(""), protocol };
        EntryKey { port, family: self.family }
    }
}

/// A Service port with these frontends.
pub fn entry(frontends: &[(SocketAddr, Treatment)], cluster: Target, timeout: Option<u64>) -> ForwardingEntry {
    let frontend = |address: &SocketAddr| match address.port() {
        NODE_PORT => Frontend::NodePort(NonZeroU16::new(NODE_PORT).unwrap()),
        _ => Frontend::Address(*address),
    };
    ForwardingEntry {
        frontends: frontends.iter().map(|(address, treatment)| (frontend(address), *treatment)).collect(),
        cluster,
        local: Target::Reject,
        affinity: timeout.map(Duration::from_secs),
        source_ranges: Vec::new(),
        local_addresses: Default::default(),
    }
}

pub struct World {
    node: Namespace,
    _beyond: Namespace,
    outside: Link,
    pods: Link,
    own: Own,
    programmer: Programmer,
    /// How many clients were forgotten, by this process and those before it.
    forgotten: Counter,
    /// How many of these were told of.
    told: u64,
    last_port: u16,
    last_tag: u32,
}

impl World {
    /// A node with nothing programmed; `purpose` is no other test's.
    pub fn new(purpose: &str) -> Self {
        // Tests of one process run side by side, and what an earlier one left is cleared away once.
        static PREPARED: Once = Once::new();
        PREPARED.call_once(|| crate::namespace::prepare().unwrap());
        let addresses = Family::ALL.map(|family| Places { family }.node());
        let behind_pods = ["10.0.0.0/16", "fd00:10::/32"].map(|text| text.parse().unwrap());
        let links = Links::lay(&format!("{purpose}-"), &addresses, behind_pods).unwrap();
        let Links { node, beyond, outside, pods, own } = links;
        let forgotten = Counter::default();
        let programmer = node.run(|| Programmer::counting(forgotten.clone()).unwrap());
        let mut world = Self {
            node,
            _beyond: beyond,
            outside,
            pods,
            own,
            programmer,
            forgotten,
            told: 0,
            last_port: 1024,
            last_tag: wire::TAGS,
        };
        // A link that has just come up loses packets for some milliseconds.
        for (from, to) in [("198.18.0.1", "10.0.9.9:9"), ("2001:2::1", "[fd00:10:9::9]:9")] {
            let limit = Instant::now() + LIMIT;
            while world.try_connect(from.parse().unwrap(), to.parse().unwrap(), Protocol::Udp, 20).is_none() {
                assert!(Instant::now() < limit, "the node passes no packets from {from}");
            }
        }
        world
    }

    /// A process that starts anew.
    pub fn restart(&mut self) {
        self.programmer = self.node.run(|| Programmer::counting(self.forgotten.clone()).unwrap());
    }

    pub fn program(&mut self, entries: &Entries, scope: &Scope) -> Report {
        let node = NodeForwarding {
            pod_cidrs: ["10.0.0.0/24", "fd00:10::/64"].map(|text| text.parse().unwrap()).to_vec(),
            node_ports: NodePorts {
                v4: NodePortAddresses::These([Places { family: Family::V4 }.node()].into()),
                v6: NodePortAddresses::These([Places { family: Family::V6 }.node()].into()),
            },
            ..NodeForwarding::default()
        };
        let report = self.programmer.apply(entries, scope, &node).unwrap();
        assert!(report.quarantined.is_empty(), "{:?}", report.quarantined);
        report
    }

    /// Changes one entry.
    pub fn change(
        &mut self,
        entries: &mut Entries,
        key: &EntryKey,
        change: impl FnOnce(&mut ForwardingEntry),
    ) -> Report {
        change(entries.get_mut(key).unwrap());
        self.program(entries, &Scope::Keys([key.clone()].into()))
    }

    pub fn nft(&self, arguments: &[&str], input: &str) -> String {
        self.node.run(|| run_program("nft", arguments, input)).unwrap()
    }

    /// Which clients are remembered, as nft prints them.
    pub fn remembered(&self, family: Family) -> Vec<String> {
        let word = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let text = self.nft(&["list", "map", word, "steelyard", "affinity"], "");
        let Some((_, elements)) = text.split_once("elements = {") else { return Vec::new() };
        let elements = elements.split_once('}').unwrap().0;
        elements.split(',').map(|element| element.trim().to_owned()).collect()
    }

    /// Waits until all clients are forgotten that must be, and tells how many that were since this was last asked.
    pub fn settle(&mut self) -> usize {
        self.wait_for("the memory is as it should be", |world| !world.programmer.is_unsettled());
        let before = std::mem::replace(&mut self.told, self.forgotten.get());
        usize::try_from(self.told - before).unwrap()
    }

    /// Where a new connection goes.
    pub fn connect(&mut self, from: IpAddr, to: SocketAddr, protocol: Protocol) -> SocketAddr {
        let seen = self.try_connect(from, to, protocol, 2000);
        seen.unwrap_or_else(|| panic!("nothing came of a connection from {from} to {to}"))
    }

    /// Where that many new connections go.
    pub fn connect_often(
        &mut self,
        times: u32,
        from: IpAddr,
        to: SocketAddr,
        protocol: Protocol,
    ) -> BTreeSet<SocketAddr> {
        (0..times).map(|_| self.connect(from, to, protocol)).collect()
    }

    fn try_connect(&mut self, from: IpAddr, to: SocketAddr, protocol: Protocol, patience: u64) -> Option<SocketAddr> {
        self.last_port = self.last_port.checked_add(1).unwrap_or(1024);
        self.last_tag += 1;
        let port = NonZeroU16::new(to.port()).unwrap();
        let packet = Packet { source: from, destination: to.ip(), port, protocol };
        let bytes = wire::first_packet(&packet, self.last_port, self.last_tag);
        let family = Places { family: Family::of(from) };
        if from == family.node() {
            self.own.send(&bytes, to.ip()).unwrap();
        } else if from == family.pod(0) || (1..=255).any(|number| from == family.pod(number)) {
            self.pods.send(&bytes).unwrap();
        } else {
            self.outside.send(&bytes).unwrap();
        }
        let limit = Instant::now() + Duration::from_millis(patience);
        let mut found = None;
        while found.is_none() && Instant::now() < limit {
            let mut take = |seen: Sight| match seen.unwrap() {
                Seen::Packet { tag, destination, .. } if tag == self.last_tag => found = Some(destination),
                Seen::Error { tag, .. } if tag == self.last_tag => panic!("{from} to {to}: refused"),
                Seen::Packet { .. } | Seen::Error { .. } => {}
            };
            self.pods.receive(&mut take).unwrap();
            self.outside.receive(&mut take).unwrap();
            self.own.receive(&mut take).unwrap();
            if found.is_none() {
                poll(&mut [], PollTimeout::from(1u8)).unwrap();
            }
        }
        found
    }

    /// Sends what a client would.
    pub fn send_from_outside(&self, packet: &[u8]) {
        self.outside.send(packet).unwrap();
    }

    /// Throws away what has come.
    pub fn discard(&self) {
        for link in [&self.outside, &self.pods] {
            link.receive(&mut |_| {}).unwrap();
        }
    }

    /// How many connections the node knows.
    pub fn connections(&self) -> usize {
        let count = self.node.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
        count.unwrap().trim().parse().unwrap()
    }

    /// Makes the node forget all connections.
    pub fn forget_connections(&self) {
        // Without a connection there is none to delete, and the program says so.
        if self.connections() > 0 {
            self.node.run(|| run_program("conntrack", &["-F"], "")).unwrap();
        }
    }

    /// Waits until something holds.
    pub fn wait_for(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let limit = Instant::now() + LIMIT;
        while !holds(self) {
            assert!(Instant::now() < limit, "{what}: not within {LIMIT:?}");
            poll(&mut [], PollTimeout::from(20u8)).unwrap();
        }
    }
}
