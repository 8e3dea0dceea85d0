//! Where we forward: what another service proxy left is removed once it runs no more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::beside::{PAUSE, RULES_PAUSE, find, in_words, see, with_connection};
use crate::datapath::leftovers::{LeftoversError, legacy_tables};
use crate::model::problem::Problem;
use crate::model::programmed::Programmed;
use crate::runtime::node_report::NodeReports;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::telemetry::chain;

/// How long the other proxy must be gone before its rules are.
const ABSENCE: Duration = Duration::from_secs(5);

/// Once our rules stand, removes what a kube-proxy that runs no more has left, and tells of one that still runs.
pub(super) async fn take_over(
    port: u16,
    mut programmed: watch::Receiver<Arc<Programmed>>,
    reports: NodeReports,
    mut stop: Shutdown,
) {
    let reporter = reports.reporter("datapath", "other service proxy");
    let is_settled = tokio::select! {
        () = stop.requested() => return,
        settled = programmed.wait_for(|programmed| programmed.is_settled()) => settled.is_ok(),
    };
    if !is_settled {
        // The datapath is gone, which its own part tells.
        return stop.requested().await;
    }
    let mut heir = Heir::default();
    let mut last = BTreeSet::new();
    loop {
        match see(port, false).await {
            Some(seen) => {
                let running = seen.running();
                reports.set_service_proxy(in_words(running.clone()));
                let problems = heir.turn(running, Instant::now());
                if problems != last {
                    reporter.report(problems.clone());
                    last = problems;
                }
            }
            None => heir.could_not_look(),
        }
        tokio::select! {
            () = stop.requested() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Who removes what another has left.
#[derive(Default)]
struct Heir {
    absent_since: Option<Instant>,
    looked: Option<Instant>,
    /// Removed since the other was last seen.
    has_removed: bool,
    /// Others' rules that came back though nobody was seen.
    returned: Option<String>,
    has_told_legacy: bool,
}

impl Heir {
    /// The other may run all the same: how long it has been gone is counted anew.
    const fn could_not_look(&mut self) {
        self.absent_since = None;
    }

    fn turn(&mut self, running: Option<String>, now: Instant) -> BTreeSet<Problem> {
        let mut problems = BTreeSet::new();
        if let Some(evidence) = running {
            *self = Self { has_told_legacy: self.has_told_legacy, ..Self::default() };
            let message =
                format!("another service proxy runs beside this datapath, and both forward: {evidence}. Remove it");
            problems.insert(Problem::of_node("AnotherServiceProxy", message));
            return problems;
        }
        let absent_since = *self.absent_since.get_or_insert(now);
        let is_due = self.looked.is_none_or(|at| now.duration_since(at) >= RULES_PAUSE);
        if now.duration_since(absent_since) >= ABSENCE && is_due && self.returned.is_none() {
            self.looked = Some(now);
            if let Err(error) = self.inherit() {
                tracing::warn!(error = chain(&error), "rules of another service proxy are left");
            }
        }
        if let Some(rules) = &self.returned {
            let message = format!(
                "{rules} came back after it was removed: another service proxy runs unseen (its ports are closed?). It is left alone"
            );
            problems.insert(Problem::of_node("AnotherServiceProxy", message));
        }
        problems
    }

    fn inherit(&mut self) -> Result<(), LeftoversError> {
        let found = find()?;
        if found.is_empty() {
            self.tell_legacy();
            return Ok(());
        }
        if self.has_removed {
            self.returned = Some(found.to_string());
            tracing::warn!(rules = %found, "rules of another service proxy came back: they are left alone from now on");
            return Ok(());
        }
        with_connection(|connection| found.remove(connection))?;
        self.has_removed = true;
        tracing::info!(rules = %found, "removed what a kube-proxy that runs no more has left");
        Ok(())
    }

    /// What may be there and cannot be removed.
    fn tell_legacy(&mut self) {
        if std::mem::replace(&mut self.has_told_legacy, true) {
            return;
        }
        for program in legacy_tables() {
            tracing::warn!(
                "{program} has a nat table; if a kube-proxy left rules there ({program}-save | grep KUBE-SERVICES), they are \
                 in force and must be removed by hand"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::nf_tables::test::{in_new_namespace, nft};

    const RULES: &str = "table ip kube-proxy { chain services { type nat hook prerouting priority dstnat; }; };";

    /// In a runtime whose threads stay in this namespace.
    fn run(test: impl Future<Output = ()> + Send) {
        in_new_namespace(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(test);
        });
    }

    #[test]
    fn rules_of_a_proxy_that_runs_stay_and_go_once_it_is_gone() {
        run(async {
            nft(&["-f", "-"], RULES);
            let start = Instant::now();
            let after = |seconds| start + Duration::from_secs(seconds);
            let mut heir = Heir::default();
            let told = heir.turn(Some("somebody listens".to_owned()), after(0));
            assert_eq!(told.iter().map(|problem| problem.reason).collect::<Vec<_>>(), ["AnotherServiceProxy"]);
            assert_eq!(heir.turn(None, after(60)), BTreeSet::new());
            assert_eq!(heir.turn(None, after(64)), BTreeSet::new());
            assert!(nft(&["list", "tables"], "").contains("kube-proxy"), "it may be in an upgrade");
            heir.could_not_look();
            heir.turn(None, after(65));
            assert!(nft(&["list", "tables"], "").contains("kube-proxy"), "nobody could see whether it is gone");
            heir.turn(None, after(70));
            assert_eq!(nft(&["list", "tables"], ""), "");
        });
    }

    #[test]
    fn rules_that_come_back_are_left_alone_and_told() {
        run(async {
            let start = Instant::now();
            let after = |seconds| start + Duration::from_secs(seconds);
            let mut heir = Heir::default();
            nft(&["-f", "-"], RULES);
            heir.turn(None, after(0));
            heir.turn(None, after(5));
            assert_eq!(nft(&["list", "tables"], ""), "");
            nft(&["-f", "-"], RULES);
            assert_eq!(heir.turn(None, after(20)).len(), 1);
            assert_eq!(heir.turn(None, after(90)).len(), 1);
            assert!(nft(&["list", "tables"], "").contains("kube-proxy"));
            // Seen at last, and stopped: what it leaves now is removed again.
            heir.turn(Some("somebody listens".to_owned()), after(100));
            heir.turn(None, after(110));
            assert_eq!(heir.turn(None, after(115)), BTreeSet::new());
            assert_eq!(nft(&["list", "tables"], ""), "");
        });
    }
}
