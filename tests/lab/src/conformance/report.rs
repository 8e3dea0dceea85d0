//! What ginkgo reports, as a table and a total.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Lines of a failure's message that go into the table; the log has all.
const REASON_LINES: usize = 12;

/// What became of a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It ran, and all was as it should be.
    Passed,
    /// It found that this cluster is not made for it, and said why.
    Skipped,
    /// It failed, panicked, took too long or was interrupted.
    Failed,
}

/// One spec that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its full name, `[sig-network] Services should …`.
    pub name: String,
    /// What became of it.
    pub state: State,
    /// How long it took.
    pub took: Duration,
    /// Why it was skipped or failed.
    pub reason: String,
}

/// What became of all specs that were chosen. Its text is a table whose last line is the total.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Passed ones first, failed ones last, by name.
    pub specs: Vec<Spec>,
}

impl Outcome {
    /// Reads ginkgo's JSON report. Specs that were not chosen are in it too, as skipped without a reason.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(json: &[u8]) -> Result<Self> {
        let suites: Vec<SuiteReport> = serde_json::from_slice(json).context("this is no report of ginkgo")?;
        let reports = suites.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default());
        let mut specs: Vec<Spec> = reports.filter_map(SpecReport::into_spec).collect();
        specs.sort_by(|one, other| (one.state, &one.name).cmp(&(other.state, &other.name)));
        Ok(Self { specs })
    }

    /// How many specs ended so.
    #[must_use]
    pub fn count(&self, state: State) -> usize {
        self.specs.iter().filter(|spec| spec.state == state).count()
    }

    /// Whether nothing failed.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.count(State::Failed) == 0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for spec in &self.specs {
            writeln!(f, "{:<7} {:>6.1} s  {}", spec.state, spec.took.as_secs_f32(), spec.name)?;
            for line in spec.reason.lines().filter(|line| !line.trim().is_empty()).take(REASON_LINES) {
                writeln!(f, "                  {line}")?;
            }
        }
        let [passed, failed, skipped] = [State::Passed, State::Failed, State::Skipped].map(|state| self.count(state));
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SuiteReport {
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    state: String,
    /// Nanoseconds.
    #[serde(default)]
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
    forwarded_panic: Option<String>,
}

impl SpecReport {
    /// Nothing for a spec that was not chosen, and for set-up and tear-down that went well.
    fn into_spec(self) -> Option<Spec> {
        let is_spec = self.leaf_node_type == "It";
        let failure = self.failure.unwrap_or_default();
        let state = match self.state.as_str() {
            "passed" if is_spec => State::Passed,
            "skipped" if is_spec && !failure.message.is_empty() => State::Skipped,
            "passed" | "skipped" | "pending" => return None,
            // failed, panicked, timedout, interrupted, aborted, and what a later ginkgo may invent.
            _ => State::Failed,
        };
        let mut words = self.container_hierarchy_texts.unwrap_or_default();
        words.push(if is_spec { self.leaf_node_text } else { format!("({})", self.leaf_node_type) });
        let reason = match (state, failure.message.is_empty()) {
            (State::Passed, _) => String::new(),
            (State::Skipped | State::Failed, true) => self.state,
            (State::Skipped | State::Failed, false) => {
                [failure.message, failure.forwarded_panic.unwrap_or_default()].join("\n").trim().to_owned()
            }
        };
        Some(Spec { name: words.join(" "), state, took: Duration::from_nanos(self.run_time), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"[{"SuitePath": "/suite", "SpecReports": [
        {"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "", "State": "passed",
         "RunTime": 5000000},
        {"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": "should work",
         "State": "passed", "RunTime": 12300000000},
        {"ContainerHierarchyTexts": ["[sig-network] DNS"], "LeafNodeType": "It", "LeafNodeText": "should resolve on GCE",
         "State": "skipped", "RunTime": 100000000, "Failure": {"Message": "only on gce"}},
        {"ContainerHierarchyTexts": ["[sig-apps] Jobs"], "LeafNodeType": "It", "LeafNodeText": "were not asked for",
         "State": "skipped", "RunTime": 0},
        {"ContainerHierarchyTexts": ["[sig-network] Proxy"], "LeafNodeType": "It", "LeafNodeText": "should time out",
         "State": "timedout", "RunTime": 0, "Failure": {"Message": "spec timed out\n\nafter 5m"}}
    ]}]"#;

    #[test]
    fn chosen_specs_are_counted_and_the_others_are_not() {
        let outcome = Outcome::read(REPORT.as_bytes()).unwrap();
        let text = outcome.to_string();
        assert!(text.ends_with("\n1 passed, 1 failed, 1 skipped"), "{text}");
        assert!(text.starts_with("passed    12.3 s  [sig-network] Services should work\n"), "{text}");
        assert!(text.contains("only on gce") && text.contains("after 5m") && !text.contains("[sig-apps]"), "{text}");
        assert!(!outcome.is_success());
    }

    #[test]
    fn a_failed_set_up_is_a_failure() {
        let json = r#"[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "failed", "Failure": {"Message": "no nodes"}}]}]"#;
        let outcome = Outcome::read(json.as_bytes()).unwrap();
        assert_eq!(outcome.count(State::Failed), 1);
        assert_eq!(outcome.specs[0].name, "(BeforeSuite)");
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        assert!(Outcome::read(b"{}").is_err());
        assert!(Outcome::read(b"[]").unwrap().specs.is_empty());
    }
}
