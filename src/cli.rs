//! The command line: one sub-command per file.

use clap::{Parser, Subcommand};

use crate::controller::metrics::Metrics;
use crate::runtime::shutdown::shutdown;

pub mod controller;
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
    Controller(controller::Controller),
    Crds(crds::Crds),
}

impl Cli {
    /// Runs the sub-command.
    ///
    /// # Errors
    /// Whatever the sub-command reports.
    pub fn run(self) -> Result<(), Box<dyn std::error::Error>> {
        match self.command {
            Command::Controller(controller) => {
                tracing_subscriber::fmt()
                    .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                    .with_writer(std::io::stderr)
                    .init();
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
                runtime.block_on(async {
                    let (trigger, requested) = shutdown();
                    let signals = tokio::spawn(trigger.request_on_signal());
                    let result = controller.run(Metrics::default(), requested).await;
                    signals.abort();
                    result
                })?;
                Ok(())
            }
            Command::Crds(crds) => crds.run().map_err(Into::into),
        }
    }
}
