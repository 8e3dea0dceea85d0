//! The datapath's servers in user space: health checks of Services, its own health, NodePorts on localhost.

use std::net::SocketAddr;

use tokio::sync::watch;

use super::parts::{Parts, ends};
use crate::datapath::health_check::{ports, proxy};
use crate::datapath::localhost;
use crate::datapath::metrics::kube_proxy::KubeProxyMetrics;
use crate::datapath::progress::Progress;
use crate::datapath::servers::{Problems, Servers};
use crate::datapath::settings::Settings;
use crate::runtime::shutdown::Shutdown;

/// Starts them, and gives the end at which the datapath feeds them.
pub(super) fn start(
    health_address: SocketAddr,
    settings: &Settings,
    metrics: KubeProxyMetrics,
    parts: &mut Parts,
    stop: &Shutdown,
) -> Progress {
    let loopbacks = settings.loopbacks();
    let has_localhost = !loopbacks.is_empty();
    let (servers, inputs) = Servers::new(loopbacks);
    let health = proxy::run(health_address, servers.health().clone(), metrics.clone(), stop.clone());
    parts.spawn(ends(health, "health server of the datapath"));
    let problems = watch::Sender::new(Problems::new());
    parts.spawn(ends(ports::run(inputs.checks, problems, stop.clone()), "health check node ports"));
    if has_localhost {
        let problems = watch::Sender::new(Problems::new());
        parts.spawn(ends(localhost::run(inputs.forwards, problems, stop.clone()), "node ports on localhost"));
    }
    Progress::new(servers, metrics)
}
