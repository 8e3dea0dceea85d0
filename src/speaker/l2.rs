//! Layer 2: answers ARP and NDP for announced addresses and tells the link who has them.
//!
//! ```text
//!  apply.rs ──Station──▶ interface.rs, one task per interface
//!                          │ socket.rs      sockets, kernel filters, groups
//!                          │ responder.rs   frame in, frame or reason out (pure) ─▶ arp.rs, ndp.rs (bytes, pure)
//!                          └ gratuitous.rs  when to speak unasked (pure)
//! ```
//!
//! Addresses are never put on interfaces: the kernel does not know them, so it neither answers for them nor routes to
//! them as its own.

pub mod arp;
pub mod gratuitous;
pub mod interface;
pub mod ndp;
pub mod responder;
pub mod socket;
