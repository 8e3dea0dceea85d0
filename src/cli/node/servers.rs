//! The datapath's servers in user space: health checks of Services, its own health, NodePorts on localhost.

use super::parts::{Parts, ends};
use crate::datapath::health_check::{ports, proxy};
use crate::datapath::localhost;
use crate::datapath::metrics::kube_proxy::KubeProxyMetrics;
use crate::datapath::progress::Progress;
use crate::datapath::servers::Servers;
use crate::datapath::settings::Settings;
use crate::runtime::node_report::NodeReports;
use crate::runtime::shutdown::Shutdown;

/// Starts them, and gives the end at which the datapath feeds them.
pub(super) fn start(
    addresses: proxy::Addresses,
    settings: &Settings,
    metrics: KubeProxyMetrics,
    reports: &NodeReports,
    parts: &mut Parts,
    stop: &Shutdown,
) -> Progress {
    let loopbacks = settings.loopbacks();
    let has_localhost = !loopbacks.is_empty();
    let (servers, inputs) = Servers::new(loopbacks);
    let reporter = |part| reports.reporter("datapath", part);
    let health = servers.health().clone();
    let health = proxy::run(addresses, health, metrics.clone(), reporter("health"), stop.clone());
    parts.spawn(ends(health, "health server of the datapath"));
    let checks = ports::run(inputs.checks, reporter("health check node ports"), stop.clone());
    parts.spawn(ends(checks, "health check node ports"));
    if has_localhost {
        let forwards = localhost::run(inputs.forwards, reporter("node ports on localhost"), stop.clone());
        parts.spawn(ends(forwards, "node ports on localhost"));
    }
    Progress::new(servers, metrics)
}
