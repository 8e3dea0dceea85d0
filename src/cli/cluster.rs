//! How a process reaches the API server.

use std::time::Duration;

use kube::config::{KubeConfigOptions, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;

use crate::runtime::watch::LONGEST_SILENCE;

/// How long a connection may take to come about: not long where it comes about at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
        Client::try_from(impatient(config)).map_err(ClusterError::Client)
    }
}

/// kube itself waits for an answer for ever; a connection that has died in silence would hold its request as long.
fn impatient(mut config: Config) -> Config {
    config.read_timeout = Some(LONGEST_SILENCE);
    // Else the time that a connection was idle before the request counts too.
    config.reset_reader_on_write = true;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use kube::Api;
    use kube::api::ListParams;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_falls_silent_holds_no_request_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::try_from(impatient(Config::new(url.parse().unwrap()))).unwrap();
        let asked = Instant::now();
        // The kernel takes the connection; nobody answers on it.
        let (nodes, everything) = (Api::<Node>::all(client), ListParams::default());
        let outcome = tokio::time::timeout(LONGEST_SILENCE * 2, nodes.list(&everything)).await;
        assert!(outcome.expect("the request is given up").is_err());
        assert_eq!(asked.elapsed().as_secs(), LONGEST_SILENCE.as_secs());
    }
}
