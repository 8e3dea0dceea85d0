//! `steelyard controller`: assigns addresses.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::task::JoinError;

use super::cluster::{ClusterArgs, ClusterError};
use super::{DECISION, DatapathMode};

use crate::api::LOAD_BALANCER_CLASS;
use crate::controller::datapath_mode;
use crate::controller::desired::Settings;
use crate::controller::metrics::Metrics;
use crate::controller::{self, ServeError};
use crate::runtime::admin::{self, AdminError, Readiness};
use crate::runtime::lease::LeaseSettings;
use crate::runtime::shutdown::shutdown;

const EXAMPLES: &str = "\
Examples:
  steelyard controller
      in a pod, or with the kubeconfig of the user
  steelyard controller --handle-classless=false
      leave Services without a loadBalancerClass to somebody else";

/// Assign addresses from pools to Services of type LoadBalancer.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Controller {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// The loadBalancerClass to serve, besides steelyard.dev/steelyard.
    #[arg(long, env = "STEELYARD_LOAD_BALANCER_CLASS", default_value = LOAD_BALANCER_CLASS)]
    load_balancer_class: String,

    /// Serve Services without a loadBalancerClass too.
    #[arg(
        long,
        env = "STEELYARD_HANDLE_CLASSLESS",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    handle_classless: bool,

    /// The namespace of the Lease by which replicas elect their leader.
    #[arg(long, env = "POD_NAMESPACE", default_value = "steelyard-system")]
    lease_namespace: String,

    /// The name of that Lease.
    #[arg(long, env = "STEELYARD_LEASE_NAME", default_value = "steelyard-controller")]
    lease_name: String,

    /// This replica's name, unique among replicas [default: host name and process id].
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,

    /// How long a leader's lease holds without renewal, in whole seconds. A standby takes over within this time and one
    /// renewal.
    #[arg(long, env = "STEELYARD_LEASE_DURATION_SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..))]
    lease_duration_seconds: u16,

    /// How often the leader renews its lease, in milliseconds.
    #[arg(long, env = "STEELYARD_LEASE_RENEW_MILLISECONDS", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(100..))]
    lease_renew_milliseconds: u16,

    /// Whether Steelyard forwards Service traffic: with `auto` the leader decides it once for the cluster and keeps the
    /// decision in a ConfigMap that the agents follow.
    #[arg(long, value_enum, default_value_t = DatapathMode::On)]
    datapath: DatapathMode,

    /// That ConfigMap, in the Lease's namespace.
    #[arg(long, default_value = DECISION, value_name = "NAME")]
    datapath_config_map: String,

    /// The DaemonSet of the agents, in the Lease's namespace: all of them are waited for.
    #[arg(long, default_value = "steelyard-node", value_name = "NAME")]
    node_daemon_set: String,

    /// Where to serve /metrics, /healthz and /readyz.
    #[arg(long, default_value = "[::]:9790", value_name = "ADDRESS:PORT")]
    admin_address: SocketAddr,
}

/// Why the controller ended.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// No way to the API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The admin server could not start or broke.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Signals cannot be taken.
    #[error("failed to install signal handlers")]
    Signals(#[source] std::io::Error),
    /// A part of the controller failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A part ended though nobody asked it to.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
    /// A part panicked.
    #[error("a part of the controller panicked")]
    Panicked(#[from] JoinError),
    /// A lease that is renewed as rarely as it runs out is lost all the time.
    #[error("the lease must be renewed at least twice while it holds: renewal every {renew:?}, duration {duration:?}")]
    Lease {
        /// `--lease-renew-milliseconds`.
        renew: Duration,
        /// `--lease-duration-seconds`.
        duration: Duration,
    },
}

impl Controller {
    /// Runs until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When the flags contradict each other, there is no way to an API server, or the admin server fails.
    pub async fn run(self) -> Result<(), ControllerError> {
        let lease = LeaseSettings {
            name: self.lease_name,
            identity: self.identity.unwrap_or_else(host_and_process),
            duration: Duration::from_secs(self.lease_duration_seconds.into()),
            renew_every: Duration::from_millis(self.lease_renew_milliseconds.into()),
        };
        if lease.renew_every * 2 > lease.duration {
            return Err(ControllerError::Lease { renew: lease.renew_every, duration: lease.duration });
        }
        let client = self.cluster.client().await?;
        let leases: Api<Lease> = Api::namespaced(client.clone(), &self.lease_namespace);
        let settings =
            Settings { load_balancer_class: self.load_balancer_class, handles_classless: self.handle_classless };
        let mode = (self.datapath == DatapathMode::Auto).then_some(datapath_mode::Settings {
            namespace: self.lease_namespace,
            config_map: self.datapath_config_map,
            daemon_set: self.node_daemon_set,
        });
        let mut registry = Registry::with_prefix("steelyard");
        let metrics = Metrics::default();
        metrics.register(&mut registry);
        let (trigger, stop) = shutdown();
        let signals = tokio::spawn(async move { trigger.request_on_signal().await });
        let readiness = Readiness::default();
        // Told to end after the work, so that it ends first only when it fails: the lease is given back in either case of
        // an orderly end.
        let (work_ended, admin_ends) = shutdown();
        let admin = tokio::spawn(admin::serve(self.admin_address, registry, readiness.clone(), admin_ends));
        tokio::select! {
            served = admin => {
                served??;
                return Err(ControllerError::Ended("admin server"));
            }
            served = controller::serve(client, settings, mode, lease, leases, metrics, readiness, stop) => served?,
        }
        work_ended.request();
        // The controller ends in order only when shutdown was requested: by a signal, or because there can be none.
        signals.await?.map_err(ControllerError::Signals)
    }
}

fn host_and_process() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}_{}", host.as_deref().unwrap_or("controller"), std::process::id())
}
