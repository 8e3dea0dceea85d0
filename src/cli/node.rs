//! `steelyard node`: the agent of one node. Starts its parts, joins them by channels, and waits at the end for those that
//! have something to put in order.
//!
//! ```text
//!   watches ──▶ datapath ──programmed addresses──▶ speaker ──▶ ARP, NDP
//!      │                                             ▲
//!      └────────────▶ membership ──who is alive──────┘
//! ```

mod alone;
mod beside;
mod cleanup;
mod connections;
mod error;
mod heir;
mod mode;
mod parts;
mod servers;
mod watches;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ArgAction;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

use self::alone::Alone;
use self::connections::ConnectionArgs;
pub use self::error::NodeError;
use self::parts::{Parts, ends, finish};
use self::watches::Watches;
use super::cluster::ClusterArgs;
use super::forwarding::ForwardingArgs;
use super::{DECISION, DatapathMode};
use crate::datapath;
use crate::datapath::health_check::proxy;
use crate::datapath::metrics::kube_proxy::KubeProxyMetrics;
use crate::datapath::reconciler::{Datapath, Outputs};
use crate::datapath::settings::Settings;
use crate::datapath::sweeper::{self, Sweeper};
use crate::membership::{self, Membership, Timing};
use crate::model::datapath_mode::Mode;
use crate::model::programmed::Programmed;
use crate::model::service_proxy::HEALTH_PORT;
use crate::names::NodeName;
use crate::netlink::links;
use crate::runtime::admin::{self, Readiness};
use crate::runtime::limits::raise_open_files;
use crate::runtime::node_announcement;
use crate::runtime::node_report::NodeReports;
use crate::runtime::reconcile;
use crate::runtime::shutdown::{Shutdown, ShutdownTrigger, shutdown};
use crate::runtime::sysctls;
use crate::speaker::{self, Surroundings};

const EXAMPLES: &str = "\
Examples:
  steelyard node --node-name node1
      forward and announce, with the kubeconfig of the user
  steelyard node --datapath off
      announce only: another service proxy forwards
  steelyard node --datapath auto
      forward if no other service proxy does, as the controller decides for the cluster
  steelyard node --cluster-cidr 10.244.0.0/16 --cluster-cidr fd00:10:244::/56
      tell pods of all nodes from other clients, not only this node's
  steelyard node --cleanup
      after uninstalling: delete the nf_tables tables that the agent left, put the kernel's settings back";

/// The part of readiness that waits for the controller.
const DECIDED: &str = "decision of the controller whether to forward (datapath mode auto)";

/// The part that writes the `NodeAnnouncement`.
const WRITER: &str = "writer of the node announcement";

/// What our own metrics begin with.
const OURS: &str = "steelyard";
/// What those begin with that dashboards know from kube-proxy.
const KUBE_PROXYS: &str = "kubeproxy";

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

    /// Whether to forward Service traffic; with `off`, rules of an earlier run are deleted once another proxy is seen to
    /// forward, or after 30 s
    #[arg(long, value_enum, default_value_t = DatapathMode::On)]
    datapath: DatapathMode,

    /// With `--datapath auto`: the ConfigMap with the controller's decision
    #[arg(long, default_value = DECISION, value_name = "NAME")]
    datapath_config_map: String,

    /// The namespace of that ConfigMap
    #[arg(long, env = "POD_NAMESPACE", default_value = "steelyard-system", value_name = "NAME")]
    namespace: String,

    /// Where another service proxy answers health checks. While it forwards in our place and is not healthy there, this
    /// node announces nothing; 0 trusts it unseen
    #[arg(long, default_value_t = HEALTH_PORT, value_name = "PORT")]
    proxy_health_port: u16,

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

    /// Delete our nf_tables tables on this machine, put its settings back and exit; needs no API server, and that no agent
    /// runs here
    #[arg(long)]
    cleanup: bool,
}

impl Node {
    /// Runs until SIGTERM or SIGINT, or until a part fails.
    ///
    /// # Errors
    /// When the agent cannot start, or a part ends unasked.
    pub async fn run(self) -> Result<(), NodeError> {
        if self.cleanup {
            return cleanup::run(&self.state_file);
        }
        let name = self.node_name.as_deref().map(NodeName::new).ok_or(NodeError::NoNodeName)?;
        let Some(_alone) = Alone::wait().await.map_err(NodeError::Alone)? else { return Err(NodeError::NotAlone) };
        raise_open_files();
        let client = self.cluster.client().await?;
        let mut registry = Registry::default();
        let readiness = Readiness::default();
        let (trigger, mut stop) = shutdown();
        let trigger = Arc::new(trigger);
        let mut parts = Parts::new();
        let mut watches = Watches::default();
        let reports = NodeReports::default();
        watches.nodes.push(node_announcement::owner(name.clone(), reports.clone()));

        readiness.expect("datapath");
        let metrics = (self.datapath != DatapathMode::Off).then(|| {
            let metrics = datapath::metrics::Metrics::register(registry.sub_registry_with_prefix(OURS));
            let sweeper = sweeper::Metrics::register(registry.sub_registry_with_prefix(KUBE_PROXYS));
            (metrics, sweeper, KubeProxyMetrics::register(registry.sub_registry_with_prefix(KUBE_PROXYS)))
        });
        let ours = registry.sub_registry_with_prefix(OURS);
        let speaker_metrics = speaker::metrics::Metrics::register(ours);
        let membership =
            self.speaker.then(|| self.start_membership(name.clone(), &mut watches, ours, &mut parts, &stop));
        let serving = admin::serve(self.admin_address, registry, readiness.clone(), stop.clone());
        parts.spawn(async move { serving.await.map(|()| "admin server").map_err(Into::into) });
        let signalled = Arc::clone(&trigger);
        parts.spawn(async move {
            signalled.request_on_signal().await.map(|()| "signal handler").map_err(NodeError::Signals)
        });
        let writer = node_announcement::write(client.clone(), name.clone(), reports.follow(), stop.clone());
        parts.spawn(ends(writer, WRITER));

        let decided = self.decided_mode(&client, &name, &reports, &readiness, &mut parts, &trigger, &mut stop).await?;
        // Told to end while it waited.
        let Some(mode) = decided else { return finish(parts, &stop, [WRITER].into()).await };
        let links = links::follow(stop.clone()).await?;
        let (programmed, programmed_here) = watch::channel(Arc::new(Programmed::default()));
        match (mode, metrics) {
            (Mode::On, Some((metrics, sweeper, known))) => {
                reports.set_datapath("On");
                let sweeper = Sweeper::start(sweeper).map_err(NodeError::Sweeper)?;
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
                let heir =
                    heir::take_over(self.proxy_health_port, programmed_here.clone(), reports.clone(), stop.clone());
                parts.spawn(ends(heir, "watch for other service proxies"));
            }
            (Mode::On | Mode::Off, _) => {
                reports.set_datapath("Off");
                let aside = beside::stand_aside(
                    self.proxy_health_port,
                    programmed,
                    reports.clone(),
                    readiness.clone(),
                    stop.clone(),
                );
                parts.spawn(ends(aside, "watch of the other service proxy"));
            }
        }
        parts.spawn(ready_once_settled(programmed_here.clone(), readiness.clone(), stop.clone()));
        if let Some(membership) = membership {
            let surroundings = Surroundings {
                inbox: watches.for_speaker(),
                links,
                membership,
                programmed: programmed_here,
                readiness: readiness.clone(),
                reports: reports.clone(),
            };
            let config = speaker::Config::new(name);
            let speaker = speaker::run(config, client.clone(), surroundings, speaker_metrics, stop.clone());
            parts.spawn(ends(speaker, "speaker"));
        } else {
            reports.set_announcements(Vec::new());
        }
        watches.start(&client, &mut parts);

        let awaited =
            [("datapath", mode == Mode::On), ("speaker", self.speaker), ("membership", self.speaker), (WRITER, true)];
        let awaited = awaited.into_iter().filter(|(_, runs)| *runs).map(|(name, _)| name);
        finish(parts, &stop, awaited.collect()).await
    }

    /// The mode to run in; with `auto` once it is decided, or none if shutdown comes first. A part that ends meanwhile is
    /// an error.
    #[expect(clippy::too_many_arguments, reason = "all that an agent has before it knows what it is to do")]
    async fn decided_mode(
        &self,
        client: &Client,
        name: &NodeName,
        reports: &NodeReports,
        readiness: &Readiness,
        parts: &mut Parts,
        trigger: &Arc<ShutdownTrigger>,
        stop: &mut Shutdown,
    ) -> Result<Option<Mode>, NodeError> {
        match self.datapath {
            DatapathMode::On => return Ok(Some(Mode::On)),
            DatapathMode::Off => return Ok(Some(Mode::Off)),
            DatapathMode::Auto => {}
        }
        readiness.expect(DECIDED);
        let (sender, mut known) = watch::channel(None);
        let (namespace, config_map) = (self.namespace.clone(), self.datapath_config_map.clone());
        parts.spawn(ends(mode::follow(client.clone(), namespace, config_map, sender), "watch of the datapath's mode"));
        let waited = {
            let mut is_stopped = stop.clone();
            let decision = mode::wait(client, name, self.proxy_health_port, reports, &mut known, &mut is_stopped);
            tokio::select! {
                mode = decision => mode,
                Some(ended) = parts.join_next() => {
                    let part = ended??;
                    if !stop.is_requested() {
                        return Err(NodeError::Ended(part));
                    }
                    None
                }
            }
        };
        if let Some(mode) = waited {
            readiness.set(DECIDED, true);
            let (trigger, stop) = (Arc::clone(trigger), stop.clone());
            parts.spawn(ends(mode::end_on_another(mode, known, trigger, stop), "watch for another mode"));
        }
        Ok(waited)
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
