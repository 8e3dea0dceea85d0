//! What happens to a packet: follows the first packet of a new connection through the desired state and names every
//! rule that it met. Serves `steelyard trace` and the tests that hold the kernel to the same answer.

mod memory;
mod nearby;
mod step;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use super::desired::{Desired, FrontendKey};
use super::entry::{EntryKey, ForwardingEntry, Frontend, NodeForwarding, NodePortAddresses, Target, Treatment};
use crate::model::flat::FlatSet;
use crate::model::service::TrafficPolicy;
use crate::model::{Family, Protocol};

pub use self::memory::Memory;
pub use self::nearby::{Near, nearby, not_proxied};
pub use self::step::{Kept, Masquerade, Step};

/// The first packet of a new connection as it enters this node, or leaves it where the node itself sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes to.
    pub destination: IpAddr,
    /// The port that it goes to.
    pub port: NonZeroU16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to one of these, each as likely as another.
    Dnat {
        /// Where it may go; never empty.
        endpoints: BTreeSet<SocketAddr>,
        /// Whether its source becomes this node's address, whichever endpoint it goes to.
        masquerade: bool,
        /// Endpoints for which it does so in any case: those that have the packet's own source address.
        masquerade_when: BTreeSet<SocketAddr>,
    },
    /// It is gone without a word.
    Drop,
    /// It is gone and its sender is told.
    Reject,
    /// The datapath leaves it alone.
    Passthrough,
}

/// What becomes of a packet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The outcome.
    pub verdict: Verdict,
    /// Every rule that applied, in order.
    pub steps: Vec<Step>,
}

/// What the answer depends on beside the packet.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// What should be true on the node.
    pub desired: &'a Desired,
    /// The addresses of the machine's interfaces: packets from them are its own.
    pub local_addresses: &'a BTreeSet<IpAddr>,
    /// Addresses that the node served until a moment ago; only its kernel knows how long that is.
    pub released: &'a BTreeSet<IpAddr>,
    /// Which clients have been here before, where that is known.
    pub memory: Option<&'a Memory>,
}

impl<'a> Place<'a> {
    /// A node whose clients are all new, and that released nothing.
    pub const fn new(desired: &'a Desired, local_addresses: &'a BTreeSet<IpAddr>) -> Self {
        const NOTHING: &BTreeSet<IpAddr> = &BTreeSet::new();
        Self { desired, local_addresses, released: NOTHING, memory: None }
    }
}

/// Follows a packet.
pub fn simulate(place: Place<'_>, packet: Packet) -> Trace {
    let Place { desired, local_addresses, released, memory } = place;
    let mut run = Run { desired, node: desired.node(), local_addresses, released, memory, packet, steps: Vec::new() };
    let verdict = run.follow();
    Trace { verdict, steps: run.steps }
}

struct Run<'a> {
    desired: &'a Desired,
    node: &'a NodeForwarding,
    local_addresses: &'a BTreeSet<IpAddr>,
    released: &'a BTreeSet<IpAddr>,
    memory: Option<&'a Memory>,
    packet: Packet,
    steps: Vec<Step>,
}

impl<'a> Run<'a> {
    fn follow(&mut self) -> Verdict {
        match self.find() {
            Some((key, frontend, treatment, entry)) => {
                self.steps.push(Step::Frontend { frontend, entry: key.clone(), treatment });
                self.forward(key, entry, treatment)
            }
            None => self.refuse_or_pass(),
        }
    }

    /// An address wins over a NodePort, as where a load-balancer address is the node's own.
    fn find(&mut self) -> Option<(&'a EntryKey, Frontend, Treatment, &'a ForwardingEntry)> {
        let Packet { destination, port, .. } = self.packet;
        if let Some(found) = self.entry_at(Frontend::Address(SocketAddr::new(destination, port.get()))) {
            return Some(found);
        }
        let found = self.entry_at(Frontend::NodePort(port))?;
        if self.answers_node_ports(destination) {
            return Some(found);
        }
        if self.local_addresses.contains(&destination) {
            self.steps.push(Step::NodePortElsewhere { port, entry: found.0.clone() });
        }
        None
    }

    fn entry_at(&self, frontend: Frontend) -> Option<(&'a EntryKey, Frontend, Treatment, &'a ForwardingEntry)> {
        let Packet { destination, protocol, .. } = self.packet;
        let owner = self.desired.owner(&FrontendKey { family: Family::of(destination), protocol, frontend })?;
        let (key, entry) = self.desired.entries().get_key_value(owner)?;
        Some((key, frontend, *entry.frontends.get(&frontend)?, entry))
    }

    fn answers_node_ports(&self, address: IpAddr) -> bool {
        match self.node.node_ports.of(Family::of(address)) {
            NodePortAddresses::These(addresses) => addresses.contains(&address),
            NodePortAddresses::All => self.local_addresses.contains(&address) && !address.is_loopback(),
        }
    }

    /// For addresses and ports that no Service has.
    fn refuse_or_pass(&mut self) -> Verdict {
        let Packet { destination, port, protocol, .. } = self.packet;
        if self.node.cluster_ips.contains(&destination) {
            self.steps.push(Step::UnlistedPort { address: destination, port, protocol });
            return Verdict::Reject;
        }
        if let Some(range) = self.node.service_cidrs.iter().find(|range| range.contains(&destination)) {
            self.steps.push(Step::NoSuchClusterIp { address: destination, range: *range });
            return Verdict::Drop;
        }
        // Who has such an address on an interface answers for it himself.
        if !self.local_addresses.contains(&destination) {
            if self.node.serves(destination) {
                self.steps.push(Step::UnlistedPort { address: destination, port, protocol });
                return Verdict::Reject;
            }
            if self.released.contains(&destination) && !self.node.is_held(destination) {
                self.steps.push(Step::JustReleased { address: destination });
                return Verdict::Drop;
            }
        }
        self.steps.push(Step::NotOurs);
        Verdict::Passthrough
    }

    fn forward(&mut self, key: &EntryKey, entry: &ForwardingEntry, treatment: Treatment) -> Verdict {
        let (policy, masquerade) = match treatment {
            Treatment::Internal(policy) => (policy, self.masquerade_inside()),
            Treatment::External { is_filtered: true, .. } if !self.is_admitted(entry) => return Verdict::Drop,
            Treatment::External { policy: TrafficPolicy::Cluster, .. } => {
                (TrafficPolicy::Cluster, Some(Masquerade::External))
            }
            Treatment::External { policy: TrafficPolicy::Local, .. } => self.short_circuit(),
        };
        let target = match policy {
            TrafficPolicy::Cluster => &entry.cluster,
            TrafficPolicy::Local => &entry.local,
        };
        match target {
            Target::Endpoints(endpoints) => self.choose((key, entry), (treatment, policy), endpoints, masquerade),
            Target::Drop => {
                self.steps.push(Step::NoneHere { policy });
                Verdict::Drop
            }
            Target::Reject => {
                self.steps.push(Step::NoneAnywhere);
                Verdict::Reject
            }
        }
    }

    /// The filter of source ranges, which stands before everything else: who is not admitted never learns whether there
    /// are endpoints.
    fn is_admitted(&mut self, entry: &ForwardingEntry) -> bool {
        let source = self.packet.source;
        match entry.source_ranges.iter().find(|range| range.contains(&source)) {
            Some(range) => {
                self.steps.push(Step::Admitted { source, range: *range });
                true
            }
            None => {
                self.steps.push(Step::NotAdmitted { source });
                false
            }
        }
    }

    /// A policy `Local` from outside does not bind those inside: pods of this node and the node itself reach all
    /// endpoints.
    fn short_circuit(&mut self) -> (TrafficPolicy, Option<Masquerade>) {
        let source = self.packet.source;
        if let Some(Some(range)) = self.pod_range() {
            self.steps.push(Step::PodShortCircuit { source, range });
            return (TrafficPolicy::Cluster, None);
        }
        if self.local_addresses.contains(&source) {
            self.steps.push(Step::NodeShortCircuit { source });
            return (TrafficPolicy::Cluster, Some(Masquerade::Node));
        }
        (TrafficPolicy::Local, None)
    }

    fn masquerade_inside(&self) -> Option<Masquerade> {
        if self.node.masquerade_all {
            return Some(Masquerade::All);
        }
        match self.pod_range() {
            Some(None) => Some(Masquerade::NotAPod),
            Some(Some(_)) | None => None,
        }
    }

    /// Whether the source is a pod, and by which prefix; `None` where the datapath cannot tell in this family.
    fn pod_range(&self) -> Option<Option<ipnet::IpNet>> {
        let family = Family::of(self.packet.destination);
        let mut ranges = self.node.pod_cidrs.iter().filter(|range| Family::of(range.addr()) == family).peekable();
        ranges.peek()?;
        Some(ranges.find(|range| range.contains(&self.packet.source)).copied())
    }

    fn why_kept(&self, treatment: Treatment) -> Kept {
        match (self.pod_range(), treatment) {
            (Some(Some(range)), _) => Kept::Pod { range },
            (Some(None) | None, Treatment::External { .. }) => Kept::PolicyLocal,
            (Some(None) | None, Treatment::Internal(_)) => Kept::CannotTell,
        }
    }

    fn remembered(&mut self, key: &EntryKey, entry: &ForwardingEntry, policy: TrafficPolicy) -> Option<SocketAddr> {
        let source = self.packet.source;
        self.steps.push(Step::Affinity { source, timeout: entry.affinity? });
        self.memory?.endpoint_of(key, policy, source)
    }

    fn choose(
        &mut self,
        (key, entry): (&EntryKey, &ForwardingEntry),
        (treatment, policy): (Treatment, TrafficPolicy),
        endpoints: &FlatSet<SocketAddr>,
        masquerade: Option<Masquerade>,
    ) -> Verdict {
        let source = self.packet.source;
        let endpoints = match self.remembered(key, entry, policy).filter(|endpoint| endpoints.contains(endpoint)) {
            Some(endpoint) => {
                self.steps.push(Step::Remembered { source, endpoint });
                BTreeSet::from([endpoint])
            }
            None => {
                self.steps.push(Step::Endpoints { policy, count: endpoints.len() });
                endpoints.iter().copied().collect()
            }
        };
        self.steps.push(match masquerade {
            Some(reason) => Step::Masquerade { reason },
            None => Step::SourceKept { reason: self.why_kept(treatment) },
        });
        let is_hairpin = |endpoint: &&SocketAddr| endpoint.ip() == source && entry.local_addresses.contains(&source);
        let hairpins: BTreeSet<SocketAddr> = endpoints.iter().filter(is_hairpin).copied().collect();
        for endpoint in hairpins.iter().filter(|_| masquerade.is_none()) {
            self.steps.push(Step::Hairpin { endpoint: *endpoint });
        }
        Verdict::Dnat { endpoints, masquerade: masquerade.is_some(), masquerade_when: hairpins }
    }
}

#[cfg(test)]
mod tests;
