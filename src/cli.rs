//! The command line: one sub-command per file.

use clap::{Parser, Subcommand};

pub mod crds;

/// Addresses, announcement and forwarding for LoadBalancer Services on bare metal.
#[derive(Debug, Parser)]
#[command(name = "steelyard", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Crds(crds::Crds),
}

impl Cli {
    /// Runs the sub-command.
    ///
    /// # Errors
    /// Whatever the sub-command reports.
    pub fn run(&self) -> Result<(), Box<dyn std::error::Error>> {
        match &self.command {
            Command::Crds(crds) => crds.run().map_err(Into::into),
        }
    }
}
