//! The lab.
pub mod cache;
pub mod programs;
