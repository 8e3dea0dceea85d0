//! The kernel's view: links, addresses and routes, nf_tables, tracked connections, and sockets for whole Ethernet frames.

pub mod ctnetlink;
mod datagrams;
pub mod links;
pub mod listeners;
mod message;
pub mod nf_tables;
pub mod packet_socket;
