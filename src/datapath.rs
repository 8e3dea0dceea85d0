//! Forwards ClusterIP, NodePort and load-balancer traffic to endpoints.

pub mod apply;
pub mod conntrack;
pub mod desired;
pub mod endpoints;
pub mod entry;
pub mod foreign;
pub mod index;
pub mod leftovers;
pub mod metrics;
pub mod nft;
pub mod plan;
mod problems;
pub mod reconciler;
pub mod repairs;
pub mod settings;
pub mod simulate;
pub mod watch;
