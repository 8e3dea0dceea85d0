//! Holds the kernel to the fact tables: programs each scenario into a namespace and sends real packets through it, each
//! case in its own family and in the other one.
//!
//! `STEELYARD_CASES` names another file of the same form. The last line is `N passed, N failed, N skipped`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "a test program of its own, not covered by the exceptions for test functions"
)]

#[path = "../flows/flows.rs"]
mod flows;
#[path = "../stage/stage.rs"]
mod stage;
mod tracked;

use std::process::ExitCode;

use serde_json::Value;
use steelyard::datapath::apply::Programmer;
use steelyard::datapath::plan::Scope;
use steelyard::runtime::telemetry::chain;

use crate::flows::form::{Flow, Scenario};
use crate::flows::tally::Tally;
use crate::flows::world::World;
use crate::flows::{CaseFile, in_both_families, title_of};
use crate::stage::{Probe, Stage, Surroundings, namespace, outcome};

fn main() -> ExitCode {
    // Test runners ask every target for its list; this one has no single tests to name.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let mut tally = Tally::default();
    if let Err(error) = namespace::prepare() {
        tally.fail("network namespaces", error);
        return tally.finish();
    }
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
    for case in &file.scenarios {
        for (suffix, case_in_family) in in_both_families(case) {
            let title = format!("{}{suffix}", title_of(case));
            match case_in_family.and_then(|case| Ok((Scenario::read(&case)?, case))) {
                Ok((scenario, case)) => run_scenario(&title, &scenario, &case, tally),
                Err(error) => tally.fail_all_flows(&title, case, &error),
            }
        }
    }
    if let Some(case) = &file.conntrack {
        for (suffix, case_in_family) in in_both_families(case) {
            match case_in_family.and_then(|case| tracked::check(&case)) {
                Ok(rows) => {
                    for (name, result) in rows {
                        tally.record(format_args!("conntrack cleanup: {name}{suffix}"), result);
                    }
                }
                Err(error) => tally.fail(format_args!("conntrack cleanup{suffix}"), error),
            }
        }
    }
    for section in file.sections_without_flows() {
        tally.skip(section, "has no packets in it; cases_simulate counts its cases");
    }
}

fn run_scenario(title: &str, scenario: &Scenario, case: &Value, tally: &mut Tally) {
    let staged = World::of(scenario).and_then(|world| {
        let stage = Stage::raise("", Surroundings::of(scenario, &world))?;
        let mut programmer = stage.in_node(Programmer::new).map_err(|error| chain(&error))?;
        let report = programmer
            .apply(world.desired.entries(), &Scope::All, world.desired.node())
            .map_err(|error| chain(&error))?;
        if let Some((key, reason)) = report.quarantined.first_key_value() {
            return Err(format!("{} is not programmed: {reason}", key.port));
        }
        stage.check_listing()?;
        stage.watch_priority()?;
        let flows: Vec<_> = scenario.flows.iter().filter_map(|(_, flow)| flow.as_ref().ok()).collect();
        let remembers = world.desired.entries().values().any(|entry| entry.affinity.is_some());
        if remembers { send_as_new_clients(&stage, &flows) } else { send(&stage, &flows) }
    });
    let mut outcomes = match staged {
        Ok(outcomes) => outcomes.into_iter(),
        Err(error) => return tally.fail_all_flows(title, case, &error),
    };
    for (name, flow) in &scenario.flows {
        let result = flow.clone().and_then(|_| outcomes.next().unwrap_or_else(|| Err("was not sent".to_owned())));
        tally.record(format_args!("{title}: {name}"), result);
    }
}

/// Sends the first packets of many connections of each flow, and holds what comes of them to what should.
fn send(stage: &Stage, flows: &[&Flow]) -> Result<Vec<Result<(), String>>, String> {
    let probe = |flow: &&Flow| Probe {
        packet: flow.packet,
        connections: outcome::connections(&flow.expect),
        is_visible: outcome::is_visible(&flow.expect),
    };
    let seen = stage.observe(&flows.iter().map(probe).collect::<Vec<_>>())?;
    stage.check_priority()?;
    Ok(flows.iter().zip(&seen).map(|(flow, packets)| outcome::check(flow, packets)).collect())
}

/// The same where clients are remembered: each connection is that of a client that was never there.
fn send_as_new_clients(stage: &Stage, flows: &[&Flow]) -> Result<Vec<Result<(), String>>, String> {
    let observe = |flow: &&Flow| {
        let mut packets = Vec::new();
        for _ in 0..outcome::connections(&flow.expect) {
            let forget = "flush map ip steelyard affinity\nflush map ip6 steelyard affinity\n";
            stage.in_node(|| namespace::run_program("nft", &["-f", "-"], forget))?;
            let is_visible = outcome::is_visible(&flow.expect);
            packets.extend(stage.observe(&[Probe { packet: flow.packet, connections: 1, is_visible }])?);
        }
        Ok(outcome::check(flow, &packets.concat()))
    };
    let outcomes = flows.iter().map(observe).collect::<Result<_, String>>()?;
    stage.check_priority()?;
    Ok(outcomes)
}
