//! What all components share and what does I/O: the reconcile loop, watches, the lease, the admin server, sockets,
//! telemetry, shutdown, settings of the kernel.

pub mod admin;
pub mod heap;
pub mod http;
pub mod lease;
pub mod limits;
pub mod listeners;
pub mod mailbox;
pub mod node_announcement;
pub mod node_report;
pub mod observed;
pub mod pages;
pub mod reconcile;
pub mod service_proxy;
pub mod shutdown;
pub mod sysctls;
pub mod telemetry;
pub mod unread;
pub mod watch;
pub mod watch_one;
