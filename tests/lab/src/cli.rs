//! What the lab understands on the command line.

mod exec;
mod report;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use steelyard_lab::{Datapath, Failure, Lab, LabName, Layout, Options, Place, Progress};
use steelyard_lab::{conformance, demo, images, programs};

const EXAMPLES: &str = "\
Examples:
  steelyard-lab up                        three nodes, Steelyard installed
  steelyard-lab up --kube-proxy           the same with the real kube-proxy, to compare
  steelyard-lab kubectl get pods -A       kubectl, with the administrator's rights
  steelyard-lab helm list -A              Helm, likewise
  steelyard-lab exec client -- curl -s http://192.0.2.220/
  steelyard-lab exec node1 -- nft list ruleset
  steelyard-lab fail node2 power-off      and heal node2
  steelyard-lab load                      the newly built binary onto all nodes
  steelyard-lab logs node1 kubelet        what a program of a machine said
  steelyard-lab specs --focus 'Services should be able to create a functioning NodePort service'
  steelyard-lab conformance               all of them, on labs of its own
  steelyard-lab down";

/// A real Kubernetes cluster in network namespaces, for trying and testing Steelyard.
///
/// Needs root, and changes nothing of the machine outside namespaces, cgroups and folders named after the lab.
#[derive(Debug, Parser)]
#[command(name = "steelyard-lab", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Name of the lab; labs of different names run side by side. Default: `STEELYARD_LAB`, else `lab`.
    #[arg(long, global = true)]
    name: Option<LabName>,
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Bring the lab up; what a crashed run of that name left is cleaned first.
    ///
    /// The first time, the programs are built from their published sources, which takes some minutes.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// Install nothing: nobody forwards Service traffic, so CoreDNS does not become ready.
        #[arg(long, conflicts_with = "kube_proxy")]
        without_datapath: bool,
        /// Let the real kube-proxy (nftables mode) forward Service traffic instead of Steelyard.
        #[arg(long)]
        kube_proxy: bool,
    },
    /// Take the lab down. Nothing is left but its logs.
    Down {
        /// Remove its logs too.
        #[arg(long)]
        purge: bool,
    },
    /// What runs, and what is broken.
    Status,
    /// Run kubectl with the administrator's rights.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// Given to kubectl as they are.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run Helm with the administrator's rights.
    #[command(disable_help_flag = true)]
    Helm {
        /// Given to Helm as they are.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command somewhere in the lab.
    ///
    /// On a node or `control` it sees that machine's processes and mounts; on client, remote and router it sees this
    /// machine with another network; in a pod it is `kubectl exec`.
    Exec {
        /// node1, node2, …, control, client, remote, router, or [namespace/]pod.
        place: Place,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Break a node. Failures add up.
    Fail {
        /// node1, node2, …
        node: String,
        /// How.
        failure: Failure,
    },
    /// Undo all failures of a node.
    Heal {
        /// node1, node2, …
        node: String,
    },
    /// Put a newly built Steelyard on all nodes and restart it there.
    Load {
        /// The binary; default: `STEELYARD_BIN`, else the static one built from this checkout.
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// What the programs of the lab's machines said; without a name, which logs there are.
    ///
    /// For pods: `steelyard-lab kubectl logs`.
    Logs {
        /// A machine (node1, control) or a program (kubelet, etcd), or one of each.
        #[arg(num_args = 0..=2)]
        names: Vec<String>,
        /// How many lines from the end of each log.
        #[arg(long, default_value_t = 50)]
        lines: usize,
    },
    /// Build all programs and images of the lab ahead of its first use.
    Build,
    /// Build our container image; prints where its archive is.
    Image,
    /// Show Steelyard at work: raise a lab, install, dial, power a node off, take all down; in plain words.
    Demo {
        /// Leave the lab up.
        #[arg(long)]
        keep: bool,
    },
    /// Run specs of the upstream e2e suite on the lab that is up.
    Specs(conformance::SpecOptions),
    /// Judge Steelyard by the upstream e2e suite, on labs of its own; exit code 0 if nothing failed that passes with
    /// kube-proxy, and nothing without a known cause.
    Conformance(conformance::Options),
    /// PID 1 of the lab's machines.
    #[command(hide = true)]
    Init {
        /// What to run.
        spec: PathBuf,
    },
    /// Takes the lab down when its standard input ends.
    #[command(hide = true)]
    Guardian,
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let name = self.name.map_or_else(LabName::from_env, Ok)?;
        match self.command {
            Sub::Up { nodes, without_datapath, kube_proxy } => {
                let datapath = match (without_datapath, kube_proxy) {
                    (true, _) => Datapath::None,
                    (false, true) => Datapath::KubeProxy,
                    (false, false) => Datapath::Steelyard,
                };
                let progress = Progress::new();
                let lab = Lab::start(&Options { name, nodes, datapath }, &progress)?;
                progress
                    .say(&format!("lab {} is up; `steelyard-lab --help` says what to do with it", lab.layout().name()));
            }
            Sub::Down { purge: false } => steelyard_lab::down(&Layout::from_env(name)?)?,
            Sub::Down { purge: true } => steelyard_lab::purge(&Layout::from_env(name)?)?,
            Sub::Status => report::status(&Layout::from_env(name)?)?,
            Sub::Kubectl { arguments } => return exec::in_control(&Lab::attach(name)?, "kubectl", &arguments),
            Sub::Helm { arguments } => return exec::in_control(&Lab::attach(name)?, "helm", &arguments),
            Sub::Exec { place, command } => return exec::at(&Lab::attach(name)?, &place, &command),
            Sub::Fail { node, failure } => Lab::attach(name)?.fail(&node, failure)?,
            Sub::Heal { node } => Lab::attach(name)?.heal(&node)?,
            Sub::Load { binary } => {
                let progress = Progress::new();
                let built = || steelyard_lab::steelyard_binary(&mut |text| progress.say(text));
                let binary = binary.map_or_else(built, Ok)?;
                Lab::attach(name)?.load(&binary)?;
            }
            Sub::Logs { names, lines } => report::logs(&Layout::from_env(name)?, &names, lines)?,
            Sub::Build => {
                let progress = Progress::new();
                let mut say = |text: &str| progress.say(text);
                images::ensure(&programs::ensure(&mut say)?, &mut say)?;
                progress.say("programs and images are there");
            }
            Sub::Image => {
                let progress = Progress::new();
                let binary = steelyard_lab::steelyard_binary(&mut |text| progress.say(text))?;
                let archive = images::steelyard(&binary, images::STEELYARD)?;
                writeln!(std::io::stdout().lock(), "{}", archive.display())?;
            }
            Sub::Demo { keep } => demo::demo(name, keep)?,
            Sub::Conformance(options) => {
                let verdict = conformance::judge(&name, &options, &Progress::new())?;
                writeln!(std::io::stdout().lock(), "{verdict}")?;
                return Ok(if verdict.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Sub::Specs(options) => {
                let progress = Progress::new();
                let outcome = conformance::run(&Lab::attach(name)?, &options, &mut |text| progress.say(text))?;
                writeln!(std::io::stdout().lock(), "{outcome}")?;
                return Ok(if outcome.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Sub::Init { spec } => steelyard_lab::init::main(&spec)?,
            Sub::Guardian => steelyard_lab::guard(&Layout::from_env(name)?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
