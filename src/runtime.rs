//! What all components share and what does I/O: the reconcile loop, watches, the lease, the admin server, telemetry,
//! shutdown.

pub mod lease;
pub mod reconcile;
pub mod shutdown;
pub mod watch;
