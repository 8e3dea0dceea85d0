//! Announces addresses on the local network.

pub mod election;
pub mod l2;
pub mod metrics;
