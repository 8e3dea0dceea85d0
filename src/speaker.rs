//! Announces addresses on the local network.
//!
//! ```text
//!  API, links, membership, datapath
//!        │ watch.rs
//!        ▼
//!     index.rs ─▶ desired.rs ──────────▶ plan.rs ─▶ apply.rs ─▶ l2/ (one task per interface)
//!                  ├ election.rs                       └──────▶ apply/announcement.rs (the node's report)
//!                  ├ interfaces.rs
//!                  └ silence.rs
//! ```

pub mod apply;
pub mod desired;
pub mod election;
pub mod index;
pub mod interfaces;
pub mod l2;
pub mod metrics;
pub mod plan;
pub mod silence;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use tokio::sync::{Notify, watch as channel};

use self::apply::Responders;
use self::apply::announcement::{announcements, problems};
use self::desired::{Decision, Verdict};
use self::index::{Index, Observation};
use self::l2::interface::Settings;
use self::metrics::Metrics;
use self::plan::Stations;
use self::watch::{Inbox, Sources};
use crate::api::node_announcement::Announcement;
use crate::membership::Membership;
use crate::model::link::Links;
use crate::model::programmed::Programmed;
use crate::names::NodeName;
use crate::runtime::admin::Readiness;
use crate::runtime::node_report::{NodeReports, Reporter};
use crate::runtime::reconcile::{self, Component, Next, Now, Scope};
use crate::runtime::shutdown::{Shutdown, shutdown as stop};

/// How this node announces.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node: NodeName,
    /// Between two unasked announcements of an address once it has settled; 60 s by default.
    pub refresh: Duration,
}

impl Config {
    /// The defaults for a node.
    pub fn new(node: NodeName) -> Self {
        Self { node, refresh: l2::gratuitous::DEFAULT_REFRESH }
    }
}

/// What the speaker needs to know and to tell.
#[derive(Debug)]
pub struct Surroundings {
    /// What the watches that it shares have seen.
    pub inbox: Inbox,
    /// This node's interfaces.
    pub links: channel::Receiver<Arc<Links>>,
    /// Who is alive.
    pub membership: Membership,
    /// What this node's kernel forwards.
    pub programmed: channel::Receiver<Arc<Programmed>>,
    /// Where the speaker says that it does its work.
    pub readiness: Readiness,
    /// Where it says what it announces and cannot.
    pub reports: NodeReports,
}

/// The part that is ready once the speaker has announced all that it is to.
const FIRST_TURN: &str = "speaker";

/// Announces until shutdown, or until something that it rests on ends unasked. When it returns, nothing is answered any
/// more, and the node's report says so. That the speaker is not ready yet is said before the first poll.
pub fn run(
    config: Config,
    client: Client,
    surroundings: Surroundings,
    metrics: Metrics,
    shutdown: Shutdown,
) -> impl Future<Output = ()> + Send {
    surroundings.readiness.expect(FIRST_TURN);
    announce(config, client, surroundings, metrics, shutdown)
}

async fn announce(
    config: Config,
    client: Client,
    surroundings: Surroundings,
    metrics: Metrics,
    mut shutdown: Shutdown,
) {
    let Surroundings { inbox, links, membership, programmed, readiness, reports } = surroundings;
    let Inbox { sender, observations } = inbox;
    let ended = Arc::new(Notify::new());
    let mut sources = watch::start(&client, links, &membership, programmed, Arc::clone(&ended), &sender);
    // The sources hold clones: the loop ends when they do.
    drop(sender);
    let (end, ends) = stop();
    let settings = Settings { refresh: config.refresh, metrics: metrics.clone(), ended };
    let mut speaker = Speaker {
        node: config.node,
        index: Index::default(),
        is_changed: false,
        timed_turn: None,
        decisions: BTreeMap::new(),
        responders: Responders::new(settings),
        membership,
        metrics,
        announcements: Vec::new(),
        reporter: reports.reporter("speaker", "announcements"),
        reports: reports.clone(),
        readiness,
    };
    let supervised = async {
        let unasked = first_end(&mut sources, &mut shutdown).await;
        end.request();
        unasked
    };
    let ((), unasked) = tokio::join!(reconcile::run(&mut speaker, observations, ends), supervised);
    drop(speaker);
    reports.set_announcements(Vec::new());
    if let Some(part) = unasked {
        tracing::error!(part, "a part of the speaker ended unexpectedly, nothing is announced any more");
    }
}

/// The name of whatever ended though nobody asked it to; nothing once shutdown is requested.
async fn first_end(sources: &mut Sources, shutdown: &mut Shutdown) -> Option<&'static str> {
    let name = tokio::select! {
        biased;
        () = shutdown.requested() => return None,
        Some(name) = sources.join_next() => name.unwrap_or("source"),
    };
    // What the sources follow ends at shutdown too, and may have been seen first.
    (!shutdown.is_requested()).then_some(name)
}

struct Speaker {
    node: NodeName,
    index: Index,
    is_changed: bool,
    /// When a decision changes by time alone.
    timed_turn: Option<Timestamp>,
    /// Those of the last turn.
    decisions: BTreeMap<IpAddr, Decision>,
    responders: Responders,
    membership: Membership,
    metrics: Metrics,
    /// What was announced after the last turn, and since when.
    announcements: Vec<Announcement>,
    reporter: Reporter,
    reports: NodeReports,
    readiness: Readiness,
}

impl Component for Speaker {
    type Event = Observation;
    /// An interface that fails must not hold up the others: it is reported and tried again.
    type Error = Infallible;

    const NAME: &'static str = "speaker";

    fn observe(&mut self, event: Observation) {
        self.is_changed |= self.index.observe(event);
    }

    fn is_synced(&self) -> bool {
        self.index.is_complete()
    }

    async fn turn(&mut self, scope: Scope, now: Now) -> Result<Next, Infallible> {
        // Events that told nothing new, such as a node's new heartbeat in the API, cost no election. A turn that was asked
        // for by time is one, too.
        let is_timed = self.timed_turn.is_some_and(|at| at <= now.wall);
        if scope == Scope::Changed && !self.is_changed && !is_timed {
            return Ok(self.next(now.wall));
        }
        let decisions = desired::desired(&self.index, &self.node, now.wall);
        let before = self.responders.actual();
        self.responders.apply(plan::plan(&plan::stations(&decisions), &before), now.monotonic);
        let retry = self.responders.next_retry().map(|at| now.wall + at.saturating_duration_since(now.monotonic));
        self.timed_turn = desired::next_change(&self.index, now.wall).into_iter().chain(retry).min();
        let actual = self.responders.actual();
        log_difference(&before, &actual, &decisions);
        log_silence(&self.decisions, &decisions);
        self.announcements = announcements(&actual, &self.announcements, now.wall);
        self.reports.set_announcements(self.announcements.clone());
        self.reporter.report(problems(&decisions, self.responders.errors()));
        self.metrics.set_announced(addresses(&actual).len());
        self.decisions = decisions;
        // Only now: whoever is told that this node is ready lets go of what it is elected for.
        self.membership.set_serving(self.index.programmed().is_settled());
        self.is_changed = false;
        self.readiness.set(FIRST_TURN, true);
        Ok(self.next(now.wall))
    }
}

impl Speaker {
    fn next(&self, now: Timestamp) -> Next {
        match self.timed_turn {
            // A span that is past is none.
            Some(at) => Next::After(Duration::try_from(at.duration_since(now)).unwrap_or_default()),
            None => Next::OnEvent,
        }
    }
}

fn addresses(stations: &Stations) -> BTreeSet<IpAddr> {
    stations.values().flat_map(|(_, station)| station.addresses.iter().copied()).collect()
}

/// Why this node is silent about an address, whenever that changes.
fn log_silence(before: &BTreeMap<IpAddr, Decision>, after: &BTreeMap<IpAddr, Decision>) {
    for (address, decision) in after {
        if let Verdict::Silent(reason) = &decision.verdict
            && before.get(address).map(|known| &known.verdict) != Some(&decision.verdict)
        {
            tracing::debug!(%address, %reason, "address is not announced here");
        }
    }
}

fn log_difference(before: &Stations, after: &Stations, decisions: &BTreeMap<IpAddr, Decision>) {
    let (before, after) = (addresses(before), addresses(after));
    let announced: Vec<&IpAddr> = after.difference(&before).collect();
    if !announced.is_empty() {
        tracing::info!(?announced, "addresses are announced");
    }
    for address in before.difference(&after) {
        match decisions.get(address).map(|decision| &decision.verdict) {
            Some(Verdict::Silent(reason)) => tracing::info!(%address, %reason, "address is no longer announced"),
            Some(Verdict::Announce(_)) | None => tracing::info!(%address, "address is no longer announced"),
        }
    }
}

#[cfg(test)]
mod tests;
