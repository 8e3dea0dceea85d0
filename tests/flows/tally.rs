//! Counts results and says what is not passed, and why.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use serde_json::Value;

use super::title_of;

/// Results so far.
#[derive(Debug, Default)]
pub struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    /// Counts a case that holds or fails with its reason.
    pub fn record(&mut self, name: impl fmt::Display, result: Result<(), String>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(reason) => self.fail(name, reason),
        }
    }

    /// Counts a case that fails.
    pub fn fail(&mut self, name: impl fmt::Display, reason: impl fmt::Display) {
        self.failed += 1;
        say(format_args!("FAILED  {name}: {reason}"));
    }

    /// Counts a scenario that cannot be read or staged: it fails as often as it has flows.
    pub fn fail_all_flows(&mut self, title: &str, case: &Value, error: &str) {
        match case.get("flows").and_then(Value::as_array) {
            Some(flows) if !flows.is_empty() => {
                for flow in flows {
                    self.fail(format_args!("{title}: {}", title_of(flow)), error);
                }
            }
            Some(_) | None => self.fail(title, error),
        }
    }

    /// Counts a case that this runner does not try.
    pub fn skip(&mut self, name: impl fmt::Display, reason: impl fmt::Display) {
        self.skipped += 1;
        say(format_args!("skipped {name}: {reason}"));
    }

    /// Passed, failed, skipped.
    pub const fn counts(&self) -> (usize, usize, usize) {
        (self.passed, self.failed, self.skipped)
    }

    /// Prints the last line. A file without any case has not passed.
    pub fn finish(self) -> ExitCode {
        let Self { passed, failed, skipped } = self;
        say(format_args!("{passed} passed, {failed} failed, {skipped} skipped"));
        if failed == 0 && passed + skipped > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn say(line: fmt::Arguments<'_>) {
    // A closed pipe must not turn into a panic; the exit code still tells.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
