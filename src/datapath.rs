//! Forwards ClusterIP, NodePort and load-balancer traffic to endpoints.

pub mod apply;
pub mod entry;
pub mod nft;
pub mod plan;
