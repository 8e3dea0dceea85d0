//! The command line of the lab.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use steelyard_lab::{Datapath, Lab, LabName, Layout, Options, Progress};

/// A real Kubernetes cluster in network namespaces, for trying and testing Steelyard.
#[derive(Debug, Parser)]
#[command(name = "steelyard-lab", version)]
struct Cli {
    /// Name of the lab; labs of different names run side by side.
    #[arg(long, global = true, env = "STEELYARD_LAB", default_value = "lab")]
    name: LabName,
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Bring the lab up.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// Nobody forwards Service traffic.
        #[arg(long, conflicts_with = "kube_proxy")]
        without_datapath: bool,
        /// The real kube-proxy forwards Service traffic.
        #[arg(long)]
        kube_proxy: bool,
    },
    /// Take the lab down.
    Down,
    /// Run kubectl.
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// PID 1 of the lab's machines.
    #[command(hide = true)]
    Init {
        /// What to run.
        spec: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace that `Debug` would add: the chain of causes says more to whoever reads it.
            writeln!(std::io::stderr().lock(), "error: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Sub::Up { nodes, without_datapath, kube_proxy } => {
            let progress = Progress::new();
            let datapath = match (without_datapath, kube_proxy) {
                (true, _) => Datapath::None,
                (false, true) => Datapath::KubeProxy,
                (false, false) => Datapath::Steelyard,
            };
            Lab::start(&Options { name: cli.name, nodes, datapath }, &progress)?;
            Ok(())
        }
        Sub::Down => steelyard_lab::down(&Layout::from_env(cli.name)?),
        Sub::Kubectl { arguments } => {
            let lab = Lab::attach(cli.name)?;
            let out = lab.kubectl(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
            Ok(write!(std::io::stdout().lock(), "{out}")?)
        }
        Sub::Init { spec } => steelyard_lab::init::main(&spec),
    }
}
