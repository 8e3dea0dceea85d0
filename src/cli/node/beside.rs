//! Beside another service proxy: its health stands in for our programming where it forwards; where we forward, what it left
//! is removed once it runs no more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::node_announcement::ServiceProxy;
use crate::datapath::apply::Programmer;
use crate::datapath::leftovers::{Leftovers, LeftoversError, legacy_tables};
use crate::model::problem::Problem;
use crate::model::programmed::Programmed;
use crate::model::service_proxy::{Look, Memory, Verdict};
use crate::netlink::nf_tables::{Connection, ConnectionError};
use crate::runtime::admin::Readiness;
use crate::runtime::node_report::{NodeReports, Reporter};
use crate::runtime::service_proxy::look;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::telemetry::chain;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at the rules, which cost more.
const RULES_PAUSE: Duration = Duration::from_secs(10);
/// How long our own rules of an earlier run stay while the other proxy is not seen: traffic is not let fall between two.
const OVERLAP: Duration = Duration::from_secs(30);
/// How long the other proxy must be gone before its rules are.
const ABSENCE: Duration = Duration::from_secs(5);

/// The part of readiness that is the other proxy's.
const OTHER: &str = "other service proxy";

/// Looks for another proxy, and with `asks` how it does; nothing, and a word in the log, when that fails.
pub(super) async fn see(health_port: u16, asks: bool) -> Option<Look> {
    let looked = look(health_port, asks).await;
    let failed = |error: &std::io::Error| {
        tracing::warn!(error = chain(error), "failed to find out who listens on a service proxy's ports");
    };
    looked.inspect_err(failed).ok()
}

/// Whether another proxy runs, in the words of the report.
pub(super) fn in_words(running: Option<String>) -> ServiceProxy {
    match running {
        Some(evidence) => ServiceProxy { detected: true, evidence },
        None => ServiceProxy { detected: false, evidence: "nobody listens on the ports of a service proxy".to_owned() },
    }
}

/// Takes the other proxy's health for our readiness to forward, and deletes our own rules of an earlier run once it forwards.
/// With port 0 it is trusted without a look.
pub(super) async fn stand_aside(
    port: u16,
    programmed: watch::Sender<Arc<Programmed>>,
    reports: NodeReports,
    readiness: Readiness,
    mut stop: Shutdown,
) {
    readiness.expect(OTHER);
    let reporter = reports.reporter("datapath", "other service proxy");
    let mut memory = Memory::default();
    let mut rules = Rules::default();
    let mut last: Option<Verdict> = None;
    let mut owes_removal = true;
    let started = Instant::now();
    loop {
        let verdict = if port == 0 {
            Verdict {
                forwards: true,
                why: "another service proxy is trusted to, unseen (--proxy-health-port=0)".to_owned(),
            }
        } else {
            let seen = see(port, true).await;
            if let Some(seen) = &seen {
                reports.set_service_proxy(in_words(seen.running()));
            }
            // Unseen is as if it did not answer: this node lets others take over rather than attract what goes nowhere.
            let mut seen = seen.unwrap_or_default();
            if seen.health.is_none() {
                seen.rules = rules.look();
            }
            memory.judge(&seen, port, Instant::now())
        };
        // To the speaker it is as if our own datapath were starting: other nodes take over.
        let state = if verdict.forwards { Programmed::All } else { Programmed::Starting };
        programmed.send_if_modified(|known| {
            let is_new = **known != state;
            if is_new {
                *known = Arc::new(state);
            }
            is_new
        });
        readiness.set(OTHER, verdict.forwards);
        if last.as_ref() != Some(&verdict) {
            tell(&verdict, &reporter);
        }
        if owes_removal && (verdict.forwards || started.elapsed() >= OVERLAP) {
            owes_removal = remove_ours().is_err();
        }
        last = Some(verdict);
        tokio::select! {
            () = stop.requested() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn tell(verdict: &Verdict, reporter: &Reporter) {
    if verdict.forwards {
        tracing::info!(why = verdict.why, "another service proxy forwards");
        reporter.report(BTreeSet::new());
    } else {
        tracing::warn!(why = verdict.why, "nobody is known to forward on this node: it announces nothing");
        reporter.report([Problem::of_node("NoServiceProxy", verdict.why.clone())].into());
    }
}

/// Deletes our tables; an error is logged, once a second.
fn remove_ours() -> Result<(), ()> {
    let removed = tokio::task::block_in_place(|| Programmer::new()?.cleanup());
    match removed {
        Ok(families) => {
            for family in families {
                tracing::info!(%family, "deleted our nf_tables table of an earlier run");
            }
            Ok(())
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "failed to delete our nf_tables tables of an earlier run");
            Err(())
        }
    }
}

/// The other proxy's rules, looked at now and then.
#[derive(Default)]
struct Rules {
    looked: Option<Instant>,
    found: Option<String>,
}

impl Rules {
    fn look(&mut self) -> Option<String> {
        if self.looked.is_none_or(|at| at.elapsed() >= RULES_PAUSE) {
            self.looked = Some(Instant::now());
            self.found = match find() {
                Ok(found) => found.can_forward().then(|| found.to_string()),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "failed to look for another service proxy's rules");
                    None
                }
            };
        }
        self.found.clone()
    }
}

fn find() -> Result<Leftovers, LeftoversError> {
    with_connection(Leftovers::find)
}

fn with_connection<T>(work: impl FnOnce(&mut Connection) -> Result<T, LeftoversError>) -> Result<T, LeftoversError> {
    tokio::task::block_in_place(|| {
        let mut connection = Connection::open().map_err(|error: ConnectionError| LeftoversError::Look(error))?;
        work(&mut connection)
    })
}

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
