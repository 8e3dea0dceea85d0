//! The kernel's view: links, addresses, neighbours, nf_tables, conntrack.

pub mod nf_tables;
