//! Assigns addresses from pools to Services.
//!
//! ```text
//!   Services ─┐                                                         ┌─▶ AddressClaims (who holds what)
//!   pools ────┼─▶ index ─▶ desired ──────────────▶ plan ─▶ apply ───────┼─▶ Services (status, annotation, finalizer)
//!   claims ───┤            pools: which are in force                    ├─▶ pools (status)
//!   …     ────┘            allocator: who gets which address            └─▶ events
//! ```
//!
//! A claim says who holds an address, and nothing else does. It is created before a Service's status names the address
//! and released after the status has ceased to; so an address has one holder whatever stale state anybody acts on, and
//! the present address of a Service goes only when the next one is its own.

pub mod allocator;
pub mod apply;
pub mod datapath_mode;
pub mod desired;
pub mod index;
pub mod metrics;
pub mod plan;
pub mod pools;
pub mod refusal;
pub mod request;
pub mod seen;
pub mod troubles;
pub mod watch;

use std::time::Duration;

use futures::FutureExt;
use futures::future::FusedFuture;
use jiff::Timestamp;
use kube::Client;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::time::Instant;

use crate::runtime::admin::Readiness;
use crate::runtime::lease::{Election, Leadership, LeaseSettings, LeaseStore};
use crate::runtime::reconcile::{Component, Next, Now, Scope, run};
use crate::runtime::shutdown::{Shutdown, shutdown};
use apply::{Applier, ApplyError};
use desired::{Settings, desired};
use index::Index;
use metrics::Metrics;
use plan::plan;
use watch::Event;

/// How often a standby looks whether it leads, besides being told.
const STANDBY_PERIOD: Duration = Duration::from_secs(1);

/// How many observations may wait while a turn runs.
const QUEUE: usize = 1024;

/// The controller as the loop drives it.
#[derive(Debug)]
pub struct Controller {
    index: Index,
    settings: Settings,
    leadership: Leadership,
    applier: Applier,
    metrics: Metrics,
    readiness: Readiness,
}

/// The part that is ready once every first list is in, on a standby as on the leader.
const FIRST_LISTS: &str = "first lists";

impl Controller {
    /// A controller that has seen nothing yet.
    pub fn new(
        client: Client,
        settings: Settings,
        identity: String,
        leadership: Leadership,
        metrics: Metrics,
        readiness: Readiness,
    ) -> Self {
        readiness.expect(FIRST_LISTS);
        let applier = Applier::new(client, identity, leadership.clone(), metrics.clone());
        Self { index: Index::default(), settings, leadership, applier, metrics, readiness }
    }
}

impl Component for Controller {
    type Event = Event;
    type Error = ApplyError;

    const NAME: &'static str = "controller";

    fn observe(&mut self, event: Event) {
        self.index.observe(event);
    }

    fn is_synced(&self) -> bool {
        self.index.is_synced()
    }

    /// Every turn is over all Services: a pass over 10,000 takes milliseconds, and an address that comes free may go to any.
    async fn turn(&mut self, _scope: Scope, now: Now) -> Result<Next, ApplyError> {
        // The loop gives the first turn when the index is warm.
        self.readiness.set(FIRST_LISTS, true);
        let is_leader = self.leadership.is_current();
        self.metrics.is_leader.set(i64::from(is_leader));
        if !is_leader {
            // A lease that lapsed and came back within a turn is told by no event.
            return Ok(Next::After(STANDBY_PERIOD));
        }
        let desired = desired(&self.index, &self.settings, now.wall);
        let plan = plan(&self.index, &desired, now.wall);
        self.metrics.pass_seconds.set(Instant::now().duration_since(now.monotonic).as_secs_f64());
        self.metrics.observe(&desired);
        let again = self.applier.apply(plan, &mut self.index, now.monotonic).await?;
        let rested = desired.next.map(|until| until_then(now.wall, until));
        Ok(again.into_iter().chain(rested).min().map_or(Next::OnEvent, Next::After))
    }
}

/// The span from one time to another, and a little more so that the other has passed for sure.
fn until_then(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default() + Duration::from_millis(10)
}

/// Why the controller ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A part ended though nobody asked it to.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
    /// A part panicked.
    #[error("the {part} panicked")]
    Panicked {
        /// The part.
        part: &'static str,
        /// What it said.
        source: JoinError,
    },
}

/// Runs the controller until shutdown: watches at once, writes while it leads, gives the lease back at the end. With `mode`
/// it decides the datapath's mode too.
///
/// # Errors
/// When a part ends before shutdown: half a controller would hold the lease and do nothing, or never lead again.
#[expect(clippy::too_many_arguments, reason = "each is a part of its own, named once")]
pub async fn serve<S: LeaseStore + 'static>(
    client: Client,
    settings: Settings,
    mode: Option<datapath_mode::Settings>,
    lease: LeaseSettings,
    store: S,
    metrics: Metrics,
    readiness: Readiness,
    mut shutdown_requested: Shutdown,
) -> Result<(), ServeError> {
    let (events, queue) = mpsc::channel(QUEUE);
    let identity = lease.identity.clone();
    let (election, leadership) = Election::new(store, lease);
    let (work_ended, election_ends) = shutdown();
    let mut elections = tokio::spawn(election.run(election_ends)).fuse();
    let mut watches = tokio::spawn(watch::watch(client.clone(), events.clone()));
    let mut heralds = tokio::spawn(herald(leadership.clone(), events));
    let mode_leadership = leadership.clone();
    let decide =
        mode.map(|mode| datapath_mode::run(client.clone(), mode, identity.clone(), mode_leadership, metrics.clone()));
    let mut arbiter = tokio::spawn(async move {
        match decide {
            Some(decide) => decide.await,
            None => std::future::pending().await,
        }
        "decision of the datapath's mode"
    });
    let mut controller = Controller::new(client, settings, identity, leadership, metrics, readiness);
    let (stop_work, work_stops) = shutdown();
    let supervised = async {
        let outcome = tokio::select! {
            biased;
            () = shutdown_requested.requested() => Ok(()),
            ended = &mut elections => Err(unasked("election", ended.map(|()| "election"))),
            ended = &mut watches => Err(unasked("watches", ended)),
            ended = &mut arbiter => Err(unasked("decision of the datapath's mode", ended)),
            ended = &mut heralds => Err(unasked("herald of the leadership", ended.map(|()| "herald of the leadership"))),
        };
        stop_work.request();
        outcome
    };
    // The turn under way is brought to its end in either case, and the lease given back after it.
    let ((), outcome) = tokio::join!(run(&mut controller, queue, work_stops), supervised);
    watches.abort();
    heralds.abort();
    arbiter.abort();
    work_ended.request();
    if !elections.is_terminated()
        && let Err(source) = elections.await
    {
        return outcome.and(Err(ServeError::Panicked { part: "election", source }));
    }
    outcome
}

fn unasked(part: &'static str, ended: Result<&'static str, JoinError>) -> ServeError {
    match ended {
        Ok(name) => ServeError::Ended(name),
        Err(source) => ServeError::Panicked { part, source },
    }
}

/// Wakes the loop when this replica begins or ceases to lead.
async fn herald(mut leadership: Leadership, events: mpsc::Sender<Event>) {
    let mut was_leader = false;
    loop {
        let is_leader = leadership.is_current();
        if is_leader != was_leader && events.send(Event::Leadership).await.is_err() {
            return;
        }
        was_leader = is_leader;
        if !leadership.changed().await {
            // The election is over, which its own task tells.
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests;
