//! Which NodePorts are forwarded on localhost, and which endpoint a connection goes to: pure, with time and luck as
//! arguments.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::datapath::entry::{EntryKey, ForwardingEntry, Frontend, Target, Treatment};
use crate::model::service::TrafficPolicy;
use crate::model::{Family, Protocol};

/// The most endpoints that are tried for one connection, so that its client hears in time that none answers.
const MOST_TRIES: usize = 3;

/// The loopback addresses on which NodePorts answer.
pub type Loopbacks = BTreeSet<IpAddr>;

/// One NodePort on localhost, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where it listens.
    pub at: SocketAddr,
    /// Where connections go; never empty.
    pub endpoints: Vec<SocketAddr>,
    /// How long all clients together keep an endpoint after their last new connection.
    pub affinity: Option<Duration>,
}

/// What is forwarded for a Service port. Without an endpoint under its policy nothing: a client is refused, not left to wait.
pub fn forward_of(key: &EntryKey, entry: &ForwardingEntry, loopbacks: &Loopbacks) -> Option<Forward> {
    let host = loopbacks.iter().copied().find(|address| Family::of(*address) == key.family)?;
    if key.port.protocol != Protocol::Tcp {
        return None;
    }
    let (port, target) = entry.frontends.iter().find_map(|(frontend, treatment)| match (frontend, treatment) {
        (Frontend::NodePort(port), Treatment::External { policy: TrafficPolicy::Cluster, .. }) => {
            Some((*port, &entry.cluster))
        }
        (Frontend::NodePort(port), Treatment::External { policy: TrafficPolicy::Local, .. }) => {
            Some((*port, &entry.local))
        }
        (Frontend::NodePort(_), Treatment::Internal(_)) | (Frontend::Address(_), _) => None,
    })?;
    match target {
        Target::Endpoints(endpoints) => Some(Forward {
            at: SocketAddr::new(host, port.get()),
            endpoints: endpoints.iter().copied().collect(),
            affinity: entry.affinity,
        }),
        Target::Drop | Target::Reject => None,
    }
}

/// Chooses endpoints for the connections of one NodePort: each in its turn, or always the same as long as clients keep
/// coming. All clients on localhost are one client.
#[derive(Debug)]
pub struct Choice {
    forward: Forward,
    turn: usize,
    pin: Option<(SocketAddr, Instant)>,
}

impl Choice {
    /// Begins with any endpoint, as `luck` would have it.
    pub fn new(forward: Forward, luck: u64) -> Self {
        let turn = usize::try_from(luck % u64::try_from(forward.endpoints.len().max(1)).unwrap_or(1)).unwrap_or(0);
        Self { forward, turn, pin: None }
    }

    /// Takes other endpoints; a pin to one that is not among them is void.
    pub fn replace(&mut self, forward: Forward) {
        self.pin = self.pin.filter(|(endpoint, _)| forward.affinity.is_some() && forward.endpoints.contains(endpoint));
        self.forward = forward;
    }

    /// The endpoints to try for a new connection, in order.
    pub fn candidates(&mut self, now: Instant) -> Vec<SocketAddr> {
        let endpoints = &self.forward.endpoints;
        let first = self.turn % endpoints.len().max(1);
        self.turn = first.wrapping_add(1);
        let pinned = match (self.forward.affinity, self.pin) {
            (Some(timeout), Some((endpoint, since))) if now.duration_since(since) < timeout => Some(endpoint),
            (Some(_) | None, Some(_) | None) => None,
        };
        let in_turn = endpoints.iter().cycle().skip(first).take(endpoints.len()).copied();
        let others = in_turn.filter(|endpoint| Some(*endpoint) != pinned);
        pinned.into_iter().chain(others).take(MOST_TRIES).collect()
    }

    /// An endpoint took a connection: with affinity it gets the next ones too.
    pub fn keep(&mut self, endpoint: SocketAddr, now: Instant) {
        if self.forward.affinity.is_some() && self.forward.endpoints.contains(&endpoint) {
            self.pin = Some((endpoint, now));
        }
    }
}

#[cfg(test)]
mod tests;
