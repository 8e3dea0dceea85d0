//! What the parts of an agent have to say about their node, collected for the `NodeAnnouncement`.
//!
//! Each part sets what is its own, as a whole and whenever it likes; what did not change wakes nobody. A part that has
//! problems to tell holds a [`Reporter`], and they go when it goes.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

use crate::api::node_announcement::{Announcement, ServiceProxy};
use crate::model::problem::Problem;

/// Everything said so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeReport {
    /// The UID of the Node, with which the `NodeAnnouncement` goes.
    pub owner: Option<String>,
    /// What is announced; unknown before the speaker's first turn.
    pub announcements: Option<Vec<Announcement>>,
    /// Whether this agent forwards: `On`, `Off` or `Waiting`.
    pub datapath: Option<&'static str>,
    /// Whether somebody else does.
    pub service_proxy: Option<ServiceProxy>,
    /// What cannot be done, by who says so.
    pub problems: BTreeMap<Source, BTreeSet<Problem>>,
}

/// Who reports a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// `speaker` or `datapath`, as the `NodeAnnouncement` names it.
    pub component: &'static str,
    /// Which part of it.
    pub part: &'static str,
}

/// Where parts say what they have to say. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeReports(watch::Sender<NodeReport>);

impl Default for NodeReports {
    fn default() -> Self {
        Self(watch::Sender::new(NodeReport::default()))
    }
}

impl NodeReports {
    /// Whoever reads it sees the newest report, not each.
    pub fn follow(&self) -> watch::Receiver<NodeReport> {
        self.0.subscribe()
    }

    /// For a part that has problems to tell; each part takes one, under a name of its own.
    pub fn reporter(&self, component: &'static str, part: &'static str) -> Reporter {
        Reporter { reports: self.clone(), source: Source { component, part } }
    }

    /// The UID of this node's object.
    pub fn set_owner(&self, owner: Option<String>) {
        self.set(|report| &mut report.owner, owner);
    }

    /// What is announced now.
    pub fn set_announcements(&self, announcements: Vec<Announcement>) {
        self.set(|report| &mut report.announcements, Some(announcements));
    }

    /// Whether this agent forwards: `On`, `Off` or `Waiting`.
    pub fn set_datapath(&self, mode: &'static str) {
        self.set(|report| &mut report.datapath, Some(mode));
    }

    /// Whether another service proxy runs here.
    pub fn set_service_proxy(&self, service_proxy: ServiceProxy) {
        self.set(|report| &mut report.service_proxy, Some(service_proxy));
    }

    fn set<T: PartialEq>(&self, field: impl FnOnce(&mut NodeReport) -> &mut T, value: T) {
        self.0.send_if_modified(|report| {
            let field = field(report);
            let is_new = *field != value;
            *field = value;
            is_new
        });
    }
}

/// The problems of one part. Those last reported go when it is dropped.
#[derive(Debug)]
pub struct Reporter {
    reports: NodeReports,
    source: Source,
}

impl Reporter {
    /// Puts these in place of all that this part reported before.
    pub fn report(&self, problems: BTreeSet<Problem>) {
        self.reports.0.send_if_modified(|report| {
            if problems.is_empty() {
                return report.problems.remove(&self.source).is_some();
            }
            let is_new = report.problems.get(&self.source) != Some(&problems);
            if is_new {
                report.problems.insert(self.source, problems);
            }
            is_new
        });
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.report(BTreeSet::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_replaces_its_own_problems_and_takes_them_along() {
        let reports = NodeReports::default();
        let mut seen = reports.follow();
        let problem = |message: &str| BTreeSet::from([Problem::of_node("Reason", message)]);
        let (first, second) = (reports.reporter("datapath", "a"), reports.reporter("datapath", "b"));
        first.report(problem("one"));
        second.report(problem("two"));
        assert_eq!(seen.borrow_and_update().problems.len(), 2);
        first.report(problem("one"));
        assert!(!seen.has_changed().unwrap(), "nothing new was said");
        first.report(problem("three"));
        drop(second);
        let problems: Vec<Problem> = seen.borrow_and_update().problems.values().flatten().cloned().collect();
        assert_eq!(problems, [Problem::of_node("Reason", "three")]);
    }
}
