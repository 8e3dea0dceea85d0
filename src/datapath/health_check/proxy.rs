//! The datapath's own health on a port of its own: `/healthz` for load balancers and cloud controllers, `/livez` for whoever
//! restarts processes. Port 10256 where nothing else is said, as they know it from kube-proxy; and on port
//! 10249 of loopback `/proxyMode`, for which programs on a node ask.
//!
//! While another program has a port, a kube-proxy say, the log says so and the agent works on; it is tried again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::freshness::{Freshness, Question};
use crate::datapath::metrics::kube_proxy::KubeProxyMetrics;
use crate::datapath::servers::Complaints;
use crate::runtime::http::{self, Answer};
use crate::runtime::listeners::{Listeners, Serve, Wanted, sockets_of};
use crate::runtime::node_report::Reporter;
use crate::runtime::shutdown::Shutdown;

/// Of a node on which another program has the port.
const TAKEN: &str = "FailedToServeHealth";

/// What kube-proxy would answer that does with the kernel as we do.
const MODE: &str = "nftables";

/// The datapath's health, told by its loop and asked by the servers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Freshness>>);

impl Health {
    /// Whether the kernel has what the datapath has seen.
    pub fn keeps_up(&self) -> bool {
        self.with(|freshness| freshness.keeps_up(Instant::now()))
    }

    /// As [`Self::keeps_up`], if nothing is heard before then.
    #[cfg(test)]
    pub fn will_keep_up(&self, until: Instant) -> bool {
        self.with(|freshness| freshness.keeps_up(until))
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

/// The ports on which others look for a service proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    /// `/healthz` and `/livez`, for the network.
    Health,
    /// `/proxyMode`, for programs on the node: kube-proxy has it beside its metrics.
    Status,
}

/// Where the ports are; port 0 means nowhere.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Of `/healthz` and `/livez`.
    pub health: SocketAddr,
    /// Of `/proxyMode`.
    pub status: SocketAddr,
}

struct Server {
    port: Port,
    health: Health,
    metrics: KubeProxyMetrics,
}

impl Server {
    fn answer(&self, path: &str) -> Answer {
        let question = match (self.port, path) {
            (Port::Health, "/healthz") => Question::Healthy,
            (Port::Health, "/livez") => Question::Live,
            (Port::Status, "/healthz") => return Answer::text(200, "ok"),
            (Port::Status, "/proxyMode") => return Answer::text(200, MODE),
            (Port::Health | Port::Status, _) => return Answer::not_found(),
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
pub async fn run(
    addresses: Addresses,
    health: Health,
    metrics: KubeProxyMetrics,
    reporter: Reporter,
    mut shutdown: Shutdown,
) {
    let mut listeners = Listeners::default();
    let mut complaints = Complaints::new(reporter, TAKEN);
    let ports = [(Port::Health, addresses.health), (Port::Status, addresses.status)];
    let wanted = ports.into_iter().filter(|(_, address)| address.port() != 0).map(|(port, address)| {
        let server = Server { port, health: health.clone(), metrics: metrics.clone() };
        (port, Some(Wanted { addresses: sockets_of(address), server: Arc::new(server) }))
    });
    listeners.change(wanted.collect()).await;
    loop {
        complaints.tell(listeners.failures().map(|(port, address, error)| {
            let what = match port {
                Port::Health => "health",
                Port::Status => "mode",
            };
            let advice = "if a kube-proxy still runs on this node, stop it";
            (None, format!("failed to serve the datapath's {what} at {address}: {error} ({advice})"))
        }));
        tokio::select! {
            () = shutdown.requested() => return,
            () = listeners.retry_is_due() => listeners.retry(),
        }
    }
}
