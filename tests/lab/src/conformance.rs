//! Runs specs of the upstream e2e suite on a lab: the tests that Kubernetes judges itself by, judging ours.

mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::lab::Lab;
use crate::layout::Member;
use crate::programs::{ConformancePrograms, build};
use crate::{images, netns, programs};
pub use report::{Outcome, Spec, State};

/// Which specs are run when nobody says: those of the network that need no special cluster, and disturb nobody.
const DEFAULT_LABELS: &str = "sig-network && Feature: isEmpty && !Disruptive && !Serial && !Slow";

/// The file that ginkgo writes below the output folder.
const REPORT: &str = "report.json";

/// Which specs to run, and how.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Run the specs whose name matches this regular expression. Brackets of names must be escaped.
    #[arg(long)]
    pub focus: Option<String>,
    /// Leave out the specs whose name matches this regular expression.
    #[arg(long)]
    pub skip: Option<String>,
    /// Ginkgo's label filter, "sig-network && Feature:LoadBalancer"; without it and without --focus, the network specs that need
    /// no special cluster.
    #[arg(long)]
    pub label_filter: Option<String>,
    /// How many specs run at once; each takes 300 MB.
    #[arg(long, default_value_t = 4)]
    pub procs: u8,
    /// When to give up, in minutes.
    #[arg(long, default_value_t = 60)]
    pub timeout: u32,
    /// Where the tests run: `control`, or `remote`, whose address is far from the nodes' as the load-balancer specs need it.
    #[arg(long, default_value = "control")]
    pub from: Member,
}

/// Runs specs on a lab that is up. The suite and its images are built and loaded first if they are not there.
///
/// # Errors
/// When the suite cannot be built or does not start, and when no spec matches. Failed specs are no error but in the outcome.
pub fn run(lab: &Lab, options: &Options, progress: &mut (dyn FnMut(&str) + Send)) -> Result<Outcome> {
    let suite = programs::ensure_conformance(progress)?;
    load_images(lab, &suite, progress)?;
    let output = lab.layout().logs().join("conformance");
    if output.exists() {
        fs::remove_dir_all(&output).with_context(|| format!("removing {}", output.display()))?;
    }
    fs::create_dir_all(&output).with_context(|| format!("creating {}", output.display()))?;
    let report = output.join(REPORT);
    let log = output.join("ginkgo.log");
    let command = ginkgo(lab, &suite, options, &output)?;
    progress(&format!("running the specs; they tell all in {}", log.display()));
    if options.from == Member::Remote {
        lab.let_remote_reach_pods()?;
    }
    let netns = netns::open(&lab.layout().netns(options.from))?;
    let ended = netns::within(netns, || build::run(command, "running the specs", &log, progress));
    let Ok(json) = fs::read(&report) else {
        // It did not come to its end: what it said last is the reason.
        return Err(ended.err().with_context(|| format!("ginkgo left no {}", report.display())).unwrap_or_else(|e| e));
    };
    let outcome = Outcome::read(&json).with_context(|| format!("reading {}", report.display()))?;
    if outcome.specs.is_empty() {
        bail!("no spec of the suite matches");
    }
    match ended {
        // With no failed spec to show for it, the suite itself failed.
        Err(error) if outcome.count(State::Failed) == 0 => Err(error),
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

fn ginkgo(lab: &Lab, suite: &ConformancePrograms, options: &Options, output: &Path) -> Result<Command> {
    let kubeconfig = lab.layout().kubeconfig("admin").display().to_string();
    let mut command = Command::new(suite.bin.join("ginkgo"));
    command
        .arg(format!("--procs={}", options.procs))
        .args(["--no-color", "-v"])
        .arg(format!("--json-report={REPORT}"))
        .arg(format!("--output-dir={}", output.display()))
        .arg(format!("--timeout={}m", options.timeout));
    for (flag, value) in [("focus", &options.focus), ("skip", &options.skip), ("label-filter", &labels(options))] {
        if let Some(value) = value {
            command.arg(format!("--{flag}={value}"));
        }
    }
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
        .current_dir(output);
    Ok(command)
}

fn labels(options: &Options) -> Option<String> {
    match (&options.label_filter, &options.focus) {
        (Some(filter), _) => Some(filter.clone()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_LABELS.to_owned()),
    }
}

fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}
