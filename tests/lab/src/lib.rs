//! The lab.
pub mod cache;
pub mod images;
pub mod programs;
pub mod rootfs;
