//! Judges Steelyard by the upstream e2e suite, the tests that Kubernetes judges itself by; and kube-proxy as the control.
//!
//! [`judge`] does all of it on labs of its own, in parts (`parts`), and writes the page that compares the two (`document`).
//! [`run`] runs chosen specs on a lab that is up.

mod causes;
mod document;
mod ginkgo;
mod parts;
mod report;
mod results;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::cache::Key;
use crate::images::{identity, source_root};
use crate::install::steelyard_binary;
use crate::lab::{Datapath, Lab};
use crate::layout::{LabName, Member};
use crate::programs::{self, ConformancePrograms, KUBERNETES_VERSION};
use crate::progress::Progress;
use causes::Causes;
use ginkgo::{Run, Selection};
use parts::{LEFT_OUT, PARTS, Part, QUICK};
pub use report::{Outcome, Spec, State};
use results::{Fault, LeftOut, Results, faults};

/// Where the suite looks for a service proxy, and so the namespace of the chart.
const SYSTEM: &str = "kube-system";

/// More failures than this are not run again: they have another reason than a slow machine.
const MOST_AGAIN: usize = 25;

/// How many specs a second attempt runs at once: so few that none disturbs the other.
const PROCS_AGAIN: u8 = 2;

/// The service proxy that is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// Ours; there is no kube-proxy.
    Steelyard,
    /// The control: the real kube-proxy in nftables mode, and of ours only what load-balancer addresses need.
    KubeProxy,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steelyard => "steelyard",
            Self::KubeProxy => "kube-proxy",
        })
    }
}

/// What is judged, and how much of it. A full run writes the documents, one that is narrowed does not.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Which service proxy.
    #[arg(long, default_value = "steelyard")]
    pub proxy: Proxy,
    /// Only the specs whose name matches this regular expression. Brackets of names must be escaped.
    #[arg(long)]
    pub focus: Option<String>,
    /// Only a choice of some five minutes, of every group something.
    #[arg(long, conflicts_with = "focus")]
    pub quick: bool,
    /// Only this part: network, load-balancers or six-nodes.
    #[arg(long)]
    pub part: Option<String>,
    /// How many specs run at once; each takes 300 MB.
    #[arg(long, default_value_t = 5)]
    pub procs: u8,
    /// How many nodes the labs have; else what each part needs.
    #[arg(long)]
    pub nodes: Option<u8>,
    /// Take over what parts came to in an earlier run of the same binary that was interrupted later.
    #[arg(long)]
    pub resume: bool,
}

impl Options {
    fn is_full(&self) -> bool {
        self.focus.is_none() && !self.quick && self.part.is_none() && self.nodes.is_none()
    }
}

/// What a judgement came to.
#[derive(Debug)]
pub struct Verdict {
    /// All specs.
    pub outcome: Outcome,
    /// What speaks against it, each in a line.
    pub faults: Vec<String>,
    table: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table)
    }
}

/// Builds all that is needed, runs the parts on labs of this name, one after the other, and judges.
///
/// # Errors
/// If there is nothing to run, or the suite, the images or our binary cannot be built. A lab that does not come up is a failure
/// of the specs that should have run on it.
pub fn judge(name: &LabName, options: &Options, progress: &Progress) -> Result<Verdict> {
    let mut say = |text: &str| progress.say(text);
    let causes = Causes::read()?;
    let suite = programs::ensure_conformance(&mut say)?;
    let planned = plan(&suite, options)?;
    let binary = steelyard_binary(&mut say)?;
    let judge = Judge { name, options, progress, suite: &suite, causes: &causes, binary: &binary };
    let mut outcome = Outcome::default();
    // Parts with the same number of nodes share a lab.
    let mut rest = planned.as_slice();
    while let Some((first, _)) = rest.first() {
        let nodes = judge.nodes(first);
        let (these, others) = rest.split_at(rest.iter().take_while(|(part, _)| judge.nodes(part) == nodes).count());
        outcome = outcome.and(judge.on_one_lab(nodes, these)?);
        rest = others;
    }

    let documents = source_root()?.join("docs/conformance");
    if options.is_full() {
        let results = judge.results(outcome.clone())?;
        results.write(&documents)?;
        let [ours, control] = [Proxy::Steelyard, Proxy::KubeProxy].map(|proxy| Results::read(&documents, proxy));
        let page = documents.with_extension("md");
        let text = document::markdown(ours?.as_ref(), control?.as_ref(), &causes);
        fs::write(&page, text).with_context(|| format!("writing {}", page.display()))?;
        progress.say(&format!("written: {}", page.display()));
    }
    let control = Results::read(&documents, Proxy::KubeProxy)?;
    Ok(verdict(outcome, options.proxy, control.as_ref(), &causes))
}

fn verdict(outcome: Outcome, proxy: Proxy, control: Option<&Results>, causes: &Causes) -> Verdict {
    let control = control.map(|results| &results.specs);
    let faults: Vec<String> = faults(&outcome, proxy, control, causes)
        .into_iter()
        .map(|(spec, fault)| match fault {
            Fault::PassesWithControl => format!("passes with kube-proxy: {}", spec.name),
            Fault::UnknownCause => format!("failed without a known cause: {}", spec.name),
        })
        .collect();
    let mut table = String::new();
    for spec in &outcome.specs {
        table.push_str(&format!("{spec}\n"));
        if let Some(cause) = causes.of(spec, proxy) {
            table.push_str(&format!("                  known: {cause}\n"));
        }
    }
    for fault in &faults {
        table.push_str(&format!("{fault}\n"));
    }
    // The total is the last line.
    let total = outcome.to_string();
    table.push_str(total.lines().last().unwrap_or_default());
    Verdict { outcome, faults, table }
}

/// The parts that have something to run, with the names of their specs.
fn plan(suite: &ConformancePrograms, options: &Options) -> Result<Vec<(&'static Part, BTreeSet<String>)>> {
    let wanted: Option<BTreeSet<String>> = match (&options.focus, options.quick) {
        (Some(focus), _) => {
            Some(ginkgo::list(suite, &Selection { focus: Some(focus.clone()), ..Selection::default() })?)
        }
        (None, true) => Some(QUICK.iter().map(|name| (*name).to_owned()).collect()),
        (None, false) => None,
    };
    let parts = PARTS.iter().filter(|part| options.part.as_deref().is_none_or(|name| name == part.name));
    let mut planned = Vec::new();
    for part in parts {
        let mut names = ginkgo::list(suite, &part.selection())?;
        if let Some(wanted) = &wanted {
            names.retain(|name| wanted.contains(name));
        }
        if !names.is_empty() {
            planned.push((part, names));
        }
    }
    if options.quick && options.part.is_none() {
        let found = |name: &&str| planned.iter().any(|(_, names)| names.contains(*name));
        let unknown: Vec<&str> = QUICK.iter().copied().filter(|name| !found(name)).collect();
        ensure!(unknown.is_empty(), "the suite has no such specs: {}", unknown.join("; "));
    }
    ensure!(!planned.is_empty(), "no spec of the suite matches");
    Ok(planned)
}

struct Judge<'a> {
    name: &'a LabName,
    options: &'a Options,
    progress: &'a Progress,
    suite: &'a ConformancePrograms,
    causes: &'a Causes,
    binary: &'a Path,
}

impl Judge<'_> {
    fn nodes(&self, part: &Part) -> u8 {
        self.options.nodes.unwrap_or(part.nodes)
    }

    /// Runs parts on a lab that goes down afterwards.
    fn on_one_lab(&self, nodes: u8, parts: &[(&'static Part, BTreeSet<String>)]) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut lab = None;
        for (part, names) in parts {
            if let Some(done) = self.done_before(part, names)? {
                self.progress.say(&format!("{}: {} specs were run before", part.name, names.len()));
                outcome = outcome.and(done);
                continue;
            }
            if lab.is_none() {
                lab = Some(self.raise(nodes));
            }
            let ran = match &lab {
                Some(Ok(lab)) => self.part(lab, part, names),
                Some(Err(error)) => Err(anyhow::anyhow!("the lab did not come up: {error:#}")),
                None => Err(anyhow::anyhow!("there is no lab")),
            };
            let ran = match ran {
                Ok(ran) => {
                    let ran = ran.of_planned(names, "the run ended before it");
                    self.keep(part, names, &ran)?;
                    ran
                }
                // Of the lab, not of the specs: not kept, so that it is tried again.
                Err(error) => {
                    let why = format!("{error:#}");
                    self.progress.say(&format!("{}: {why}", part.name));
                    Outcome::default().of_planned(names, &why.chars().take(300).collect::<String>())
                }
            };
            outcome = outcome.and(ran);
        }
        Ok(outcome)
    }

    /// A lab with the proxy, a pool and its advertisement.
    fn raise(&self, nodes: u8) -> Result<Lab> {
        let (datapath, settings) = match self.options.proxy {
            // A spec restarts the pods of kube-system that are labelled so.
            Proxy::Steelyard => (Datapath::None, "podLabels.k8s-app=kube-proxy"),
            Proxy::KubeProxy => (Datapath::KubeProxy, "datapath.mode=off"),
        };
        self.progress.say(&format!("raising a lab of {nodes} nodes with {}", self.options.proxy));
        let options = crate::lab::Options { name: self.name.clone(), nodes, datapath };
        let lab = Lab::start_guarded(&options, self.progress)?;
        lab.install_steelyard_in(SYSTEM, self.binary, &["--set", settings])?;
        self.progress.say("Steelyard is installed");
        lab.wait_for_dns()?;
        lab.apply(POOL)?;
        Ok(lab)
    }

    /// Runs a part, and what failed of it a second time.
    fn part(&self, lab: &Lab, part: &Part, names: &BTreeSet<String>) -> Result<Outcome> {
        let folder = self.folder(part)?;
        self.progress.say(&format!("{}: {} specs", part.name, names.len()));
        let narrowed = self.options.focus.is_some() || self.options.quick;
        let selection = if narrowed { Selection::named(names) } else { part.selection() };
        let attempt = |selection, procs, output: &Path| {
            let run = Run { selection, procs, minutes: part.minutes, from: part.from, output };
            ginkgo::run(lab, self.suite, &run, &mut |text| self.progress.say(text))
        };
        let first = attempt(selection, self.options.procs, &folder.join("first"))?;
        let first = first.of_planned(names, "the run ended before it");
        let failed: BTreeSet<String> = first
            .specs
            .iter()
            .filter(|spec| spec.state == State::Failed && names.contains(&spec.name))
            .filter(|spec| self.causes.of(spec, self.options.proxy).is_none())
            .map(|spec| spec.name.clone())
            .collect();
        let outcome = if (1..=MOST_AGAIN).contains(&failed.len()) {
            self.diagnose(lab, &folder.join("diagnosis-first.txt"));
            self.progress.say(&format!(
                "{}: {} failed specs once more, {PROCS_AGAIN} at once",
                part.name,
                failed.len()
            ));
            let again = attempt(Selection::named(&failed), PROCS_AGAIN, &folder.join("again"))?;
            first.with_second_attempts(again.of_planned(&failed, "the second run ended before it"))
        } else {
            first
        };
        if !outcome.is_success() {
            self.diagnose(lab, &folder.join("diagnosis.txt"));
        }
        Ok(outcome)
    }

    /// Leaves what can be seen of the lab after a failure: it will be gone.
    fn diagnose(&self, lab: &Lab, path: &Path) {
        if let Err(error) = fs::write(path, lab.diagnose(&[SYSTEM])) {
            self.progress.say(&format!("writing {}: {error}", path.display()));
        }
    }

    /// Where a part's logs, reports and outcome are.
    fn folder(&self, part: &Part) -> Result<PathBuf> {
        Ok(source_root()?.join("target/conformance").join(self.options.proxy.to_string()).join(part.name))
    }

    /// What determines a part's outcome, but for luck.
    fn key(&self, names: &BTreeSet<String>) -> Result<String> {
        let key = Key::new("conformance part", 1).with(identity(self.binary)?);
        Ok(names
            .iter()
            .fold(key.with(self.options.nodes.unwrap_or_default().to_string()), |key, name| key.with(name))
            .finish())
    }

    fn keep(&self, part: &Part, names: &BTreeSet<String>, outcome: &Outcome) -> Result<()> {
        let folder = self.folder(part)?;
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let kept = Kept { key: self.key(names)?, outcome: outcome.clone() };
        let path = folder.join("outcome.json");
        fs::write(&path, serde_json::to_vec(&kept)?).with_context(|| format!("writing {}", path.display()))
    }

    /// What the part came to in an earlier run, if that may be taken for this one's.
    fn done_before(&self, part: &Part, names: &BTreeSet<String>) -> Result<Option<Outcome>> {
        let path = self.folder(part)?.join("outcome.json");
        if !self.options.resume || !path.exists() {
            return Ok(None);
        }
        let kept: Kept =
            serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("reading {}", path.display()))?;
        Ok((kept.key == self.key(names)?).then_some(kept.outcome))
    }

    fn results(&self, specs: Outcome) -> Result<Results> {
        let left_out = LEFT_OUT.iter().map(|(what, labels, why)| {
            let labels = Some(format!("sig-network && {labels}"));
            let count = ginkgo::list(self.suite, &Selection { labels, ..Selection::default() })?.len();
            Ok(LeftOut { what: (*what).to_owned(), count, why: (*why).to_owned() })
        });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
        Ok(Results {
            proxy: self.options.proxy,
            kubernetes: KUBERNETES_VERSION.0.to_owned(),
            steelyard: version()?,
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            // Without what a distribution appends.
            kernel: kernel.trim().split('-').next().unwrap_or_default().to_owned(),
            left_out: left_out.collect::<Result<_>>()?,
            specs,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: String,
    outcome: Outcome,
}

/// Our version, with the commit if git knows it.
fn version() -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    if std::env::var_os("STEELYARD_BIN").is_some() {
        return Ok(format!("{version}, of a binary that was given"));
    }
    let root = source_root()?;
    let git = |arguments: &[&str]| crate::run::run(Command::new("git").args(arguments).current_dir(&root)).ok();
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return Ok(version.to_owned()) };
    // Documents make no other program; the run before this one wrote some.
    let changes =
        git(&["status", "--porcelain", "--", "src", "charts", "Cargo.toml", "Cargo.lock"]).unwrap_or_default();
    let changed = if changes.is_empty() { "" } else { ", changed" };
    Ok(format!("{version} ({}{changed})", commit.trim()))
}

/// Addresses for the specs that ask for some.
const POOL: &str = r#"
apiVersion: steelyard.dev/v1alpha1
kind: IPAddressPool
metadata: {name: conformance}
spec: {addresses: [192.0.2.220-192.0.2.250, "2001:db8:1::f000/116"]}
---
apiVersion: steelyard.dev/v1alpha1
kind: L2Advertisement
metadata: {name: conformance}
"#;

/// Which specs to run on a lab that is up when nobody says: those of the network that need no special cluster, and disturb nobody.
const DEFAULT_LABELS: &str = "sig-network && Feature: isEmpty && !Disruptive && !Serial && !Slow";

/// Which specs to run on a lab that is up, and how.
#[derive(Debug, Clone, Args)]
pub struct SpecOptions {
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
pub fn run(lab: &Lab, options: &SpecOptions, progress: &mut (dyn FnMut(&str) + Send)) -> Result<Outcome> {
    let suite = programs::ensure_conformance(progress)?;
    let labels = match (&options.label_filter, &options.focus) {
        (Some(filter), _) => Some(filter.clone()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_LABELS.to_owned()),
    };
    let run = Run {
        selection: Selection { labels, focus: options.focus.clone(), skip: options.skip.clone() },
        procs: options.procs,
        minutes: options.timeout,
        from: options.from,
        output: &lab.layout().logs().join("conformance"),
    };
    let outcome = ginkgo::run(lab, &suite, &run, progress)?;
    if outcome.specs.is_empty() {
        bail!("no spec of the suite matches");
    }
    Ok(outcome)
}
