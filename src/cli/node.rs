//! `steelyard node`: the agent of one node. Starts its parts, joins them by channels, ends them in order.
//!
//! ```text
//!   watches ──▶ datapath ──programmed addresses──▶ speaker ──▶ ARP, NDP
//!      │                                             ▲
//!      └────────────▶ membership ──who is alive──────┘
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use clap::{ArgAction, ValueEnum};
use ipnet::IpNet;
use kube::Client;
use kube::runtime::watcher;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use super::cluster::{ClusterArgs, ClusterError};
use crate::datapath::apply::ApplyError;
use crate::datapath::metrics::Metrics;
use crate::datapath::reconciler::Datapath;
use crate::datapath::settings::{DetectLocal, NodePortSelector, Settings};
use crate::datapath::watch::{self as datapath, WITH_CLUSTER_IP};
use crate::model::link::Links;
use crate::model::programmed::Programmed;
use crate::names::NodeName;
use crate::netlink::links::{self, LinksError};
use crate::runtime::admin::{self, AdminError, Readiness};
use crate::runtime::reconcile;
use crate::runtime::shutdown::{Shutdown, shutdown};
use crate::runtime::watch::{forward, sink};

/// Events that may wait for a component's loop; a watch that is faster waits.
const QUEUE: usize = 1024;

const EXAMPLES: &str = "\
Examples:
  steelyard node --node-name node1
      forward and announce, with the kubeconfig of the user
  steelyard node --datapath off
      announce only: another service proxy forwards
  steelyard node --cluster-cidr 10.244.0.0/16 --cluster-cidr fd00:10:244::/56
      tell pods of all nodes from other clients, not only this node's";

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
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,

    /// Whether to announce addresses on the node's links
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    speaker: bool,

    /// Whether to forward Service traffic
    #[arg(long, value_enum, default_value_t = DatapathMode::On)]
    datapath: DatapathMode,

    /// Prefix of pods whose traffic to cluster IPs keeps its source; repeatable. Without it: the pod CIDRs of this node
    #[arg(long = "cluster-cidr", value_name = "PREFIX")]
    cluster_cidrs: Vec<IpNet>,

    /// Where NodePorts answer: `primary`, `all`, an address or a prefix; repeatable. Without it: `primary`
    #[arg(long = "node-port-address", value_name = "WHERE")]
    node_port_addresses: Vec<NodePortSelector>,

    /// Masquerade all traffic to cluster IPs, also that of pods
    #[arg(long)]
    masquerade_all: bool,

    /// Where to serve /metrics, /healthz and /readyz
    #[arg(long, default_value = "[::]:9791", value_name = "ADDRESS:PORT")]
    admin_address: SocketAddr,
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
    Datapath(#[from] ApplyError),
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

/// The parts of the agent; each ends with its name.
type Parts = JoinSet<Result<&'static str, NodeError>>;

impl Node {
    /// Runs until SIGTERM or SIGINT, or until a part fails.
    ///
    /// # Errors
    /// When the agent cannot start, or a part ends unasked.
    pub async fn run(self) -> Result<(), NodeError> {
        let client = self.cluster.client().await?;
        let mut registry = Registry::with_prefix("steelyard");
        let readiness = Readiness::default();
        let (trigger, stop) = shutdown();
        let mut parts = Parts::new();

        let links = links::follow(stop.clone()).await?;
        let (programmed, _programmed) = watch::channel(Arc::new(Programmed::default()));
        match self.datapath {
            DatapathMode::On => {
                let metrics = Metrics::register(&mut registry);
                let datapath = Datapath::new(self.settings(), programmed.clone(), metrics)?;
                self.start_datapath(datapath, &client, links, &stop, &mut parts);
                readiness.expect("datapath");
                parts.spawn(ready_once_programmed(programmed.subscribe(), readiness.clone(), stop.clone()));
            }
            DatapathMode::Off => drop(programmed.send_replace(Arc::new(Programmed::All))),
        }

        let serving = admin::serve(self.admin_address, registry, readiness, stop.clone());
        parts.spawn(async move { serving.await.map(|()| "admin server").map_err(Into::into) });
        parts.spawn(
            async move { trigger.request_on_signal().await.map(|()| "signal handler").map_err(NodeError::Signals) },
        );
        finish(parts, &stop).await
    }

    fn settings(&self) -> Settings {
        Settings {
            detect_local: if self.cluster_cidrs.is_empty() {
                DetectLocal::NodePrefixes
            } else {
                DetectLocal::Prefixes(self.cluster_cidrs.clone())
            },
            masquerade_all: self.masquerade_all,
            node_port_addresses: self.node_port_addresses.clone(),
        }
    }

    fn start_datapath(
        &self,
        mut datapath: Datapath,
        client: &Client,
        links: watch::Receiver<Arc<Links>>,
        stop: &Shutdown,
        parts: &mut Parts,
    ) {
        let (sender, events) = mpsc::channel(QUEUE);
        let all_objects = watcher::Config::default();
        let services = sink(sender.clone(), datapath::Event::Service);
        parts.spawn(ends(forward(client.clone(), all_objects.clone(), vec![services]), "watch of Services"));
        let slices = sink(sender.clone(), datapath::Event::Slice);
        let with_cluster_ip = watcher::Config::default().labels(WITH_CLUSTER_IP);
        parts.spawn(ends(forward(client.clone(), with_cluster_ip, vec![slices]), "watch of EndpointSlices"));
        let nodes = sink(sender.clone(), datapath::Event::Node);
        let own =
            watcher::Config::default().fields(&format!("metadata.name={}", NodeName::new(self.node_name.as_str())));
        parts.spawn(ends(forward(client.clone(), own, vec![nodes]), "watch of this Node"));
        let cidrs = sink(sender.clone(), datapath::Event::ServiceCidr);
        parts.spawn(ends(forward(client.clone(), all_objects, vec![cidrs]), "watch of ServiceCIDRs"));
        parts.spawn(ends(follow_addresses(links, sender), "watch of interfaces"));
        let stop = stop.clone();
        parts.spawn(async move {
            reconcile::run(&mut datapath, events, stop).await;
            Ok("datapath")
        });
    }
}

async fn ends(part: impl Future<Output = ()>, name: &'static str) -> Result<&'static str, NodeError> {
    part.await;
    Ok(name)
}

/// Tells the datapath which addresses are this machine's.
async fn follow_addresses(mut links: watch::Receiver<Arc<Links>>, sender: mpsc::Sender<datapath::Event>) {
    loop {
        let addresses: BTreeSet<IpAddr> =
            links.borrow_and_update().iter().flat_map(|link| link.addresses.iter().map(|net| net.addr())).collect();
        if sender.send(datapath::Event::LocalAddresses(addresses)).await.is_err() || links.changed().await.is_err() {
            return;
        }
    }
}

/// The node is ready once the kernel has what the cluster wanted at the start.
async fn ready_once_programmed(
    mut programmed: watch::Receiver<Arc<Programmed>>,
    readiness: Readiness,
    mut stop: Shutdown,
) -> Result<&'static str, NodeError> {
    // An error means that the datapath is gone, which its own part reports.
    if programmed.wait_for(|programmed| programmed.is_settled()).await.is_ok() {
        readiness.set("datapath", true);
    }
    stop.requested().await;
    Ok("readiness")
}

/// Waits for the parts: all of them once shutdown is requested; the first that ends before is an error.
async fn finish(mut parts: Parts, stop: &Shutdown) -> Result<(), NodeError> {
    while let Some(part) = parts.join_next().await {
        let name = part??;
        if !stop.is_requested() {
            return Err(NodeError::Ended(name));
        }
        // Watches and followers wait on what the loops consume; they end with the process.
        if name == "datapath" || name == "speaker" {
            tracing::info!(part = name, "stopped");
        }
        if name == "admin server" {
            return Ok(());
        }
    }
    Ok(())
}
