//! Forwards ClusterIP, NodePort and load-balancer traffic to endpoints.

pub mod entry;
