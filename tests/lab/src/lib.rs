//! A real Kubernetes cluster on one Linux machine, as root and with no container engine.
//!
//! ```text
//!   steelyard-lab up                          network namespaces steelyard-<lab>-…
//!   ────────────────                          ┌─────────────────────────────────────────────────────────┐
//!   programs, images    built once, cached    │ fabric: one bridge, a port for everybody                │
//!   pki                 who is who            ├───────────┬───────────┬───────┬───────┬────────┬────────┤
//!   network             namespaces, routes    │ control   │ node1     │ node2 │  …    │ client │ router │
//!   machine ─▶ init     one PID 1 for each    │ etcd      │ containerd│       │       │        │   │    │
//!   manifests           nodes, CoreDNS        │ apiserver │ kubelet   │       │       │        │ remote │
//!                                             │ …         │ pods      │       │       │        │        │
//!   lab                 all of it together    └───────────┴───────────┴───────┴───────┴────────┴────────┘
//!   place               send packets from any of these
//!   failure             break a node, heal it
//!   diagnose            what a failed test prints
//! ```
//!
//! Everything that a lab makes on the machine is named after it ([`layout`]), so that whoever comes after a crash can
//! find and remove it. The machine's own network namespace gets nothing.

pub mod api;
pub mod api_server;
pub mod cache;
pub mod cgroup;
pub mod conformance;
mod control_plane;
pub mod demo;
mod diagnose;
mod down;
mod failure;
mod http;
pub mod images;
pub mod init;
mod install;
mod kubectl;
mod lab;
pub mod layout;
pub mod machine;
mod manifests;
mod mounts;
pub mod netns;
mod network;
mod node;
mod outside;
mod pki;
mod place;
pub mod programs;
mod progress;
pub mod rootfs;
pub mod run;
mod sctp;
mod shared;
mod up;
mod wait;

/// What the library's functions fail with.
pub use anyhow::Error;
pub use diagnose::DiagnoseOnPanic;
pub use down::{down, purge};
pub use failure::Failure;
pub use http::Response;
pub use install::steelyard_binary;
pub use lab::{Datapath, Lab, Options, Record};
pub use layout::{LabName, Layout, Member};
pub use place::{Place, Vantage, error_kind};
pub use progress::Progress;
pub use sctp::{SctpReply, SctpServer};
pub use shared::guard;
pub use wait::wait;
