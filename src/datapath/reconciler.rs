//! The datapath as the loop sees it: observe, decide, program; then tell the speaker what this node's kernel forwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::Instant;

use super::apply::{ApplyError, Programmer, Quarantine, Report};
use super::desired::{Conflict, Desired};
use super::entry::EntryKey;
use super::index::Index;
use super::metrics::Metrics;
use super::plan;
use super::problems::problems;
use super::repairs::{Due, Repairs};
use super::settings::Settings;
use super::watch::Event;
use crate::model::node::Node;
use crate::model::programmed::Programmed;
use crate::model::service_cidr::ServiceCidr;
use crate::names::NodeName;
use crate::netlink::nf_tables::{Foreign, Listener};
use crate::runtime::node_report::Reporter;
use crate::runtime::reconcile::{Component, Next, Now, Scope};
use crate::runtime::watch::Event as Seen;

/// When what packets left behind while the kernel was programmed is cleared away, if nothing happens before.
const SETTLE: Duration = Duration::from_secs(1);

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
    outputs: Outputs,
    conflicts: BTreeSet<Conflict>,
    quarantined: BTreeMap<EntryKey, Quarantine>,
    repairs: Repairs,
    /// Who touched our tables since the last repair, as far as known.
    intruder: Option<Foreign>,
    metrics: Metrics,
}

/// What others in this process learn from the datapath, each by a channel of its own.
#[derive(Debug)]
pub struct Outputs {
    /// Which addresses this node's kernel forwards: the speaker answers for no other.
    pub programmed: watch::Sender<Arc<Programmed>>,
    /// Who goes without something, and why.
    pub problems: Reporter,
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
        Ok(Self {
            node,
            settings,
            index: Index::default(),
            service_cidrs: BTreeMap::new(),
            lists: Lists::default(),
            desired: Desired::default(),
            programmer: Programmer::new()?,
            outputs,
            conflicts: BTreeSet::new(),
            quarantined: BTreeMap::new(),
            repairs: Repairs::default(),
            intruder: None,
            metrics,
        })
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
            let now = Programmed::These(self.programmer.programmed_addresses().collect());
            let is_new = **known != now;
            *known = Arc::new(now);
            is_new
        });
    }

    /// When to look again though nothing is seen: for a repair that has to wait, and for what packets may have left.
    fn next(&self, due: Due) -> Next {
        let settle = self.programmer.is_unsettled().then_some(SETTLE);
        match (due, settle) {
            (Due::Now, _) => Next::After(Duration::ZERO),
            (Due::After(pause), Some(settle)) => Next::After(pause.min(settle)),
            (Due::After(pause), None) | (Due::No, Some(pause)) => Next::After(pause),
            (Due::No, None) => Next::OnEvent,
        }
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
        let conflicts: BTreeSet<Conflict> = self.desired.conflicts().collect();
        for conflict in conflicts.difference(&self.conflicts) {
            tracing::warn!(%conflict, "two Services want one frontend");
        }
        self.metrics.contested(conflicts.len());
        if conflicts != self.conflicts || report.quarantined != self.quarantined {
            self.outputs.problems.report(problems(&conflicts, &report.quarantined));
        }
        self.conflicts = conflicts;
        for (key, reason) in &report.quarantined {
            if self.quarantined.get(key) != Some(reason) {
                tracing::error!(entry = %key.port, family = %key.family, %reason, "a Service port is not programmed");
            }
        }
        self.quarantined = report.quarantined;
    }
}

impl Component for Datapath {
    type Event = Event;
    type Error = ApplyError;

    const NAME: &'static str = "datapath";

    fn observe(&mut self, event: Event) {
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
            Event::Node(Seen::Replaced(nodes)) => nodes.into_iter().for_each(|node| self.observe_node(node)),
            Event::Node(Seen::Applied(node)) => self.observe_node(node),
            // A node whose object was deleted forwards on as before.
            Event::Node(Seen::Removed(_)) => {}
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
        let update = self.desired.update(&self.index, &self.settings, &changes);
        let due = self.repairs.due(now.monotonic);
        let plan_scope = match (scope, due) {
            (Scope::Resync, _) | (Scope::Changed, Due::Now) => plan::Scope::All,
            (Scope::Changed, Due::No | Due::After(_)) if update.is_empty() => {
                let forgotten = tokio::task::block_in_place(|| self.programmer.settle());
                self.metrics.forgotten(forgotten);
                return Ok(self.next(due));
            }
            (Scope::Changed, Due::No | Due::After(_)) => plan::Scope::Keys(update.entries),
        };
        let is_whole = plan_scope == plan::Scope::All;
        // The kernel may take 0.1 s: other tasks go on meanwhile.
        let report = tokio::task::block_in_place(|| {
            self.programmer.apply(self.desired.entries(), &plan_scope, self.desired.node())
        })?;
        if is_whole {
            self.repaired(&report, now.monotonic);
        }
        self.publish();
        self.report(report, now.monotonic.elapsed());
        Ok(self.next(self.repairs.due(Instant::now())))
    }
}

#[cfg(test)]
mod tests;
