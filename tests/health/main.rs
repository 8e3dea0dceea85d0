//! The datapath's servers in user space with real sockets: health check ports, the datapath's own health, NodePorts on
//! localhost. Each test has a node and a neighbour in network namespaces of its own.
//!
//! Needs root, `ip` and `nft`; a test that misses one fails and says so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failed assumption is a failed test"
)]

mod localhost;
#[path = "../speaker/namespace.rs"]
#[allow(dead_code, reason = "shared with the tests of the speaker, each of which uses a part")]
mod namespace;
mod node;
mod ports;
mod proxy;
