//! A node in a namespace, with a link to the pods and one to the rest of the world.
//!
//! ```text
//!   world namespace: two ends of links with no network stack     node namespace
//!   ┌────────────────┐                                     ┌──────────────────────────┐
//!   │ outside ◀──────┼─────────── default route ───────────┼─▶ out0    the node's     │
//!   │                │                                     │           addresses      │
//!   │ pods    ◀──────┼──── pods' prefixes, endpoints ──────┼─▶ pods0   another, to    │
//!   └────────────────┘                                     │           masquerade as  │
//!                                                          │   raw sockets: its own   │
//!                                                          └──────────────────────────┘
//! ```
//!
//! Included by path from each runner that sends real packets.

#![allow(dead_code, unreachable_pub, reason = "a library of the runners, of which each uses a part")]

mod links;
pub mod namespace;
pub mod outcome;
mod sockets;
mod surroundings;
pub mod wire;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::poll::{PollTimeout, poll};
use steelyard::datapath::simulate::Packet;
use steelyard::model::Protocol;

use self::links::Links;
use self::namespace::{Namespace, OneProcessor, run_program};
use self::sockets::{Link, Own};
use self::wire::{Seen, Sight};

pub use self::surroundings::Surroundings;

/// Packets that pass through the node to each of its links: the first to come back shows that it is ready, and when
/// they are back that were sent after all others, what was to come has come.
const PASSING: [(&str, &str); 4] = [
    ("198.18.0.1", "198.18.0.2"),
    ("198.18.0.1", "198.18.3.1"),
    ("2001:2::1", "2001:2::2"),
    ("2001:2::1", "2001:2:3::1"),
];
/// Of these the ones behind the link of the pods.
const PASSING_TO_PODS: [&str; 2] = ["198.18.3.0/24", "2001:2:3::/64"];
const PASSING_PORT: u16 = 9;
/// A table of the runner's own.
const WATCH: &str = "steelyard_cases";
/// What is missing when the last packets are back gets this much longer.
const GRACE: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(5);
const FIRST_PORT: u16 = 1024;

/// Where packets come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Node,
    Pods,
    Outside,
}

/// A packet to send as the first of so many connections.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub packet: Packet,
    pub connections: usize,
    /// Whether something should come of each; what should and does not is waited for.
    pub is_visible: bool,
}

/// A node, ready to be programmed.
pub struct Stage {
    node: Namespace,
    _world: Namespace,
    outside: Link,
    pods: Link,
    own: Own,
    surroundings: Surroundings,
    next_port: Cell<u16>,
    next_tag: Cell<u32>,
}

impl Stage {
    /// Makes a node. The name tells it from others of this process.
    pub fn raise(name: &str, surroundings: Surroundings) -> Result<Self, String> {
        let passing = PASSING_TO_PODS.map(|text| text.parse::<IpNet>().unwrap());
        let pod_prefixes = surroundings.pod_prefixes.iter().copied().chain(passing);
        let Links { node, beyond, outside, pods, own } = Links::lay(name, &surroundings.local, pod_prefixes)?;
        let stage = Self {
            node,
            _world: beyond,
            outside,
            pods,
            own,
            surroundings,
            next_port: Cell::new(FIRST_PORT),
            next_tag: Cell::new(wire::TAGS),
        };
        stage.wait_until_ready()?;
        Ok(stage)
    }

    /// A link that has just come up loses packets for some milliseconds.
    fn wait_until_ready(&self) -> Result<(), String> {
        let _one = OneProcessor::take()?;
        let limit = Instant::now() + LIMIT;
        let mut watch = Watch::default();
        while Instant::now() < limit {
            let tags = self.send_passing(&mut watch)?;
            nap()?;
            self.receive(&mut watch)?;
            if tags.iter().all(|tag| !watch.missing.contains(tag)) {
                return Ok(());
            }
        }
        Err("the node's links pass no packets".to_owned())
    }

    fn send_passing(&self, watch: &mut Watch) -> Result<Vec<u32>, String> {
        let mut tags = Vec::new();
        for (source, destination) in PASSING {
            let packet = Packet {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                port: PASSING_PORT.try_into().unwrap(),
                protocol: Protocol::Udp,
            };
            let tag = self.next_tag(watch, true);
            self.send_one(&packet, PASSING_PORT, tag)?;
            tags.push(tag);
        }
        Ok(tags)
    }

    /// The node's namespace.
    pub const fn node(&self) -> &Namespace {
        &self.node
    }

    /// Runs something on the node.
    pub fn in_node<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.node.run(job)
    }

    /// Behind all chains: nothing may leave with a number of ours in its priority, where queueing disciplines read it.
    pub fn watch_priority(&self) -> Result<(), String> {
        let watch = format!(
            "table inet {WATCH} {{\n chain behind {{\n type filter hook postrouting priority 300\n \
             meta priority & 0xc0000000 == 0xc0000000 counter\n }}\n}}\n"
        );
        self.in_node(|| run_program("nft", &["-f", "-"], &watch)).map(drop)
    }

    /// Fails if something did since [`Self::watch_priority`].
    pub fn check_priority(&self) -> Result<(), String> {
        let listing = self.in_node(|| run_program("nft", &["list", "table", "inet", WATCH], ""))?;
        if listing.contains("counter packets 0 ") {
            Ok(())
        } else {
            Err(format!("packets left the node with a priority of ours: {listing}"))
        }
    }

    /// The administrator's tool must be able to print what we made.
    pub fn check_listing(&self) -> Result<(), String> {
        let listing = self.in_node(|| run_program("nft", &["list", "ruleset"], ""))?;
        if listing.contains("table ip steelyard") && listing.contains("table ip6 steelyard") {
            Ok(())
        } else {
            Err(format!("nft lists no tables of ours: {listing}"))
        }
    }

    /// Sends the first packets of the connections of each probe; what was seen of each packet.
    pub fn observe(&self, probes: &[Probe]) -> Result<Vec<Vec<Vec<Seen>>>, String> {
        let _one = OneProcessor::take()?;
        let mut watch = Watch::default();
        let mut sent: Vec<Vec<u32>> = Vec::new();
        for probe in probes {
            let mut tags = Vec::new();
            for _ in 0..probe.connections {
                let tag = self.next_tag(&mut watch, probe.is_visible);
                // No two connections are equal, whatever their flows, until the ports begin anew.
                let port = self.next_port.get();
                self.next_port.set(port.checked_add(1).unwrap_or(FIRST_PORT));
                self.send_one(&probe.packet, port, tag)?;
                tags.push(tag);
            }
            sent.push(tags);
            self.receive(&mut watch)?;
        }
        self.wait(&mut watch)?;
        if let Some(problem) = watch.problems.first() {
            return Err(problem.clone());
        }
        let mut seen = |tag: &u32| watch.seen.remove(tag).unwrap_or_default();
        Ok(sent.iter().map(|tags| tags.iter().map(&mut seen).collect()).collect())
    }

    /// What the node's kernel remembers of connections is forgotten.
    pub fn forget_connections(&self) -> Result<(), String> {
        self.in_node(|| run_program("conntrack", &["--flush"], "")).map(drop)
    }

    fn next_tag(&self, watch: &mut Watch, is_visible: bool) -> u32 {
        // The high byte says that it is ours.
        let tag = wire::TAGS | ((self.next_tag.get() + 1) & !wire::TAG_MASK);
        self.next_tag.set(tag);
        watch.sent.insert(tag);
        if is_visible {
            watch.missing.insert(tag);
        }
        tag
    }

    fn send_one(&self, packet: &Packet, source_port: u16, tag: u32) -> Result<(), String> {
        let bytes = wire::first_packet(packet, source_port, tag);
        let sent = match self.place_of(packet.source) {
            Place::Node => self.own.send(&bytes, packet.destination),
            Place::Pods => self.pods.send(&bytes),
            Place::Outside => self.outside.send(&bytes),
        };
        sent.map_err(|error| format!("failed to send {packet:?}: {error}"))
    }

    fn place_of(&self, address: IpAddr) -> Place {
        if self.surroundings.local.contains(&address) {
            Place::Node
        } else if self.surroundings.pod_prefixes.iter().any(|prefix| prefix.contains(&address)) {
            Place::Pods
        } else {
            Place::Outside
        }
    }

    fn receive(&self, watch: &mut Watch) -> Result<(), String> {
        let mut take = |seen| watch.take(seen);
        self.outside
            .receive(&mut take)
            .and_then(|()| self.pods.receive(&mut take))
            .and_then(|()| self.own.receive(&mut take))
            .map_err(|error| format!("failed to receive: {error}"))
    }

    /// Sends the last packets and waits for them and all others.
    fn wait(&self, watch: &mut Watch) -> Result<(), String> {
        let last = self.send_passing(watch)?;
        let limit = Instant::now() + LIMIT;
        let mut until = limit;
        loop {
            self.receive(watch)?;
            if watch.missing.is_empty() {
                return Ok(());
            }
            let is_last_back = last.iter().all(|tag| !watch.missing.contains(tag));
            if is_last_back && until == limit {
                until = Instant::now() + GRACE;
            }
            if Instant::now() > until {
                let lost = "the packets that should have passed last did not come back";
                return if is_last_back { Ok(()) } else { Err(lost.to_owned()) };
            }
            nap()?;
        }
    }
}

/// The sockets are many; a short nap is simpler than to watch each.
pub fn nap() -> Result<(), String> {
    poll(&mut [], PollTimeout::from(2u8)).map(drop).map_err(|error| error.to_string())
}

/// What was sent and what was seen of it.
#[derive(Default)]
struct Watch {
    sent: BTreeSet<u32>,
    missing: BTreeSet<u32>,
    seen: BTreeMap<u32, Vec<Seen>>,
    problems: Vec<String>,
}

impl Watch {
    /// Other traffic may look like ours.
    fn take(&mut self, sight: Sight) {
        match sight {
            Ok(seen @ (Seen::Packet { tag, .. } | Seen::Error { tag, .. })) if self.sent.contains(&tag) => {
                self.missing.remove(&tag);
                self.seen.entry(tag).or_default().push(seen);
            }
            Err((tag, problem)) if self.sent.contains(&tag) => self.problems.push(problem),
            Ok(_) | Err(_) => {}
        }
    }
}
