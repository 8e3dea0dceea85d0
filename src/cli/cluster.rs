//! How a process reaches the API server.

use kube::config::{KubeConfigOptions, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// Neither a service account nor a kubeconfig.
    #[error("failed to find out how to reach the API server (in a pod: the service account; elsewhere: KUBECONFIG)")]
    Infer(#[source] kube::config::InferConfigError),
    /// The kubeconfig named cannot be used.
    #[error("failed to read the kubeconfig")]
    Kubeconfig(#[source] KubeconfigError),
    /// The TLS set-up failed.
    #[error("failed to set up the connection to the API server")]
    Client(#[source] kube::Error),
}

/// Flags that all sub-commands with a cluster share.
#[derive(Clone, Debug, clap::Args)]
pub struct ClusterArgs {
    /// Context of the kubeconfig to use; without it, the pod's service account or the current context
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ClusterArgs {
    /// Connects. In a pod the service account is used with the address in `KUBERNETES_SERVICE_HOST` and
    /// `KUBERNETES_SERVICE_PORT`, which the chart sets to the real API server where no other service proxy runs.
    ///
    /// # Errors
    /// When no configuration is found or it cannot be used.
    pub async fn client(&self) -> Result<Client, ClusterError> {
        let config = match &self.context {
            None => Config::infer().await.map_err(ClusterError::Infer)?,
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
                Config::from_kubeconfig(&options).await.map_err(ClusterError::Kubeconfig)?
            }
        };
        Client::try_from(config).map_err(ClusterError::Client)
    }
}
