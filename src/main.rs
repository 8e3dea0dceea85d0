//! Parses the command line, runs the sub-command, turns its error into an exit code.

use std::process::ExitCode;

use clap::Parser;
use steelyard::cli::Cli;
use steelyard::runtime::heap;

fn main() -> ExitCode {
    heap::keep_small();
    run()
}

#[tokio::main]
async fn run() -> ExitCode {
    Cli::parse().run().await
}
