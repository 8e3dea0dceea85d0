//! Which tracked connections go nowhere useful any more: a pure decision, flow by flow, from a small view of what the
//! cluster wants. [`ledger`] makes the views; the sweeper reads the kernel's flows and deletes those that are stale.
//!
//! * **UDP.** A client that keeps one socket open refreshes its entry for ever: without help it would stay with an endpoint
//!   that is gone, or with none at all from before there was a Service. Traffic policies and hints do not count here: an
//!   established flow may stay with any endpoint that serves.
//! * **TCP.** Only flows to an endpoint that is in no slice any more, and only after a grace period: what the client sends
//!   next is then answered with a reset ([`Options::reset_mid_stream`](super::nft::options::Options)). And those that nobody
//!   translated and nobody answered: their first packet came while the rules were not there (the kernel tracks before the
//!   transaction that brings them is whole), and each repetition of it would follow the first one to nowhere.
//! * **SCTP** is left alone: the kernel takes what follows for invalid, so that nothing could be answered.

pub mod ledger;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use super::desired::FrontendKey;
use super::entry::{Frontend, NodePortAddresses, NodePorts};
use crate::model::{Family, Protocol};

/// What the kernel remembers of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its protocol.
    pub protocol: Protocol,
    /// Where the client sent it.
    pub destination: SocketAddr,
    /// Who answers: the endpoint, or the destination itself where nothing was translated.
    pub reply_source: SocketAddr,
    /// Whether anybody answered yet.
    pub is_answered: bool,
}

impl Flow {
    fn is_translated(&self) -> bool {
        self.destination != self.reply_source
    }
}

/// What becomes of the flows to one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They may stay with any of these endpoints, and go else, also where they never were translated.
    ServedBy(Arc<BTreeSet<SocketAddr>>),
    /// No Service has the frontend any more: those go that were translated for one.
    Gone,
    /// Those go that were translated to an endpoint which left for good, and those that were never translated nor answered.
    Without {
        /// Endpoints that are gone.
        left: BTreeSet<IpAddr>,
        /// If there is a list of all endpoints, whoever is not in it is gone too.
        known: Option<Arc<HashSet<IpAddr>>>,
    },
}

impl Fate {
    /// What holds when a newer word comes before the older one was carried out.
    #[must_use]
    pub fn followed_by(self, newer: Self) -> Self {
        match (self, newer) {
            (Self::Without { left: mut all, known: before }, Self::Without { left, known }) => {
                all.extend(left);
                Self::Without { left: all, known: known.or(before) }
            }
            (_, newer) => newer,
        }
    }

    /// Whether a packet that was on its way when the word came may still make a flow that goes. An endpoint that is gone for
    /// long gets none.
    pub fn may_meet_late_packets(&self) -> bool {
        match self {
            Self::ServedBy(_) | Self::Gone => true,
            Self::Without { left, known } => left.is_empty() && known.is_none(),
        }
    }

    fn condemns(&self, flow: &Flow, is_answered_here: bool) -> bool {
        match self {
            Self::ServedBy(endpoints) => {
                !endpoints.contains(&flow.reply_source) && (is_answered_here || flow.is_translated())
            }
            Self::Gone => flow.is_translated(),
            Self::Without { left, known } => {
                let endpoint = flow.reply_source.ip();
                let is_unknown = known.as_ref().is_some_and(|known| !known.contains(&endpoint));
                if flow.is_translated() {
                    is_unknown || left.contains(&endpoint)
                } else {
                    is_answered_here && !flow.is_answered
                }
            }
        }
    }
}

/// What of this node a decision needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// Every address of its interfaces. NodePorts count at each of them: where they answer is a setting, which may have been
    /// another one when the flow began.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Where NodePorts answer now.
    pub node_ports: NodePorts,
    /// Where cluster IPs come from.
    pub service_cidrs: Vec<IpNet>,
}

impl Here {
    /// Whether NodePorts answer at a local address.
    fn answers_at(&self, address: IpAddr) -> bool {
        match self.node_ports.of(Family::of(address)) {
            NodePortAddresses::These(addresses) => addresses.contains(&address),
            NodePortAddresses::All => !address.is_loopback(),
        }
    }
}

/// All that is needed to judge flows to some frontends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What becomes of the flows to each frontend; those to others stay.
    pub fates: BTreeMap<FrontendKey, Fate>,
    /// This node.
    pub here: Arc<Here>,
    /// Every UDP frontend there is stands above. A flow to an address that cluster IPs come from and that has none of
    /// them was made for a Service that went while nobody looked.
    pub is_whole: bool,
}

impl View {
    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.fates.is_empty() && !self.is_whole
    }

    /// Whether a flow has to be forgotten, so that its next packet is taken to an endpoint anew, or is told that there is
    /// none.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let address = flow.destination.ip();
        let family = Family::of(address);
        let fate = |frontend| self.fates.get(&FrontendKey { family, protocol: flow.protocol, frontend });
        if let Some(fate) = fate(Frontend::Address(flow.destination)) {
            return fate.condemns(flow, true);
        }
        if self.here.local_addresses.contains(&address)
            && let Some(port) = NonZeroU16::new(flow.destination.port())
            && let Some(fate) = fate(Frontend::NodePort(port))
        {
            return fate.condemns(flow, self.here.answers_at(address));
        }
        self.is_whole && flow.protocol == Protocol::Udp && flow.is_translated() && self.is_orphan(address)
    }

    /// Whether an address is one of those that cluster IPs come from, and no UDP port of it is anybody's.
    fn is_orphan(&self, address: IpAddr) -> bool {
        let at = |port| FrontendKey {
            family: Family::of(address),
            protocol: Protocol::Udp,
            frontend: Frontend::Address(SocketAddr::new(address, port)),
        };
        self.here.service_cidrs.iter().any(|range| range.contains(&address))
            && self.fates.range(at(0)..=at(u16::MAX)).next().is_none()
    }
}

#[cfg(test)]
mod tests;
