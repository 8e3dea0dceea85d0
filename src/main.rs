//! Parses the command line, runs the sub-command, turns its error into an exit code.

use std::pin::Pin;
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
    // A box, or the program would have all of it several times: for each scheduler that there is in the runtime.
    let run: Pin<Box<dyn Future<Output = ExitCode>>> = Box::pin(Cli::parse().run());
    run.await
}
