//! What all components share and what does I/O: the reconcile loop, watches, the lease, the admin server, telemetry,
//! shutdown.

pub mod admin;
pub mod lease;
pub mod node_announcement;
pub mod node_report;
pub mod observed;
pub mod reconcile;
pub mod service_proxy;
pub mod shutdown;
pub mod telemetry;
pub mod watch;
pub mod watch_one;
