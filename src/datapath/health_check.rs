//! The health checks of load balancers: for each Service of type `LoadBalancer` with `externalTrafficPolicy: Local` a small
//! HTTP server on its `healthCheckNodePort`, which says how many endpoints this node has; and, on a port of its own, how
//! the datapath itself does.
//!
//! `checks` decides which ports answer and what, `freshness` whether the datapath keeps up; `ports` and `proxy` are the
//! servers.

pub mod checks;
pub mod freshness;
pub mod ports;
pub mod proxy;
