//! Parses the command line, runs the sub-command, turns its error into an exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match steelyard::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steelyard: {error}");
            ExitCode::FAILURE
        }
    }
}
