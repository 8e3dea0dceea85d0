//! `steelyard controller`: assigns addresses.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use thiserror::Error;

use crate::api::LOAD_BALANCER_CLASS;
use crate::controller;
use crate::controller::desired::Settings;
use crate::controller::metrics::Metrics;
use crate::runtime::lease::LeaseSettings;
use crate::runtime::shutdown::Shutdown;

/// Assign addresses from pools to Services of type LoadBalancer.
#[derive(Clone, Debug, clap::Args)]
pub struct Controller {
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
}

/// Why the controller cannot run.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// Neither a kubeconfig nor a service account leads to an API server.
    #[error("failed to find the API server")]
    Client(#[source] Box<kube::Error>),
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
    /// Runs until shutdown is requested.
    ///
    /// # Errors
    /// When the flags contradict each other or there is no way to an API server.
    pub async fn run(self, metrics: Metrics, shutdown: Shutdown) -> Result<(), ControllerError> {
        let lease = LeaseSettings {
            name: self.lease_name,
            identity: self.identity.unwrap_or_else(host_and_process),
            duration: Duration::from_secs(self.lease_duration_seconds.into()),
            renew_every: Duration::from_millis(self.lease_renew_milliseconds.into()),
        };
        if lease.renew_every * 2 > lease.duration {
            return Err(ControllerError::Lease { renew: lease.renew_every, duration: lease.duration });
        }
        let client = Client::try_default().await.map_err(|error| ControllerError::Client(Box::new(error)))?;
        let leases: Api<Lease> = Api::namespaced(client.clone(), &self.lease_namespace);
        let settings =
            Settings { load_balancer_class: self.load_balancer_class, handles_classless: self.handle_classless };
        controller::serve(client, settings, lease, leases, metrics, shutdown).await;
        Ok(())
    }
}

fn host_and_process() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}_{}", host.as_deref().unwrap_or("controller"), std::process::id())
}
