//! Steelyard: addresses, announcement and forwarding for `LoadBalancer` Services on bare metal.
//!
//! Three components, one shape. Each is a loop of five stations; the outer two do I/O, the three between are plain
//! functions over plain values, so that the cluster and the tests run the same code.
//!
//! ```text
//!      I/O in            pure              pure             pure           I/O out
//!  ┌────────────┐    ┌──────────┐    ┌──────────────┐   ┌──────────┐   ┌────────────┐
//!  │  watch.rs  │ ─▶ │ index.rs │ ─▶ │  desired.rs  │ ─▶│ plan.rs  │ ─▶│  apply.rs  │
//!  │ API, links │    │ what we  │    │ what should  │   │ what to  │   │ API, nft,  │
//!  │            │    │ have seen│    │ be true      │   │ change   │   │ packets    │
//!  └────────────┘    └──────────┘    └──────────────┘   └──────────┘   └────────────┘
//!                                                             ▲               │
//!                                                             └──── actual ───┘
//! ```
//!
//! # Layers
//!
//! A module uses only what stands above it in this list:
//!
//! | layer | modules | may do I/O |
//! |---|---|---|
//! | words | [`names`], [`api`] | no |
//! | checked values | [`model`] | no |
//! | machinery | [`runtime`], [`netlink`], [`membership`] | yes |
//! | components | [`controller`], [`speaker`], [`datapath`] | `watch` and `apply` only |
//! | command line | [`cli`] | yes |

pub mod api;
pub mod cli;
pub mod controller;
pub mod datapath;
pub mod membership;
pub mod model;
pub mod names;
pub mod netlink;
pub mod runtime;
pub mod speaker;
