//! The kernel's view: links, addresses and routes, and sockets for whole Ethernet frames.

pub mod links;
pub mod packet_socket;
