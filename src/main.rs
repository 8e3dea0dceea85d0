//! Parses the command line, runs the sub-command, turns its error into an exit code.

use std::process::ExitCode;

use clap::Parser;
use steelyard::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().run().await
}
