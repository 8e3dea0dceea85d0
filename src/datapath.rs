//! Forwards ClusterIP, NodePort and load-balancer traffic to endpoints.

pub mod conntrack;
pub mod desired;
pub mod endpoints;
pub mod entry;
pub mod index;
pub mod settings;
pub mod simulate;
