//! Runs specs of the upstream e2e suite on a lab that is up, by ginkgo, and tells how far it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::report::Outcome;
use crate::lab::Lab;
use crate::layout::Member;
use crate::programs::{self, ConformancePrograms, build};
use crate::{images, netns};

/// The file that ginkgo writes below the output folder.
const REPORT: &str = "report.json";

/// How long ginkgo has after its time limit to interrupt the specs and to write its report.
const GRACE: Duration = Duration::from_secs(240);

/// Which specs.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    /// Ginkgo's label filter.
    pub(super) labels: Option<String>,
    /// Names that match this regular expression.
    pub(super) focus: Option<String>,
    /// But not those that match this one.
    pub(super) skip: Option<String>,
}

impl Selection {
    /// The specs of these names.
    pub(super) fn named<'a>(names: impl IntoIterator<Item = &'a String>) -> Self {
        let names: Vec<String> = names.into_iter().map(|name| escape(name)).collect();
        Self { focus: Some(format!("({})$", names.join("|"))), ..Self::default() }
    }

    fn flags(&self, prefix: &str) -> Vec<String> {
        let flags = [("label-filter", &self.labels), ("focus", &self.focus), ("skip", &self.skip)];
        flags.into_iter().filter_map(|(flag, value)| Some(format!("--{prefix}{flag}={}", value.as_ref()?))).collect()
    }
}

/// How they are run.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) selection: Selection,
    /// How many at once.
    pub(super) procs: u8,
    /// When to give up.
    pub(super) minutes: u32,
    /// Where the tests themselves run.
    pub(super) from: Member,
    /// Log and report go there; what is in it is removed.
    pub(super) output: &'a Path,
}

/// Names of the specs that a selection means; asks the suite itself, without a cluster.
pub(super) fn list(suite: &ConformancePrograms, selection: &Selection) -> Result<BTreeSet<String>> {
    let folder = tempfile::tempdir().context("making a folder for the list of specs")?;
    let report = folder.path().join(REPORT);
    let mut command = Command::new(suite.bin.join("e2e.test"));
    command.args(["--ginkgo.dry-run", "--ginkgo.silence-skips"]).args(selection.flags("ginkgo."));
    command.arg(format!("--ginkgo.json-report={}", report.display())).current_dir(folder.path());
    crate::run::run(&mut command).context("listing the specs of the suite")?;
    let json = fs::read(&report).with_context(|| format!("reading {}", report.display()))?;
    Ok(Outcome::read(&json)?.specs.into_iter().map(|spec| spec.name).collect())
}

/// Runs specs. Failed ones are no error but in the outcome.
///
/// # Errors
/// If the suite does not start or leaves no report.
pub(super) fn run(
    lab: &Lab,
    suite: &ConformancePrograms,
    run: &Run<'_>,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Outcome> {
    load_images(lab, suite, progress)?;
    if run.output.exists() {
        fs::remove_dir_all(run.output).with_context(|| format!("removing {}", run.output.display()))?;
    }
    fs::create_dir_all(run.output).with_context(|| format!("creating {}", run.output.display()))?;
    let report = run.output.join(REPORT);
    let log = run.output.join("ginkgo.log");
    let command = ginkgo(lab, suite, run)?;
    progress(&format!("running the specs; they tell all in {}", log.display()));
    if run.from == Member::Remote {
        lab.let_remote_reach_pods()?;
    }
    let netns = netns::open(&lab.layout().netns(run.from))?;
    let mut tally = Tally { limit: Duration::from_secs(60 * u64::from(run.minutes)) + GRACE, ..Tally::default() };
    let ended = netns::within(netns, || build::run_watched(command, "running the specs", &log, progress, &mut tally));
    let Ok(json) = fs::read(&report) else {
        // It did not come to its end: what it said last is the reason.
        return Err(ended.err().with_context(|| format!("ginkgo left no {}", report.display())).unwrap_or_else(|e| e));
    };
    let outcome = Outcome::read(&json).with_context(|| format!("reading {}", report.display()))?;
    match ended {
        // With no failed spec to show for it, the suite itself failed.
        Err(error) if outcome.is_success() => Err(error),
        Ok(()) | Err(_) => Ok(outcome),
    }
}

/// Puts the suite's images on all nodes, once for each lab.
fn load_images(lab: &Lab, suite: &ConformancePrograms, progress: &mut (dyn FnMut(&str) + Send)) -> Result<()> {
    let cluster = programs::Programs { bin: lab.record().bin.clone() };
    let archive = images::conformance_images(&cluster, suite, progress)?;
    let marker = lab.layout().state().join("conformance-images");
    let loaded = fs::read_to_string(&marker).unwrap_or_default();
    if Path::new(&loaded) != archive {
        progress("loading the suite's images on all nodes");
        lab.import(&archive)?;
        fs::write(&marker, archive.display().to_string()).with_context(|| format!("writing {}", marker.display()))?;
    }
    Ok(())
}

fn ginkgo(lab: &Lab, suite: &ConformancePrograms, run: &Run<'_>) -> Result<Command> {
    let kubeconfig = lab.layout().kubeconfig("admin").display().to_string();
    let mut command = Command::new(suite.bin.join("ginkgo"));
    command
        .arg(format!("--procs={}", run.procs))
        .args(["--no-color", "-v"])
        .arg(format!("--json-report={REPORT}"))
        .arg(format!("--output-dir={}", run.output.display()))
        .arg(format!("--timeout={}m", run.minutes))
        .args(run.selection.flags(""));
    let path = std::env::join_paths(std::iter::once(lab.record().bin.clone()).chain(search_path()))
        .context("making a search path with the lab's programs")?;
    command
        .arg(suite.bin.join("e2e.test"))
        .arg("--")
        .arg(format!("--kubeconfig={kubeconfig}"))
        .arg("--provider=skeleton")
        .arg(format!("--kubectl-path={}", lab.program("kubectl").display()))
        .arg("--allowed-not-ready-nodes=0")
        .arg(format!("--num-nodes={}", lab.record().nodes))
        .arg("--node-os-distro=debian")
        .env("PATH", path)
        .env("KUBECONFIG", kubeconfig)
        .current_dir(run.output);
    Ok(command)
}

fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// A text as a regular expression that means just this text.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// Counts what ginkgo says: a line for each spec that is done (`• [1.2 seconds]`, `• [FAILED] [1.2 seconds]`,
/// `S [SKIPPED] [0.1 seconds]`), and in the next line its name.
#[derive(Debug, Default)]
struct Tally {
    limit: Duration,
    total: Option<u32>,
    done: u32,
    failed: u32,
    /// How the spec ended whose name comes next.
    names_next: Option<String>,
}

impl build::Watch for Tally {
    fn read(&mut self, line: &str) -> Option<String> {
        if let Some(ended) = self.names_next.take() {
            return Some(format!("{ended}: {line}"));
        }
        let (count, rest) = line.split_once(" of ").unwrap_or_default();
        if let (Some(count), true) = (count.strip_prefix("Will run "), rest.ends_with(" specs")) {
            self.total = count.parse().ok();
        }
        let ended = line.strip_prefix("• [").or_else(|| line.strip_prefix("S ["))?;
        self.done += 1;
        let (word, _) = ended.split_once(']').unwrap_or_default();
        // Without a word: the time, and so passed.
        if word.starts_with(|first: char| first.is_ascii_uppercase()) && word != "SKIPPED" {
            self.failed += 1;
            self.names_next = Some(word.to_lowercase());
        }
        None
    }

    fn summary(&self) -> Option<String> {
        let total = self.total.map_or_else(|| "?".to_owned(), |total| total.to_string());
        Some(format!("{} of {total} done, {} failed", self.done, self.failed))
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn limit(&self) -> Option<Duration> {
        Some(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::build::Watch as _;
    use super::*;

    #[test]
    fn progress_counts_specs_and_tells_failures_at_once() {
        let mut tally = Tally::default();
        let said: Vec<String> = [
            "Will run 4 of 7579 specs",
            "SSSSSSSSS",
            "• [9.260 seconds]",
            "[sig-network] Services should work",
            "• [FAILED] [47.632 seconds]",
            "[sig-network] Networking [It] should check urls",
            "S [SKIPPED] [0.107 seconds]",
        ]
        .iter()
        .filter_map(|line| tally.read(line))
        .collect();
        assert_eq!(said, ["failed: [sig-network] Networking [It] should check urls"]);
        assert_eq!(tally.summary().unwrap(), "3 of 4 done, 1 failed");
    }

    #[test]
    fn names_are_taken_literally() {
        let selection = Selection::named(&["[sig-network] A (b)".to_owned(), "c.d".to_owned()]);
        assert_eq!(selection.flags("ginkgo."), [r"--ginkgo.focus=(\[sig-network\] A \(b\)|c\.d)$"]);
    }
}
