//! Differential test: the real kube-proxy (nftables mode) and the agent, each on a node of its own in a namespace, get the
//! same objects from one API server and the same packets; every difference is deliberate and documented, or a failure.
//!
//! First the scenarios of the fact tables in both families, then random Services, endpoints and packets, changed in rounds.
//! `STEELYARD_SEED` repeats a run, `STEELYARD_ROUNDS` says how many rounds there are for each of the settings,
//! `STEELYARD_ONLY=tables` or `random` leaves the other part out.
//! The last line is `N passed, N failed, N skipped`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    reason = "a test program of its own, not covered by the exceptions for test functions"
)]

mod arena;
mod cluster;
mod deliberate;
mod expected;
#[path = "../flows/flows.rs"]
mod flows;
mod generate;
mod judge;
mod proxies;
mod random;
mod relay;
mod released;
mod report;
mod rng;
mod run;
#[path = "../stage/stage.rs"]
mod stage;
mod tables;
mod tries;

use std::process::ExitCode;

use crate::run::Run;

fn main() -> ExitCode {
    // Test runners ask every target for its list; this one has no single tests to name.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    match Run::start() {
        Ok(run) => run.all(),
        Err(error) => {
            let mut tally = flows::tally::Tally::default();
            tally.fail("differential test", error);
            tally.finish()
        }
    }
}
