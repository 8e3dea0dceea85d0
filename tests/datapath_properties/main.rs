//! Properties of the datapath's pure half, and of the loader that holds it to the fact tables.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, not covered by the exceptions for test functions"
)]

#[path = "../flows/flows.rs"]
mod flows;
mod hostile;
mod incremental;
mod loader;
mod objects;
