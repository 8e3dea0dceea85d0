//! The datapath as the loop sees it: observe, decide, program; then tell the speaker what this node's kernel forwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;

use super::apply::{ApplyError, Programmer, Quarantine, Report};
use super::conntrack::ledger::{Ledger, Turn};
use super::desired::{Conflict, Desired};
use super::entry::EntryKey;
use super::index::Index;
use super::metrics::Metrics;
use super::metrics::kube_proxy::KubeProxyMetrics;
use super::nft::options::Options;
use super::plan;
use super::problems::problems;
use super::progress::Progress;
use super::repairs::{Due, Repairs, Retry};
use super::servers::Servers;
use super::settings::Settings;
use super::sweeper::Sweeper;
use super::unusable::Unusable;
use super::watch::Event;
use crate::model::node::Node;
use crate::model::programmed::Programmed;
use crate::model::service_cidr::ServiceCidr;
use crate::names::NodeName;
use crate::netlink::nf_tables::{Foreign, Listener};
use crate::runtime::heap;
use crate::runtime::node_report::{NodeReports, Reporter};
use crate::runtime::reconcile::{Component, Next, Now, Scope};
use crate::runtime::watch::Event as Seen;

/// Forwards Service traffic on this node.
#[derive(Debug)]
pub struct Datapath {
    node: NodeName,
    settings: Settings,
    index: Index,
    service_cidrs: BTreeMap<Box<str>, Vec<IpNet>>,
    lists: Lists,
    desired: Desired,
    programmer: Programmer,
    ledger: Ledger,
    sweeper: Option<Sweeper>,
    outputs: Outputs,
    conflicts: BTreeSet<Conflict>,
    /// [`Desired::disputes`] when the conflicts were last looked at.
    disputes: Option<u64>,
    quarantined: BTreeMap<EntryKey, Quarantine>,
    unusable: Unusable,
    retry: Retry,
    repairs: Repairs,
    /// Who touched our tables since the last repair, as far as known.
    intruder: Option<Foreign>,
    /// When it was made; nothing once the kernel has had everything.
    loading_since: Option<Instant>,
    metrics: Metrics,
}

/// What others in this process learn from the datapath, each by a channel of its own.
#[derive(Debug)]
pub struct Outputs {
    /// Which addresses this node's kernel forwards: the speaker answers for no other.
    pub programmed: watch::Sender<Arc<Programmed>>,
    /// Who goes without something, and why.
    pub problems: Reporter,
    /// Health, servers in user space and kube-proxy's metrics.
    pub progress: Progress,
}

impl Outputs {
    /// For a datapath without an agent around it, as tests and benches run it: nobody but them hears of it.
    pub fn alone(programmed: watch::Sender<Arc<Programmed>>) -> Self {
        let metrics = KubeProxyMetrics::register(&mut Registry::default());
        Self {
            programmed,
            progress: Progress::new(Servers::new(BTreeSet::new()).0, metrics),
            problems: NodeReports::default().reporter("datapath", "programming"),
        }
    }
}

/// Which first lists are in.
#[derive(Debug, Default)]
struct Lists {
    services: bool,
    slices: bool,
    service_cidrs: bool,
    local_addresses: bool,
}

impl Datapath {
    /// A datapath that has seen nothing and programs nothing until it has.
    ///
    /// # Errors
    /// When there is no way to nf_tables.
    pub fn new(node: NodeName, settings: Settings, outputs: Outputs, metrics: Metrics) -> Result<Self, ApplyError> {
        let options =
            Options { reset_mid_stream: settings.reset_gone_endpoints.is_some(), drop_invalid: settings.drop_invalid };
        Ok(Self {
            node,
            ledger: Ledger::new(settings.reset_gone_endpoints),
            sweeper: None,
            settings,
            index: Index::default(),
            service_cidrs: BTreeMap::new(),
            lists: Lists::default(),
            desired: Desired::default(),
            programmer: Programmer::counting(metrics.forgotten())?.with_options(options),
            outputs,
            conflicts: BTreeSet::new(),
            disputes: None,
            quarantined: BTreeMap::new(),
            unusable: Unusable::default(),
            retry: Retry::default(),
            repairs: Repairs::default(),
            intruder: None,
            loading_since: Some(Instant::now()),
            metrics,
        })
    }

    /// Has stale connections deleted after each turn.
    #[must_use]
    pub fn with_sweeper(mut self, sweeper: Sweeper) -> Self {
        self.sweeper = Some(sweeper);
        self
    }

    /// Tells the sweeper what this turn means for connections.
    fn sweep(&mut self, turn: Turn, now: Now) -> Next {
        let Some(sweeper) = &self.sweeper else { return Next::OnEvent };
        sweeper.hand_over(self.ledger.turn(turn, &self.index, &self.desired, now.monotonic));
        match self.ledger.due() {
            Some(due) => Next::After(due.saturating_duration_since(Instant::now())),
            None => Next::OnEvent,
        }
    }

    /// A listener to what others do to our tables; what it hears is to come back as [`Event::Foreign`].
    ///
    /// # Errors
    /// When the kernel does not let us listen.
    pub fn listen(&mut self) -> Result<Listener, ApplyError> {
        self.programmer.listen()
    }

    fn observe_node(&mut self, node: Node) {
        if node.name == self.node {
            self.index.apply_node(node);
        } else {
            self.index.apply_peer(node.name, node.addresses);
        }
    }

    fn observe_service_cidr(&mut self, event: Seen<ServiceCidr>) {
        match event {
            Seen::Replaced(all) => {
                self.service_cidrs = all.into_iter().map(|one| (one.name, one.ranges)).collect();
                self.lists.service_cidrs = true;
            }
            Seen::Applied(one) => drop(self.service_cidrs.insert(one.name, one.ranges)),
            Seen::Removed(name) => drop(self.service_cidrs.remove(&name)),
        }
        self.index.set_service_cidrs(self.service_cidrs.values().flatten().copied());
    }

    /// Tells the others what is in the kernel now.
    fn publish(&self) {
        self.outputs.programmed.send_if_modified(|known| {
            // Nobody announces a cluster IP.
            let now = Programmed::These(self.programmer.external_addresses().clone());
            let is_new = **known != now;
            *known = Arc::new(now);
            is_new
        });
    }

    /// A turn that failed may have found the kernel without what it had, since others were there: then nobody must be drawn
    /// to this node by addresses that it does not forward.
    fn failed(&self) {
        self.outputs.progress.fail();
        let is_settled = self.outputs.programmed.borrow().is_settled();
        if is_settled {
            self.publish();
        }
    }

    /// Says once how long it took until everything was there.
    fn loaded(&mut self, turn: Instant) {
        let Some(since) = self.loading_since.take() else { return };
        let (took, waited) = (since.elapsed(), turn.saturating_duration_since(since));
        self.metrics.loaded(took);
        let (services, entries) = (self.index.services().count(), self.desired.entries().len());
        tracing::info!(services, entries, ?took, ?waited, "the kernel has every Service for the first time");
    }

    /// When a turn is due though nothing else happens.
    fn next(&self) -> Next {
        let now = Instant::now();
        let repair = match self.repairs.due(now) {
            Due::No => None,
            Due::Now => Some(Duration::ZERO),
            Due::After(pause) => Some(pause),
        };
        let pauses = [repair, self.retry.pause(now), self.programmer.renewal_pause()];
        pauses.into_iter().flatten().min().map_or(Next::OnEvent, Next::After)
    }

    /// Says what others did, now that it is undone.
    fn repaired(&mut self, report: &Report, began: Instant) {
        let is_changed = report.is_rebuilt || report.added + report.deleted > 0;
        let is_delayed = self.repairs.done(began, began + began.elapsed());
        let Some(intruder) = self.intruder.take() else { return };
        self.metrics.repaired(is_changed, is_delayed);
        if is_changed {
            tracing::warn!(
                by = %intruder,
                added = report.added,
                deleted = report.deleted,
                rebuilt = report.is_rebuilt,
                "another program changed our nf_tables tables, put right"
            );
        }
        if is_delayed {
            tracing::warn!(by = %intruder, "another program keeps changing our nf_tables tables, repairs have to wait");
        }
    }

    /// Gives back the memory that a turn over everything leaves to spare.
    fn pack(&mut self) {
        self.index.pack();
        self.desired.pack();
        self.programmer.pack();
        heap::trim();
    }

    /// Says what this turn did and who goes without.
    fn report(&mut self, report: Report, took: Duration) {
        self.metrics.programmed(&report, took);
        if report.is_rebuilt || report.added + report.deleted > 0 {
            tracing::debug!(
                added = report.added,
                deleted = report.deleted,
                rebuilt = report.is_rebuilt,
                ?took,
                "programmed"
            );
        }
        let is_disputed = self.disputes != Some(self.desired.disputes());
        if is_disputed {
            self.follow_conflicts();
        }
        for (key, reason) in &report.quarantined {
            if self.quarantined.get(key) == Some(reason) {
                continue;
            }
            if reason.is_partial() {
                tracing::warn!(entry = %key.port, family = %key.family, %reason, "a Service port has no session affinity");
            } else {
                tracing::error!(entry = %key.port, family = %key.family, %reason, "a Service port is not programmed");
            }
        }
        let is_new = is_disputed || report.quarantined != self.quarantined;
        self.quarantined = report.quarantined;
        if is_new {
            self.tell_problems();
        }
    }

    fn tell_problems(&self) {
        let problems = problems(&self.conflicts, &self.quarantined, self.unusable.problems());
        self.outputs.problems.report(problems);
    }

    fn follow_conflicts(&mut self) {
        let conflicts: BTreeSet<Conflict> = self.desired.conflicts().collect();
        for conflict in conflicts.difference(&self.conflicts) {
            tracing::warn!(%conflict, "two Services want one frontend");
        }
        self.metrics.contested(conflicts.len());
        self.conflicts = conflicts;
        self.disputes = Some(self.desired.disputes());
    }
}

impl Component for Datapath {
    type Event = Event;
    type Error = ApplyError;

    const NAME: &'static str = "datapath";

    fn observe(&mut self, event: Event) {
        self.outputs.progress.see(&event, &self.index, &self.node);
        match event {
            Event::Service(Seen::Replaced(services)) => {
                self.index.replace_services(services);
                self.lists.services = true;
            }
            Event::Service(Seen::Applied(service)) => self.index.apply_service(service),
            Event::Service(Seen::Removed(key)) => self.index.remove_service(&key),
            Event::Slice(Seen::Replaced(slices)) => {
                self.index.replace_slices(slices);
                self.lists.slices = true;
            }
            Event::Slice(Seen::Applied(slice)) => self.index.apply_slice(slice),
            Event::Slice(Seen::Removed(key)) => self.index.remove_slice(&key),
            Event::Node(Seen::Replaced(nodes)) => {
                self.index.retain_peers(&nodes.iter().map(|node| node.name.clone()).collect());
                nodes.into_iter().for_each(|node| self.observe_node(node));
            }
            Event::Node(Seen::Applied(node)) => self.observe_node(node),
            // A node whose own object was deleted forwards on as before.
            Event::Node(Seen::Removed(name)) => self.index.remove_peer(&name),
            Event::ServiceCidr(event) => self.observe_service_cidr(event),
            Event::Foreign(foreign) => {
                self.metrics.touched();
                self.repairs.notice();
                self.intruder = Some(foreign);
            }
            Event::LocalAddresses(addresses) => {
                self.index.set_local_addresses(addresses);
                self.lists.local_addresses = true;
            }
        }
        if self.is_synced() {
            self.outputs.progress.queue();
        }
    }

    fn is_synced(&self) -> bool {
        let Lists { services, slices, service_cidrs, local_addresses } = self.lists;
        services && slices && service_cidrs && local_addresses && self.index.node().is_some()
    }

    async fn turn(&mut self, scope: Scope, now: Now) -> Result<Next, ApplyError> {
        let changes = match scope {
            Scope::Changed => self.index.take_changes(),
            Scope::Resync => {
                let seen = self.index.take_changes();
                let mut everything = self.index.everything();
                // Services that are gone since the last turn are in no index any more.
                everything.services.extend(seen.services);
                everything
            }
        };
        let mut update = self.desired.update(&self.index, &self.settings, &changes);
        self.outputs.progress.begin(&changes, &update, &self.desired);
        if self.unusable.follow(&changes.services, &self.index) {
            self.tell_problems();
        }
        self.ledger.see_left(self.index.take_left(), now.monotonic);
        let mut turn = Turn {
            is_whole: scope == Scope::Resync || update.is_node_changed,
            services: changes.services,
            removed: Vec::new(),
        };
        // A Service may gain or lose a frontend by what another one does.
        turn.services.extend(update.entries.iter().map(|key| key.port.service.clone()));
        let is_renewal = self.programmer.take_renewal();
        if is_renewal || self.retry.is_due(now.monotonic) {
            update.entries.extend(self.quarantined.keys().cloned());
        }
        let due = self.repairs.due(now.monotonic);
        let is_repair = scope == Scope::Changed && due == Due::Now;
        if scope == Scope::Changed && !is_repair && update.is_empty() {
            if due == Due::No {
                self.outputs.progress.succeed(&self.index, &self.desired, None);
            }
            let next = self.sweep(turn, now);
            return Ok(sooner(self.next(), next));
        }
        let (entries, node) = (self.desired.entries(), self.desired.node());
        // The kernel may take 0.1 s: other tasks go on meanwhile.
        let report = tokio::task::block_in_place(|| match scope {
            Scope::Resync => self.programmer.apply(entries, &plan::Scope::All, node),
            Scope::Changed if is_repair => self.programmer.repair(entries, &update.entries, node),
            Scope::Changed => self.programmer.apply(entries, &plan::Scope::Update(update), node),
        });
        let mut report = report.inspect_err(|_| self.failed())?;
        if is_repair || scope == Scope::Resync {
            self.repaired(&report, now.monotonic);
        }
        self.retry.follow(!report.quarantined.is_empty(), now.monotonic);
        self.publish();
        self.loaded(now.monotonic);
        // While a repair has to wait the kernel has not what it should, whatever it has just taken.
        if is_repair || scope == Scope::Resync || due == Due::No {
            self.outputs.progress.succeed(&self.index, &self.desired, Some((scope, now.monotonic)));
        }
        turn.removed = std::mem::take(&mut report.removed);
        turn.is_whole |= report.is_rebuilt;
        self.report(report, now.monotonic.elapsed());
        if scope == Scope::Resync {
            self.pack();
        }
        let next = self.sweep(turn, now);
        Ok(sooner(self.next(), next))
    }
}

/// The earlier of two wishes.
fn sooner(one: Next, other: Next) -> Next {
    match (one, other) {
        (Next::OnEvent, next) | (next, Next::OnEvent) => next,
        (Next::After(one), Next::After(other)) => Next::After(one.min(other)),
    }
}

#[cfg(test)]
mod tests;
