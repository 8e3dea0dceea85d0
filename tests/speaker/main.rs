//! The speaker and membership with real packets, each test in network namespaces of its own.
//!
//! Needs root and `ip`, `arping` (Habets), `ndisc6`; a test that misses one fails and says so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failed assumption is a failed test"
)]

mod layer2;
mod links;
mod membership;
mod namespace;
mod responders;
