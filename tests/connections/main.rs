//! What becomes of connections that are tracked already: a real agent's datapath on a node in a namespace, real clients that
//! keep their source port, real endpoints. As root; `--nocapture` prints what was measured.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, not covered by the exceptions for test functions"
)]

mod agent;
mod cost;
mod endpoints;
mod invalid;
#[path = "../stage/namespace.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other tests, each of which uses a part")]
mod namespace;
mod stage;
mod tcp;
mod udp;
mod udp_cases;
