//! Carries out a plan: the only part of the speaker that touches sockets. `apply/announcement.rs` tells the API.

pub mod announcement;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::l2::interface::{Responder, Settings};
use super::plan::{Change, Stations};
use crate::model::link::InterfaceIndex;
use crate::names::InterfaceName;
use crate::runtime::telemetry::chain;

/// Between two starts on an interface that fails.
const RETRY: Duration = Duration::from_secs(1);

/// Why part of a plan was not carried out.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The interface's sockets.
    #[error("cannot answer on interface {interface}")]
    OpenSockets {
        /// The interface.
        interface: InterfaceName,
        /// What the kernel said.
        source: io::Error,
    },
    /// Soon after its start; the log has the cause.
    #[error("interface {interface} stopped answering")]
    Ended {
        /// The interface.
        interface: InterfaceName,
    },
}

impl ApplyError {
    fn interface(&self) -> &InterfaceName {
        match self {
            Self::OpenSockets { interface, .. } | Self::Ended { interface } => interface,
        }
    }
}

/// The responders of all interfaces. Dropping it silences the node.
///
/// An interface that fails is tried again every second, however often there is something to apply; the others do not
/// wait for it.
#[derive(Debug)]
pub struct Responders {
    settings: Settings,
    running: BTreeMap<InterfaceIndex, Responder>,
    failed: BTreeMap<InterfaceIndex, Failure>,
}

#[derive(Debug)]
struct Failure {
    error: ApplyError,
    retry_at: Instant,
}

impl Responders {
    /// None yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, running: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// What is announced at this moment. Those that ended by themselves are remembered only as failures.
    pub fn actual(&mut self) -> Stations {
        for (index, responder) in self.running.iter().filter(|(_, responder)| responder.is_finished()) {
            let error = ApplyError::Ended { interface: responder.name().clone() };
            // In the past if it had answered for a while: it is started again at once.
            self.failed.insert(*index, Failure { error, retry_at: responder.started() + RETRY });
        }
        self.running.retain(|index, _| !self.failed.contains_key(index));
        let station = |responder: &Responder| (responder.name().clone(), (*responder.station()).clone());
        self.running.iter().map(|(index, responder)| (*index, station(responder))).collect()
    }

    /// Makes the changes, in order: an interface that fails is left out, the others are done.
    pub fn apply(&mut self, changes: Vec<Change>, now: Instant) {
        let mut wanted = BTreeSet::new();
        for change in changes {
            match change {
                Change::Stop(index) => {
                    self.running.remove(&index);
                }
                Change::Set(index, station) => {
                    if let Some(responder) = self.running.get(&index) {
                        responder.set(station);
                    }
                }
                Change::Start(index, interface, station) => {
                    wanted.insert(index);
                    let known = self.failed.get(&index).filter(|failure| *failure.error.interface() == interface);
                    if known.is_some_and(|failure| now < failure.retry_at) {
                        continue;
                    }
                    match Responder::start(index, interface.clone(), station, self.settings.clone()) {
                        Ok(responder) => {
                            self.failed.remove(&index);
                            self.running.insert(index, responder);
                        }
                        Err(source) => self.fail(index, ApplyError::OpenSockets { interface, source }, now + RETRY),
                    }
                }
            }
        }
        // What runs, and what is not wanted any more.
        self.failed.retain(|index, _| wanted.contains(index));
    }

    /// What failed and is still wanted.
    pub fn errors(&self) -> impl Iterator<Item = &ApplyError> {
        self.failed.values().map(|failure| &failure.error)
    }

    /// When to apply again though nothing changed.
    pub fn next_retry(&self) -> Option<Instant> {
        self.failed.values().map(|failure| failure.retry_at).min()
    }

    fn fail(&mut self, index: InterfaceIndex, error: ApplyError, retry_at: Instant) {
        let message = chain(&error);
        if self.failed.get(&index).is_none_or(|known| chain(&known.error) != message) {
            tracing::warn!(error = message, "trying again every second");
        }
        self.failed.insert(index, Failure { error, retry_at });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;
    use crate::model::link::Mac;
    use crate::speaker::l2::responder::Station;
    use crate::speaker::metrics::Metrics;

    /// On an interface that does not exist.
    fn start() -> Vec<Change> {
        let station = Station { mac: Mac::ZERO, addresses: ["192.0.2.1".parse().unwrap()].into() };
        vec![Change::Start(InterfaceIndex::new(i32::MAX.unsigned_abs()), "absent0".into(), station)]
    }

    #[tokio::test(start_paused = true)]
    async fn an_interface_that_fails_is_tried_again_every_second() {
        let settings = Settings { refresh: RETRY, metrics: Metrics::default(), ended: Arc::new(Notify::new()) };
        let mut responders = Responders::new(settings);
        let begin = Instant::now();
        responders.apply(start(), begin);
        assert_eq!(responders.next_retry(), Some(begin + RETRY));
        // Not tried before, and known all the while.
        responders.apply(start(), begin + RETRY / 2);
        assert_eq!((responders.next_retry(), responders.errors().count()), (Some(begin + RETRY), 1));
        responders.apply(start(), begin + RETRY);
        assert_eq!((responders.next_retry(), responders.errors().count()), (Some(begin + 2 * RETRY), 1));
        responders.apply(Vec::new(), begin + RETRY);
        assert_eq!((responders.next_retry(), responders.errors().count()), (None, 0), "no longer wanted");
    }
}
