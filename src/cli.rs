//! The command line: one sub-command per file.

pub mod cluster;
pub mod controller;
pub mod crds;
pub mod forwarding;
pub mod node;
pub mod prepare;
pub mod trace;

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::runtime::telemetry::{self, LogFormat};

/// A load balancer for bare-metal Kubernetes: addresses, announcement and forwarding in one binary.
#[derive(Debug, Parser)]
#[command(name = "steelyard", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to log: a level, or directives such as `info,steelyard::speaker=debug`
    #[arg(long, global = true, env = "STEELYARD_LOG", default_value = "info,kube=warn", value_name = "FILTER")]
    log: String,

    /// How log lines look
    #[arg(long, global = true, env = "STEELYARD_LOG_FORMAT", default_value = "text", value_enum)]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Command,
}

/// The ConfigMap with the decision where nobody names another.
const DECISION: &str = "steelyard-datapath";

/// Whether Steelyard forwards Service traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DatapathMode {
    /// If no other service proxy does; the controller decides it once for the cluster.
    Auto,
    /// It does, beside or instead of any other.
    On,
    /// Another service proxy does.
    Off,
}

#[derive(Debug, Subcommand)]
enum Command {
    Controller(controller::Controller),
    Node(node::Node),
    Prepare(prepare::Prepare),
    Crds(crds::Crds),
    Trace(trace::Trace),
}

impl Cli {
    /// Runs the sub-command; its error goes to stderr with every cause.
    pub async fn run(self) -> ExitCode {
        if let Err(error) = telemetry::install(&self.log, self.log_format) {
            return fail(&format!("--log: {error}"));
        }
        let result: Result<ExitCode, Box<dyn Error>> = match self.command {
            Command::Controller(controller) => controller.run().await.map(succeeded).map_err(Into::into),
            Command::Node(node) => node.run().await.map(succeeded).map_err(Into::into),
            Command::Prepare(prepare) => prepare.run().map(succeeded).map_err(Into::into),
            Command::Crds(crds) => crds.run().map(succeeded).map_err(Into::into),
            Command::Trace(trace) => trace.run().await.map_err(Into::into),
        };
        match result {
            Ok(code) => code,
            Err(error) => fail(&telemetry::chain(error.as_ref())),
        }
    }
}

const fn succeeded((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

fn fail(message: &str) -> ExitCode {
    // Nothing is left to tell if stderr is closed.
    let _written = writeln!(std::io::stderr(), "steelyard: {message}");
    ExitCode::FAILURE
}
