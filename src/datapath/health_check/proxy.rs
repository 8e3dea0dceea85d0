//! The datapath's own health on a port of its own: `/healthz` for load balancers and cloud controllers, `/livez` for whoever
//! restarts processes. Port 10256 where nothing else is said, as they know it from kube-proxy.
//!
//! While another program has the port, a kube-proxy say, the log says so and the agent works on; it is tried again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::freshness::{Freshness, Question};
use crate::datapath::metrics::kube_proxy::KubeProxyMetrics;
use crate::runtime::http::{self, Answer};
use crate::runtime::listeners::{Listeners, Serve, Wanted, sockets_of};
use crate::runtime::shutdown::Shutdown;

/// The datapath's health, told by its loop and asked by the servers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Freshness>>);

impl Health {
    /// Whether the kernel has what the datapath has seen.
    pub fn keeps_up(&self) -> bool {
        self.with(|freshness| freshness.keeps_up(Instant::now()))
    }

    /// A change was seen that the kernel does not have.
    pub fn queue(&self) {
        self.with(|freshness| freshness.queue(Instant::now()));
    }

    /// The kernel has everything that was seen.
    pub fn update(&self) {
        self.with(|freshness| freshness.update(Timestamp::now()));
    }

    /// The node's object was seen, or seen to be gone.
    pub fn see_node(&self, is_eligible: bool) {
        self.with(|freshness| freshness.see_node(is_eligible));
    }

    fn answer(&self, question: Question) -> Answer {
        self.with(|freshness| freshness.answer(question, Instant::now(), Timestamp::now()))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Freshness) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Server {
    health: Health,
    metrics: KubeProxyMetrics,
}

impl Server {
    fn answer(&self, path: &str) -> Answer {
        let question = match path {
            "/healthz" => Question::Healthy,
            "/livez" => Question::Live,
            _ => return Answer::not_found(),
        };
        let answer = self.health.answer(question);
        self.metrics.asked(question, answer.status);
        answer
    }
}

impl Serve for Server {
    async fn serve(&self, stream: TcpStream) {
        http::serve(stream, |path| self.answer(path)).await;
    }
}

/// Serves until shutdown.
pub async fn run(address: SocketAddr, health: Health, metrics: KubeProxyMetrics, mut shutdown: Shutdown) {
    let server = Arc::new(Server { health, metrics });
    let mut listeners = Listeners::default();
    listeners.change(vec![((), Some(Wanted { addresses: sockets_of(address), server }))]).await;
    let mut is_reported = false;
    loop {
        match listeners.failures().next() {
            Some(((), address, error)) if !is_reported => {
                tracing::warn!(
                    %address, %error,
                    "cannot serve the datapath's health; if kube-proxy still runs here, stop it: trying again"
                );
                is_reported = true;
            }
            None if is_reported => {
                tracing::info!(%address, "serving the datapath's health");
                is_reported = false;
            }
            Some(_) | None => {}
        }
        tokio::select! {
            () = shutdown.requested() => return,
            () = listeners.retry_is_due() => listeners.retry(),
        }
    }
}
