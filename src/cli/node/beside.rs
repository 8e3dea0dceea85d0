//! Beside another service proxy that forwards: its health stands in for our programming.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::node_announcement::ServiceProxy;
use crate::datapath::apply::Programmer;
use crate::datapath::leftovers::{Leftovers, LeftoversError};
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
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at the rules, which cost more.
pub(super) const RULES_PAUSE: Duration = Duration::from_secs(10);
/// How long our own rules of an earlier run stay while the other proxy is not seen: traffic is not let fall between two.
const OVERLAP: Duration = Duration::from_secs(30);
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

pub(super) fn find() -> Result<Leftovers, LeftoversError> {
    with_connection(Leftovers::find)
}

pub(super) fn with_connection<T>(
    work: impl FnOnce(&mut Connection) -> Result<T, LeftoversError>,
) -> Result<T, LeftoversError> {
    tokio::task::block_in_place(|| {
        let mut connection = Connection::open().map_err(|error: ConnectionError| LeftoversError::Look(error))?;
        work(&mut connection)
    })
}
