//! Who is alive: a state machine without sockets or clocks; `now` is an argument.
//!
//! ```text
//!              heard                      silent for `timeout`
//!   Awaited ─────────▶ Starting/Serving ─────────────────────▶ Dead
//!      │  grace over        ▲   │ goodbye                        │
//!      ▼                    │   ▼                                │
//!   Unheard ────────────────┴─ Left                              │
//!                  heard    └────────────────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::heartbeat::{Heartbeat, Status};
use crate::model::Family;
use crate::names::NodeName;

/// How fast a death is noticed, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats.
    pub interval: Duration,
    /// Silence after which a node is dead.
    pub timeout: Duration,
    /// How long after our own start a node that we have not heard yet still counts as a candidate, so that an agent
    /// that starts does not take over the addresses of all others.
    pub grace: Duration,
    /// How late we may be ourselves before that time no longer counts as others' silence.
    pub stall: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(350),
            grace: Duration::from_secs(1),
            stall: Duration::from_millis(50),
        }
    }
}

/// What is known of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Life {
    /// Not heard yet, but we have only just started ourselves.
    Awaited,
    /// Never heard: no agent runs there, or it has yet to start. Not dead.
    Unheard,
    /// Alive, but not to be given addresses.
    Starting,
    /// Alive and ready to announce.
    Serving,
    /// Its agent said goodbye; the node itself may be well.
    Left,
    /// Was heard, and is silent.
    Dead,
}

/// What is known of all nodes of the cluster, this one included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Every node that the API names, and this one.
    pub nodes: BTreeMap<NodeName, Life>,
    /// Whether the API has named its nodes yet. Until then nobody but this node is known.
    pub is_informed: bool,
}

impl Members {
    /// Whether the node may be elected: it is heard and ready, or might be.
    pub fn is_candidate(&self, node: &NodeName) -> bool {
        matches!(self.nodes.get(node), Some(Life::Serving | Life::Awaited))
    }

    /// Whether the node was heard and fell silent. A node whose agent said goodbye, or never ran, is not dead: its pods
    /// may be well.
    pub fn is_dead(&self, node: &NodeName) -> bool {
        self.nodes.get(node) == Some(&Life::Dead)
    }

    /// The nodes whose agents are heard now.
    pub fn live(&self) -> BTreeSet<NodeName> {
        let is_live = |life: &Life| matches!(life, Life::Starting | Life::Serving);
        self.nodes.iter().filter(|(_, life)| is_live(life)).map(|(node, _)| node.clone()).collect()
    }
}

/// Why a heartbeat is not counted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The API names no such node.
    #[error("from a node that is not in the cluster")]
    UnknownNode,
    /// It did not come from an address of the node that it names.
    #[error("from an address that is not the node's")]
    WrongAddress,
    /// Somebody else uses our name.
    #[error("from somebody of our own name")]
    OurName,
    /// Sent before one that was counted already.
    #[error("older than one that was heard before")]
    Old,
}

#[derive(Debug)]
struct Peer {
    addresses: Vec<IpAddr>,
    /// Epoch and sequence of the newest heartbeat that was counted.
    newest: Option<(u64, u64)>,
    hearing: Hearing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hearing {
    Never,
    Heard { last: Instant, is_serving: bool },
    Silent,
    Goodbye,
}

/// The state machine of one node.
#[derive(Debug)]
pub struct Membership {
    timing: Timing,
    me: NodeName,
    epoch: u64,
    sequence: u64,
    status: Status,
    peers: BTreeMap<NodeName, Peer>,
    is_informed: bool,
    grace_ends: Instant,
    heartbeat_due: Instant,
}

impl Membership {
    /// A node that has just started. `epoch` is greater at each start: the wall clock in milliseconds.
    pub fn new(timing: Timing, me: NodeName, epoch: u64, now: Instant) -> Self {
        Self {
            timing,
            me,
            epoch,
            sequence: 0,
            status: Status::Starting,
            peers: BTreeMap::new(),
            is_informed: false,
            grace_ends: now + timing.grace,
            heartbeat_due: now,
        }
    }

    /// Takes the nodes that the API names; what is known of those that stay is kept.
    pub fn set_nodes(&mut self, nodes: &BTreeMap<NodeName, Vec<IpAddr>>) {
        // A cluster without nodes is one whose list is not in yet.
        self.is_informed |= !nodes.is_empty();
        self.peers.retain(|name, _| nodes.contains_key(name));
        for (name, addresses) in nodes.iter().filter(|(name, _)| **name != self.me) {
            let peer = self.peers.entry(name.clone()).or_insert_with(|| Peer {
                addresses: Vec::new(),
                newest: None,
                hearing: Hearing::Never,
            });
            peer.addresses.clone_from(addresses);
        }
    }

    /// What we say of ourselves from now on; the next heartbeat is due at once if that is new.
    pub fn set_status(&mut self, status: Status, now: Instant) {
        if self.status != status {
            self.status = status;
            self.heartbeat_due = self.heartbeat_due.min(now);
        }
    }

    /// Counts a heartbeat.
    ///
    /// # Errors
    /// When it proves nothing; the state is then as it was.
    pub fn receive(&mut self, heartbeat: &Heartbeat, from: IpAddr, now: Instant) -> Result<(), Refusal> {
        if heartbeat.node == self.me {
            return Err(Refusal::OurName);
        }
        let peer = self.peers.get_mut(&heartbeat.node).ok_or(Refusal::UnknownNode)?;
        if !peer.addresses.contains(&from) {
            return Err(Refusal::WrongAddress);
        }
        if let Some((epoch, sequence)) = peer.newest {
            let is_old = match peer.hearing {
                // While a run is heard only a later one replaces it.
                Hearing::Heard { .. } => (heartbeat.epoch, heartbeat.sequence) <= (epoch, sequence),
                // After it ended any other run is a new one: the node's clock may have stepped back.
                Hearing::Never | Hearing::Silent | Hearing::Goodbye => {
                    heartbeat.epoch == epoch && heartbeat.sequence <= sequence
                }
            };
            if is_old {
                return Err(Refusal::Old);
            }
        }
        peer.newest = Some((heartbeat.epoch, heartbeat.sequence));
        peer.hearing = match heartbeat.status {
            Status::Starting => Hearing::Heard { last: now, is_serving: false },
            Status::Serving => Hearing::Heard { last: now, is_serving: true },
            Status::Leaving => Hearing::Goodbye,
        };
        Ok(())
    }

    /// Takes note of the time, and gives the heartbeat to send if one is due. Datagrams that wait in the socket must have
    /// been given to [`Self::receive`] before: they prove life up to now.
    pub fn tick(&mut self, now: Instant) -> Option<Heartbeat> {
        let late = now.saturating_duration_since(self.next_wake());
        if late > self.timing.stall {
            // We did not run: nothing that we failed to hear meanwhile is anybody's silence.
            tracing::debug!(?late, "this process was stalled, nobody is blamed");
            self.grace_ends += late;
            for peer in self.peers.values_mut() {
                if let Hearing::Heard { last, .. } = &mut peer.hearing {
                    *last = (*last + late).min(now);
                }
            }
        }
        for peer in self.peers.values_mut() {
            if let Hearing::Heard { last, .. } = peer.hearing
                && now.saturating_duration_since(last) >= self.timing.timeout
            {
                peer.hearing = Hearing::Silent;
            }
        }
        if now < self.heartbeat_due {
            return None;
        }
        // From now, not from when it was due: missed heartbeats are not made up for.
        self.heartbeat_due = now + self.timing.interval;
        Some(self.heartbeat())
    }

    /// The goodbye to send when this node's agent ends. It may be said several times.
    pub fn goodbye(&mut self) -> Heartbeat {
        self.status = Status::Leaving;
        self.heartbeat()
    }

    fn heartbeat(&mut self) -> Heartbeat {
        self.sequence += 1;
        Heartbeat { node: self.me.clone(), epoch: self.epoch, sequence: self.sequence, status: self.status }
    }

    /// When to call [`Self::tick`] again, at the latest.
    pub fn next_wake(&self) -> Instant {
        let deaths = self.peers.values().filter_map(|peer| match peer.hearing {
            Hearing::Heard { last, .. } => Some(last + self.timing.timeout),
            Hearing::Never | Hearing::Silent | Hearing::Goodbye => None,
        });
        deaths.fold(self.heartbeat_due, Instant::min)
    }

    /// Where heartbeats go: the primary address of each peer in the family that we speak.
    pub fn targets(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.peers
            .values()
            .filter_map(move |peer| peer.addresses.iter().copied().find(|address| Family::of(*address) == family))
    }

    /// What is known now.
    pub fn members(&self, now: Instant) -> Members {
        let is_grace = now < self.grace_ends;
        let own = match self.status {
            Status::Starting => Life::Starting,
            Status::Serving => Life::Serving,
            Status::Leaving => Life::Left,
        };
        let peers = self.peers.iter().map(|(name, peer)| {
            let life = match peer.hearing {
                Hearing::Never if is_grace => Life::Awaited,
                Hearing::Never => Life::Unheard,
                Hearing::Heard { is_serving: true, .. } => Life::Serving,
                Hearing::Heard { is_serving: false, .. } => Life::Starting,
                Hearing::Silent => Life::Dead,
                Hearing::Goodbye => Life::Left,
            };
            (name.clone(), life)
        });
        Members { nodes: peers.chain([(self.me.clone(), own)]).collect(), is_informed: self.is_informed }
    }
}

#[cfg(test)]
mod tests;
