//! Steelyard on a real cluster: `make e2e`, or `cargo test --test e2e` as root. The lab that `STEELYARD_LAB` names is
//! used if it is up; else one of three nodes is started, and goes down when the tests end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

mod assignment;
mod crds;
mod failover;
mod install;
mod load;
mod server;
mod services;
mod under_load;
mod web;
