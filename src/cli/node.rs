//! `steelyard node`: the agent of one node. Starts its parts, joins them by channels, and waits at the end for those that
//! have something to put in order.
//!
//! ```text
//!   watches ──▶ datapath ──programmed addresses──▶ speaker ──▶ ARP, NDP
//!      │                                             ▲
//!      └────────────▶ membership ──who is alive──────┘
//! ```

mod connections;
mod parts;
mod servers;
mod watches;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, ValueEnum};
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;

use self::connections::ConnectionArgs;
use self::parts::{Parts, ends, finish};
use self::watches::Watches;
use super::cluster::{ClusterArgs, ClusterError};
use super::forwarding::ForwardingArgs;
use super::prepare::put_back;
use crate::datapath;
use crate::datapath::apply::{ApplyError, Programmer};
use crate::datapath::health_check::proxy;
use crate::datapath::metrics::kube_proxy::KubeProxyMetrics;
use crate::datapath::reconciler::{Datapath, Outputs};
use crate::datapath::settings::Settings;
use crate::datapath::sweeper::{self, Sweeper};
use crate::membership::{self, Membership, Timing};
use crate::model::programmed::Programmed;
use crate::names::NodeName;
use crate::netlink::ctnetlink::ConntrackError;
use crate::netlink::links::{self, LinksError};
use crate::netlink::nf_tables::ConnectionError;
use crate::runtime::admin::{self, AdminError, Readiness};
use crate::runtime::limits::raise_open_files;
use crate::runtime::node_announcement;
use crate::runtime::node_report::NodeReports;
use crate::runtime::reconcile;
use crate::runtime::shutdown::{Shutdown, shutdown};
use crate::runtime::sysctls::{self, SysctlsError};
use crate::speaker::{self, Surroundings};

const EXAMPLES: &str = "\
Examples:
  steelyard node --node-name node1
      forward and announce, with the kubeconfig of the user
  steelyard node --datapath off
      announce only: another service proxy forwards
  steelyard node --cluster-cidr 10.244.0.0/16 --cluster-cidr fd00:10:244::/56
      tell pods of all nodes from other clients, not only this node's
  steelyard node --cleanup
      after uninstalling: delete the nf_tables tables that the agent left, put the kernel's settings back";

/// What our own metrics begin with.
const OURS: &str = "steelyard";
/// What those begin with that dashboards know from kube-proxy.
const KUBE_PROXYS: &str = "kubeproxy";
/// The part that writes the `NodeAnnouncement`.
const WRITER: &str = "writer of the node announcement";

/// An agent at work has put its tables right by then.
const REPAIRED_WITHIN: Duration = Duration::from_millis(500);

/// Whether this agent forwards Service traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DatapathMode {
    /// It does; there must be no other service proxy on the node.
    On,
    /// Another service proxy does.
    Off,
}

/// Announce addresses and forward Service traffic on this node.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Node {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// This node's name in the API
    #[arg(long, env = "NODE_NAME", value_name = "NAME", required_unless_present = "cleanup")]
    node_name: Option<String>,

    /// Whether to announce addresses on the node's links
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    speaker: bool,

    /// Whether to forward Service traffic; with `off`, rules of an earlier run are deleted at the start
    #[arg(long, value_enum, default_value_t = DatapathMode::On)]
    datapath: DatapathMode,

    #[command(flatten)]
    forwarding: ForwardingArgs,

    #[command(flatten)]
    connections: ConnectionArgs,

    /// UDP port on which the agents hear each other; the same on all nodes
    #[arg(long, default_value_t = membership::DEFAULT_PORT, value_name = "PORT")]
    membership_port: u16,

    /// Where to serve /metrics, /healthz and /readyz
    #[arg(long, default_value = "[::]:9791", value_name = "ADDRESS:PORT")]
    admin_address: SocketAddr,

    /// Where to serve the datapath's own /healthz and /livez for load balancers, as kube-proxy does; port 0: nowhere
    #[arg(long, default_value = "[::]:10256", value_name = "ADDRESS:PORT")]
    health_address: SocketAddr,

    /// Where to serve /proxyMode, for programs that ask a kube-proxy; port 0: nowhere
    #[arg(long, default_value = "127.0.0.1:10249", value_name = "ADDRESS:PORT")]
    status_address: SocketAddr,

    /// Where `steelyard prepare` wrote down the settings that were there before; for `--cleanup`
    #[arg(long, default_value = sysctls::STATE_FILE, value_name = "FILE")]
    state_file: PathBuf,

    /// Delete our nf_tables tables on this machine, put its settings back and exit; needs no API server
    #[arg(long)]
    cleanup: bool,
}

/// Why the agent ended.
#[derive(Debug, Error)]
pub enum NodeError {
    /// No way to the API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Interfaces cannot be followed.
    #[error("failed to follow the network interfaces")]
    Links(#[from] LinksError),
    /// The datapath could not start.
    #[error("failed to start the datapath")]
    Datapath(#[source] ApplyError),
    /// There is no way to the tracked connections.
    #[error("failed to start following connections")]
    Sweeper(#[source] ConntrackError),
    /// Changes of our tables by others would go unnoticed.
    #[error("failed to follow the changes of nf_tables")]
    Listener(#[source] ConnectionError),
    /// Rules of an earlier run would go on forwarding to endpoints of then.
    #[error("failed to remove the datapath of an earlier run")]
    Cleanup(#[source] ApplyError),
    /// Settings of the kernel may not be what they were.
    #[error("failed to put back the kernel's settings")]
    Sysctls(#[from] SysctlsError),
    /// What was deleted is back.
    #[error("an agent runs on this machine and has made its nf_tables tables again: stop it first")]
    StillRunning,
    /// There is nobody to announce or forward for.
    #[error("--node-name is missing")]
    NoNodeName,
    /// The admin server could not start or broke.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Signals cannot be taken.
    #[error("failed to install signal handlers")]
    Signals(#[source] std::io::Error),
    /// A part ended though nobody asked it to.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
    /// A part panicked.
    #[error("a part of the agent panicked")]
    Panicked(#[from] JoinError),
}

impl Node {
    /// Runs until SIGTERM or SIGINT, or until a part fails.
    ///
    /// # Errors
    /// When the agent cannot start, or a part ends unasked.
    pub async fn run(self) -> Result<(), NodeError> {
        if self.cleanup {
            cleanup_for_good().await?;
            return Ok(put_back(&self.state_file)?);
        }
        let name = self.node_name.as_deref().map(NodeName::new).ok_or(NodeError::NoNodeName)?;
        if self.datapath == DatapathMode::Off {
            cleanup()?;
        }
        raise_open_files();
        let client = self.cluster.client().await?;
        let mut registry = Registry::default();
        let readiness = Readiness::default();
        let (trigger, stop) = shutdown();
        let mut parts = Parts::new();

        let links = links::follow(stop.clone()).await?;
        let (programmed, programmed_here) = watch::channel(Arc::new(Programmed::default()));
        let mut watches = Watches::default();
        let reports = NodeReports::default();
        watches.nodes.push(node_announcement::owner(name.clone(), reports.clone()));
        match self.datapath {
            DatapathMode::On => {
                let metrics = datapath::metrics::Metrics::register(registry.sub_registry_with_prefix(OURS));
                let sweeper = sweeper::Metrics::register(registry.sub_registry_with_prefix(KUBE_PROXYS));
                let sweeper = Sweeper::start(sweeper).map_err(NodeError::Sweeper)?;
                let known = KubeProxyMetrics::register(registry.sub_registry_with_prefix(KUBE_PROXYS));
                let settings = self.settings();
                let addresses = proxy::Addresses { health: self.health_address, status: self.status_address };
                let progress = servers::start(addresses, &settings, known, &reports, &mut parts, &stop);
                let outputs = Outputs { programmed, progress, problems: reports.reporter("datapath", "programming") };
                let mut datapath = Datapath::new(name.clone(), settings, outputs, metrics)
                    .map_err(NodeError::Datapath)?
                    .with_sweeper(sweeper);
                let listener = datapath.listen().map_err(NodeError::Datapath)?;
                let events = watches.for_datapath(&client, links.clone(), listener, &mut parts);
                let stopped = stop.clone();
                parts.spawn(async move { Ok(run_datapath(datapath, events, stopped).await) });
            }
            DatapathMode::Off => drop(programmed.send_replace(Arc::new(Programmed::All))),
        }
        readiness.expect("datapath");
        parts.spawn(ready_once_settled(programmed_here.clone(), readiness.clone(), stop.clone()));
        if self.speaker {
            let membership = self.start_membership(
                name.clone(),
                &mut watches,
                registry.sub_registry_with_prefix(OURS),
                &mut parts,
                &stop,
            );
            let surroundings = Surroundings {
                inbox: watches.for_speaker(),
                links,
                membership,
                programmed: programmed_here,
                readiness: readiness.clone(),
                reports: reports.clone(),
            };
            let metrics = speaker::metrics::Metrics::register(registry.sub_registry_with_prefix(OURS));
            let config = speaker::Config::new(name.clone());
            let speaker = speaker::run(config, client.clone(), surroundings, metrics, stop.clone());
            parts.spawn(ends(speaker, "speaker"));
        } else {
            reports.set_announcements(Vec::new());
        }
        let writer = node_announcement::write(client.clone(), name, reports.follow(), stop.clone());
        parts.spawn(ends(writer, WRITER));
        watches.start(&client, &mut parts);

        let serving = admin::serve(self.admin_address, registry, readiness, stop.clone());
        parts.spawn(async move { serving.await.map(|()| "admin server").map_err(Into::into) });
        parts.spawn(
            async move { trigger.request_on_signal().await.map(|()| "signal handler").map_err(NodeError::Signals) },
        );
        let awaited = [
            ("datapath", self.datapath == DatapathMode::On),
            ("speaker", self.speaker),
            ("membership", self.speaker),
            (WRITER, true),
        ];
        let awaited = awaited.into_iter().filter(|(_, runs)| *runs).map(|(name, _)| name);
        finish(parts, &stop, awaited.collect()).await
    }

    fn settings(&self) -> Settings {
        let mut settings = self.forwarding.settings();
        self.connections.apply(&mut settings);
        settings
    }

    fn start_membership(
        &self,
        node: NodeName,
        watches: &mut Watches,
        registry: &mut Registry,
        parts: &mut Parts,
        stop: &Shutdown,
    ) -> Membership {
        let (nodes, addresses) = membership::nodes::addresses();
        watches.nodes.push(nodes);
        let config = membership::Config { node, port: self.membership_port, timing: Timing::default() };
        let (membership, task) = membership::start(config, addresses, registry, stop.clone());
        parts.spawn(async move { task.await.map(|()| "membership").map_err(Into::into) });
        membership
    }
}

/// Deletes our tables, and looks whether they stay away: an agent that runs makes them again at once.
async fn cleanup_for_good() -> Result<(), NodeError> {
    cleanup()?;
    tokio::time::sleep(REPAIRED_WITHIN).await;
    let back = Programmer::new().and_then(|mut programmer| programmer.tables()).map_err(NodeError::Cleanup)?;
    if back.is_empty() { Ok(()) } else { Err(NodeError::StillRunning) }
}

/// Deletes our tables, so that nothing goes on forwarding as it was when they were last written.
fn cleanup() -> Result<(), NodeError> {
    let deleted = Programmer::new().and_then(|mut programmer| programmer.cleanup()).map_err(NodeError::Cleanup)?;
    for family in deleted {
        tracing::info!(%family, "deleted our nf_tables table");
    }
    Ok(())
}

async fn run_datapath(
    mut datapath: Datapath,
    events: mpsc::Receiver<datapath::watch::Event>,
    stop: Shutdown,
) -> &'static str {
    reconcile::run(&mut datapath, events, stop).await;
    "datapath"
}

/// The node is ready once the kernel has what the cluster wanted at the start.
async fn ready_once_settled(
    mut programmed: watch::Receiver<Arc<Programmed>>,
    readiness: Readiness,
    mut stop: Shutdown,
) -> Result<&'static str, NodeError> {
    tokio::select! {
        // An error means that the datapath is gone, which its own part reports.
        settled = programmed.wait_for(|programmed| programmed.is_settled()) => {
            readiness.set("datapath", settled.is_ok());
        }
        () = stop.requested() => {}
    }
    stop.requested().await;
    Ok("readiness")
}
