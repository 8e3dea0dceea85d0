//! The admin server of every process: `/metrics`, `/healthz` and `/readyz`.
//!
//! `/healthz` answers as long as the process runs its event loop; `/readyz` answers 200 once every part has said that it is
//! ready, else 503 with the names of those that are not.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use nix::errno::Errno;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::net::TcpListener;

use super::shutdown::Shutdown;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why the admin server does not run.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Another process has the port, or the address is not ours.
    #[error("failed to listen on {address} for metrics and health checks")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The listener broke.
    #[error("admin server ended")]
    Serve(#[source] io::Error),
}

/// Which parts of the process are ready. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, bool>>>);

impl Readiness {
    /// Adds a part that is not ready yet.
    pub fn expect(&self, part: &'static str) {
        self.set(part, false);
    }

    /// Says whether a part is ready.
    pub fn set(&self, part: &'static str, is_ready: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part, is_ready);
    }

    /// The parts that are not ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter(|(_, is_ready)| !**is_ready).map(|(part, _)| *part).collect()
    }
}

struct Admin {
    registry: Registry,
    readiness: Readiness,
}

/// Listens and serves until shutdown.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    readiness: Readiness,
    mut shutdown: Shutdown,
) -> Result<(), AdminError> {
    let listener = listen(address).await.map_err(|source| AdminError::Listen { address, source })?;
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, "serving metrics and health checks");
    let routes = router(registry, readiness);
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move { shutdown.requested().await })
        .await
        .map_err(AdminError::Serve)
}

/// `[::]` is the address of both families, and on a node without IPv6 that of none: there it means `0.0.0.0`.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && has_no_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        outcome => outcome,
    }
}

/// Without the protocol, as after a boot with `ipv6.disable=1`, or without a single address of it.
fn has_no_ipv6(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

fn router(registry: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::new(Admin { registry, readiness }))
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let mut body = String::new();
    match text::encode(&mut body, &admin.registry) {
        Ok(()) => Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], body)),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    let missing = admin.readiness.missing();
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_no_lack_of_ipv6() {
        assert!(has_no_ipv6(&io::Error::from(Errno::EAFNOSUPPORT)));
        assert!(has_no_ipv6(&io::Error::from(Errno::EADDRNOTAVAIL)));
        assert!(!has_no_ipv6(&io::Error::from(Errno::EADDRINUSE)));
    }

    #[test]
    fn ready_once_every_part_is() {
        let readiness = Readiness::default();
        readiness.expect("datapath");
        readiness.expect("speaker");
        readiness.set("datapath", true);
        assert_eq!(readiness.missing(), ["speaker"]);
        readiness.set("speaker", true);
        assert!(readiness.missing().is_empty());
    }
}
