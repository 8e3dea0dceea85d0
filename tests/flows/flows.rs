//! The fact tables of `tests/cases/` for every runner: reads their JSON form, turns a scenario into real API objects and
//! by way of `model` into the desired state, maps it into the other family, and counts results.
//!
//! Included by path from each runner, so that simulation and kernel are held to the same facts.

#![allow(dead_code, unreachable_pub, reason = "a library of the runners, of which each uses a part")]

pub mod expect;
pub mod family;
pub mod form;
pub mod objects;
pub mod tally;
pub mod tracked;
pub mod world;

use std::fs;

use serde_json::{Map, Value};

/// The tables that run where no other is named: upstream's facts, and our own in the same form.
const BUILT_IN: [&str; 2] =
    [include_str!("../cases/service-proxy-flows.json"), include_str!("../cases/steelyard-flows.json")];
/// Names another file of the same form.
const ENVIRONMENT: &str = "STEELYARD_CASES";
/// The version of the form that we read.
const VERSION: u64 = 1;
/// Remarks for people: allowed everywhere, never read.
const REMARKS: [&str; 4] = ["note", "notes", "comment", "origin"];

/// A file of cases, taken apart into cases that are read one by one: a bad one spoils only itself.
#[derive(Debug, Default)]
pub struct CaseFile {
    /// `scenarios`: a node, Services, endpoints, and the flows to try.
    pub scenarios: Vec<Value>,
    /// `endpoint_selection`.
    pub selections: Vec<Value>,
    /// `health_check_node_port`.
    pub health_checks: Vec<Value>,
    /// `conntrack_cleanup`.
    pub conntrack: Option<Value>,
    /// Sections that say nothing about any proxy but kube-proxy.
    pub foreign: Vec<String>,
    /// What stands in the file and cannot be read: each is a failure.
    pub problems: Vec<String>,
}

impl CaseFile {
    /// Reads the file that the environment names, else the built-in ones.
    pub fn load() -> Result<Self, String> {
        match std::env::var_os(ENVIRONMENT).filter(|path| !path.is_empty()) {
            Some(path) => {
                let shown = path.to_string_lossy().into_owned();
                let text = fs::read_to_string(&path).map_err(|error| format!("{ENVIRONMENT}={shown}: {error}"))?;
                Self::parse(&text).map_err(|error| format!("{ENVIRONMENT}={shown}: {error}"))
            }
            None => Ok(Self::built_in()),
        }
    }

    /// Reads the built-in tables.
    pub fn built_in() -> Self {
        let mut all = Self::default();
        for text in BUILT_IN {
            let Self { scenarios, selections, health_checks, conntrack, foreign, problems } =
                Self::parse(text).expect("built-in tables are JSON");
            all.scenarios.extend(scenarios);
            all.selections.extend(selections);
            all.health_checks.extend(health_checks);
            all.conntrack = all.conntrack.or(conntrack);
            all.foreign.extend(foreign);
            all.problems.extend(problems);
        }
        all
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("not a file of cases: {error}"))?;
        let mut cases = Self::default();
        for (section, content) in file {
            match section.as_str() {
                "schema" => {
                    let version = content.get("version").and_then(Value::as_u64);
                    if version.is_some_and(|version| version != VERSION) {
                        cases.problems.push(format!("schema.version is {version:?}, this runner reads {VERSION}"));
                    }
                }
                "scenarios" => cases.scenarios = cases.list(&section, content),
                "endpoint_selection" => cases.selections = cases.list(&section, content),
                "health_check_node_port" => cases.health_checks = cases.list(&section, content),
                "conntrack_cleanup" => cases.conntrack = Some(without_remarks(content)).filter(|it| !it.is_null()),
                "incremental_sync_operations" => cases.foreign.push(section),
                other if REMARKS.contains(&other) => {}
                other => cases.problems.push(format!("unknown section `{other}`")),
            }
        }
        Ok(cases)
    }

    /// Names of the sections that have cases and none that packets could try.
    pub fn sections_without_flows(&self) -> Vec<&str> {
        let sections = [
            ("endpoint_selection", !self.selections.is_empty()),
            ("health_check_node_port", !self.health_checks.is_empty()),
        ];
        let ours = sections.into_iter().filter(|(_, is_there)| *is_there).map(|(section, _)| section);
        ours.chain(self.foreign.iter().map(String::as_str)).collect()
    }

    fn list(&mut self, section: &str, content: Value) -> Vec<Value> {
        match without_remarks(content) {
            Value::Array(cases) => cases,
            Value::Null => Vec::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                self.problems.push(format!("section `{section}` is no list"));
                Vec::new()
            }
        }
    }
}

/// A case in its own family and in the other one, each with what to add to its name.
pub fn in_both_families(case: &Value) -> [(&'static str, Result<Value, String>); 2] {
    [("", Ok(case.clone())), (" [other family]", family::mapped_to_other_family(case))]
}

/// The name of a case, as far as it has one.
pub fn title_of(case: &Value) -> String {
    let text = |field: &str| case.get(field).and_then(Value::as_str);
    match (text("test").or_else(|| text("name")), text("variant")) {
        (Some(test), Some(variant)) => format!("{test} ({variant})"),
        (Some(test), None) => test.to_owned(),
        (None, _) => "case without a name".to_owned(),
    }
}

fn without_remarks(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(name, _)| !REMARKS.contains(&name.as_str()))
                .map(|(name, value)| (name, without_remarks(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_remarks).collect()),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => other,
    }
}
