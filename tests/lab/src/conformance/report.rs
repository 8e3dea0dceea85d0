//! What ginkgo reports: what became of each spec, and why.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Characters of a reason that are kept, of its beginning and of its end; the log has all.
const KEPT: [usize; 2] = [180, 120];

/// What became of a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It ran, and all was as it should be.
    Passed,
    /// It found that this cluster is not made for it, and said why.
    Skipped,
    /// It failed, panicked, took too long, was interrupted or did not come to run.
    Failed,
}

/// One spec that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its full name, `[sig-network] Services should …`.
    pub name: String,
    /// What became of it.
    pub state: State,
    /// How long it took, in tenths of a second.
    pub tenths: u64,
    /// Why it was skipped or failed; of one that passed on its second attempt, why the first failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Whether it was run a second time, alone, because it had failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub second_attempt: bool,
}

/// What became of all specs that were chosen. Its text is a table whose last line is the total.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
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
        Ok(Self::of(reports.filter_map(SpecReport::into_spec).collect()))
    }

    fn of(mut specs: Vec<Spec>) -> Self {
        specs.sort_by(|one, other| (one.state, &one.name).cmp(&(other.state, &other.name)));
        Self { specs }
    }

    /// All of `planned`, and nothing else but set-up and tear-down that failed. What did not come to run has failed, since `why`.
    #[must_use]
    pub(super) fn of_planned(self, planned: &BTreeSet<String>, why: &str) -> Self {
        let mut specs: Vec<Spec> =
            self.specs.into_iter().filter(|spec| planned.contains(&spec.name) || spec.name.starts_with('(')).collect();
        let there: BTreeSet<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        specs.extend(planned.difference(&there).map(|name| Spec {
            name: name.clone(),
            state: State::Failed,
            tenths: 0,
            reason: format!("was not run: {why}"),
            second_attempt: false,
        }));
        Self::of(specs)
    }

    /// Puts the second attempts of failed specs in the place of the first. One that now passed keeps the reason of its failure.
    #[must_use]
    pub(super) fn with_second_attempts(self, again: Self) -> Self {
        let replace = |first: Spec| match again.specs.iter().find(|second| second.name == first.name) {
            Some(second) => {
                let reason = if second.reason.is_empty() { first.reason } else { second.reason.clone() };
                Spec { reason, second_attempt: true, ..second.clone() }
            }
            None => first,
        };
        Self::of(self.specs.into_iter().map(replace).collect())
    }

    /// Both.
    #[must_use]
    pub(super) fn and(mut self, other: Self) -> Self {
        self.specs.extend(other.specs);
        Self::of(self.specs)
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
            writeln!(f, "{spec}")?;
        }
        let [passed, failed, skipped] = [State::Passed, State::Failed, State::Skipped].map(|state| self.count(state));
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<7} {:>6} s  {}", self.state, self.seconds(), self.name)?;
        let again = match (self.second_attempt, self.state) {
            (false, _) => "",
            (true, State::Passed) => "passed on the second attempt; the first: ",
            (true, State::Failed | State::Skipped) => "also on a second attempt: ",
        };
        if self.reason.is_empty() { Ok(()) } else { write!(f, "\n                  {again}{}", self.reason) }
    }
}

impl Spec {
    /// How long it took, with one decimal.
    #[must_use]
    pub(super) fn seconds(&self) -> String {
        format!("{}.{}", self.tenths / 10, self.tenths % 10)
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

/// A failure's message in one line. The suite dumps Go values between the words that matter.
fn shorten(message: &str) -> String {
    let is_noise = |line: &str| {
        line.is_empty()
            || line == "Unexpected error:"
            || line == "occurred"
            || line == "{"
            || line == "}"
            || (line.starts_with('<') && line.ends_with(':'))
            || (line.starts_with('<') && line.ends_with('{'))
            || line.starts_with("{s:")
            || line.starts_with("s: ")
            || line.starts_with("err: ")
            || line.starts_with("msg: ")
    };
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !is_noise(line)).collect();
    let mut text = lines.join(" ");
    // Where this ran is nobody's business.
    if let Some(home) = std::env::var("HOME").ok().filter(|home| home.len() > 1) {
        text = text.replace(&home, "~");
    }
    let length = text.chars().count();
    let [head, tail] = KEPT;
    if length <= head + tail {
        return text;
    }
    let (begin, end): (String, String) =
        (text.chars().take(head).collect(), text.chars().skip(length - tail).collect());
    format!("{} … {}", begin.trim_end(), end.trim_start())
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
                shorten(&[failure.message, failure.forwarded_panic.unwrap_or_default()].join("\n"))
            }
        };
        let tenths = u64::try_from(Duration::from_nanos(self.run_time).as_millis() / 100).unwrap_or(u64::MAX);
        Some(Spec { name: words.join(" "), state, tenths, reason, second_attempt: false })
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

    fn spec(name: &str, state: State, reason: &str) -> Spec {
        Spec { name: name.into(), state, tenths: 12, reason: reason.into(), second_attempt: false }
    }

    #[test]
    fn what_was_planned_and_did_not_run_has_failed() {
        let planned = ["a".to_owned(), "b".to_owned()].into();
        let outcome = Outcome::of(vec![spec("a", State::Passed, ""), spec("a and more", State::Passed, "")]);
        let outcome = outcome.of_planned(&planned, "time was up");
        assert_eq!(outcome.to_string().lines().last(), Some("1 passed, 1 failed, 0 skipped"));
        assert_eq!(outcome.specs[1].reason, "was not run: time was up");
    }

    #[test]
    fn a_second_attempt_counts_and_is_told() {
        let first = Outcome::of(vec![spec("a", State::Failed, "too slow"), spec("b", State::Failed, "broken")]);
        let again = Outcome::of(vec![spec("a", State::Passed, ""), spec("b", State::Failed, "still broken")]);
        let text = first.with_second_attempts(again).to_string();
        assert!(text.contains("passed on the second attempt; the first: too slow"), "{text}");
        assert!(text.contains("also on a second attempt: still broken"), "{text}");
        assert!(text.ends_with("1 passed, 1 failed, 0 skipped"), "{text}");
    }

    #[test]
    fn reasons_are_one_line_without_dumps_of_go_values() {
        let message = "failed to dial:\n\nUnexpected error:\n    <*errors.errorString | 0xc0>: \n    no answer\n    {s: \"no answer\"}\noccurred";
        assert_eq!(shorten(message), "failed to dial: no answer");
        let long = shorten(&format!("begin{}end", "x".repeat(1000)));
        assert!(long.chars().count() < 310 && long.starts_with("begin") && long.ends_with("end"), "{long}");
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        assert!(Outcome::read(b"{}").is_err());
        assert!(Outcome::read(b"[]").unwrap().specs.is_empty());
    }
}
