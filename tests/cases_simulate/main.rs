//! Holds `simulate` to the fact tables, each case in its own family and in the other one.
//!
//! `STEELYARD_CASES` names another file of the same form. The last line is `N passed, N failed, N skipped`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test program of its own, not covered by the exceptions for test functions"
)]

mod conntrack;
#[path = "../flows/flows.rs"]
mod flows;
mod health;
mod selection;

use std::process::ExitCode;

use serde_json::Value;
use steelyard::datapath::simulate::{Place, simulate};
use steelyard::model::Family;

use crate::flows::form::Scenario;
use crate::flows::tally::Tally;
use crate::flows::world::World;
use crate::flows::{CaseFile, in_both_families, title_of};

fn main() -> ExitCode {
    // Test runners ask every target for its list; this one has no single tests to name.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let mut tally = Tally::default();
    match CaseFile::load() {
        Ok(file) => run(&file, &mut tally),
        Err(error) => tally.fail("file of cases", error),
    }
    tally.finish()
}

fn run(file: &CaseFile, tally: &mut Tally) {
    for problem in &file.problems {
        tally.fail("file of cases", problem);
    }
    for section in &file.foreign {
        tally.skip(section, "counts the operations of kube-proxy's own rules");
    }
    for case in &file.scenarios {
        for (suffix, case_in_family) in in_both_families(case) {
            let title = format!("{}{suffix}", title_of(case));
            match case_in_family.and_then(|case| Ok((Scenario::read(&case)?, case))) {
                Ok((scenario, case)) => run_scenario(&title, &scenario, &case, tally),
                Err(error) => tally.fail_all_flows(&title, case, &error),
            }
        }
    }
    for case in &file.selections {
        for (suffix, case_in_family) in in_both_families(case) {
            let result = case_in_family.and_then(|case| selection::check(&case));
            tally.record(format_args!("endpoint selection: {}{suffix}", title_of(case)), result);
        }
    }
    for case in &file.health_checks {
        for family in Family::ALL {
            tally.record(
                format_args!("health check node port: {} [{family}]", title_of(case)),
                health::check(case, family),
            );
        }
    }
    if let Some(case) = &file.conntrack {
        for (suffix, case_in_family) in in_both_families(case) {
            match case_in_family.and_then(|case| conntrack::check(&case)) {
                Ok(results) => {
                    for (name, result) in results {
                        tally.record(format_args!("conntrack cleanup: {name}{suffix}"), result);
                    }
                }
                Err(error) => tally.fail(format_args!("conntrack cleanup{suffix}"), error),
            }
        }
    }
}

fn run_scenario(title: &str, scenario: &Scenario, case: &Value, tally: &mut Tally) {
    let world = match World::of(scenario) {
        Ok(world) => world,
        Err(error) => return tally.fail_all_flows(title, case, &error),
    };
    for (name, flow) in &scenario.flows {
        let result = flow.clone().and_then(|flow| {
            let place = Place::new(&world.desired, &world.local_addresses);
            let trace = simulate(place, flow.packet);
            flow.expect.check(&trace.verdict).map_err(|error| {
                let steps: Vec<String> = trace.steps.iter().map(ToString::to_string).collect();
                format!("{error} ({})", steps.join("; "))
            })
        });
        tally.record(format_args!("{title}: {name}"), result);
    }
}
