//! What the servers of this node in user space are told after each turn: health checks of Services, and NodePorts on
//! localhost. They hear of a change once the kernel has it, and only of what changed.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

use super::desired::{Desired, Update};
use super::entry::{EntryKey, NodePorts};
use super::health_check::checks::{Check, check_of};
use super::health_check::ports;
use super::health_check::proxy::Health;
use super::index::{Changes, Index};
use super::localhost::forwards::{Forward, Loopbacks, forward_of};
use crate::model::node::Node;
use crate::model::problem::Problem;
use crate::names::ServiceKey;
use crate::runtime::mailbox::{Inbox, Outbox, mailbox};
use crate::runtime::node_report::Reporter;

/// Where the datapath tells the servers what they should do.
#[derive(Debug)]
pub struct Servers {
    health: Health,
    checks: Told<ServiceKey, Check>,
    node_ports: watch::Sender<NodePorts>,
    loopbacks: Loopbacks,
    forwards: Told<EntryKey, Forward>,
}

/// What the servers need to run.
#[derive(Debug)]
pub struct Inputs {
    /// For the health checks of Services.
    pub checks: ports::Inputs,
    /// For NodePorts on localhost.
    pub forwards: Inbox<EntryKey, Forward>,
}

/// A feed of one kind, what went into it, and what has to be looked at again.
#[derive(Debug)]
struct Told<K, V> {
    outbox: Outbox<K, V>,
    known: BTreeMap<K, V>,
    touched: BTreeSet<K>,
}

impl<K: Clone + Ord, V: Clone + PartialEq> Told<K, V> {
    fn new() -> (Self, Inbox<K, V>) {
        let (outbox, inbox) = mailbox();
        (Self { outbox, known: BTreeMap::new(), touched: BTreeSet::new() }, inbox)
    }

    /// Sends what differs from what was sent before.
    fn send(&mut self, value_of: impl Fn(&K) -> Option<V>) {
        let mut letters = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let value = value_of(&key);
            if self.known.get(&key) == value.as_ref() {
                continue;
            }
            match &value {
                Some(value) => drop(self.known.insert(key.clone(), value.clone())),
                None => drop(self.known.remove(&key)),
            }
            letters.push((key, value));
        }
        self.outbox.send(letters);
    }
}

impl Servers {
    /// Servers that know nothing yet; `loopbacks` is where NodePorts answer on localhost, if anywhere.
    pub fn new(loopbacks: Loopbacks) -> (Self, Inputs) {
        let health = Health::default();
        let (checks, checks_inbox) = Told::new();
        let (forwards, forwards_inbox) = Told::new();
        let (node_ports, node_ports_seen) = watch::channel(NodePorts::default());
        let checks_inputs = ports::Inputs { checks: checks_inbox, node_ports: node_ports_seen, health: health.clone() };
        let servers = Self { health, checks, node_ports, loopbacks, forwards };
        (servers, Inputs { checks: checks_inputs, forwards: forwards_inbox })
    }

    /// The datapath's own health.
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// Remembers what a turn changes, until a turn ends well.
    pub fn touch(&mut self, changes: &Changes, update: &Update) {
        self.checks.touched.extend(changes.services.iter().cloned());
        if !self.loopbacks.is_empty() {
            self.forwards.touched.extend(update.entries.iter().cloned());
        }
    }

    /// Tells the servers what is in the kernel now.
    pub fn publish(&mut self, index: &Index, desired: &Desired, node: &Node) {
        self.node_ports.send_if_modified(|known| {
            let is_new = known != &desired.node().node_ports;
            if is_new {
                known.clone_from(&desired.node().node_ports);
            }
            is_new
        });
        self.checks.send(|key| check_of(index.service(key)?, index.slices_of(key), &node.name));
        let loopbacks = &self.loopbacks;
        self.forwards.send(|key| forward_of(key, desired.entries().get(key)?, loopbacks));
        self.health.update();
    }
}

/// What a server has to say of those whom it cannot serve: to the log when it is new, to the Service as long as it holds.
#[derive(Debug)]
pub struct Complaints {
    reporter: Reporter,
    reason: &'static str,
    told: BTreeSet<Problem>,
}

impl Complaints {
    /// Has nothing to say yet; what it says will have this CamelCase reason.
    pub const fn new(reporter: Reporter, reason: &'static str) -> Self {
        Self { reporter, reason, told: BTreeSet::new() }
    }

    /// Puts these in place of what was said before.
    pub fn tell(&mut self, failures: impl Iterator<Item = (Option<ServiceKey>, String)>) {
        let problem = |(service, message)| Problem { service, reason: self.reason, message };
        let now: BTreeSet<Problem> = failures.map(problem).collect();
        if now == self.told {
            return;
        }
        for Problem { service, message, .. } in now.difference(&self.told) {
            let service = service.as_ref().map(tracing::field::display);
            tracing::warn!(service, problem = message, "a port cannot be served, trying again");
        }
        for Problem { service, message, .. } in self.told.difference(&now) {
            let service = service.as_ref().map(tracing::field::display);
            tracing::info!(service, problem = message, "a port that could not be served is no problem any more");
        }
        self.reporter.report(now.clone());
        self.told = now;
    }
}
