//! Forwards ClusterIP, NodePort and load-balancer traffic to endpoints.

pub mod apply;
mod aside;
pub mod conntrack;
pub mod desired;
pub mod endpoints;
pub mod entry;
pub mod foreign;
pub mod health_check;
pub mod index;
pub mod leftovers;
pub mod localhost;
mod looks;
pub mod metrics;
pub mod nft;
pub mod plan;
mod problems;
pub mod progress;
pub mod reconciler;
pub mod repairs;
pub mod servers;
pub mod service;
pub mod settings;
pub mod simulate;
pub mod sweeper;
mod unusable;
pub mod watch;
