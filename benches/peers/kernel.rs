//! What the kernel of a node has: how much is programmed, and when a transaction was committed.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use steelyard::model::Family;
use steelyard::netlink::nf_tables::{Connection, Table};

use crate::proxies::Who;
use crate::world::World;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: what the kernel says after each transaction.
const NEW_GENERATION: u16 = 10 << 8 | 15;
const NETFILTER: isize = 12;

/// Asks the kernel about a node's rules.
pub struct Rules(Connection);

impl Rules {
    pub fn of(world: &World) -> Self {
        Self(world.node.within(|| Connection::open().unwrap()))
    }

    /// The number of the last transaction.
    pub fn generation(&mut self) -> u32 {
        self.0.generation().unwrap()
    }

    /// Whether so many Services with their endpoints are programmed. A proxy's transaction is all or nothing, so its
    /// largest map tells. While somebody writes there is no answer, which means no.
    pub fn hold(&mut self, who: Who, services: u32) -> bool {
        let wanted = services as usize;
        let mut count = |table: &'static str, set: &'static str| {
            let table = Table { family: Family::V4, name: table };
            self.0.elements(table, set).map_or(0, |elements| elements.len())
        };
        match who {
            Who::Steelyard | Who::Earlier => {
                count("steelyard", "frontends") >= wanted && count("steelyard", "endpoints") >= wanted * 5
            }
            // Only Services with endpoints are in it, and they are jumps to chains that must be there.
            Who::KubeProxy => count("kube-proxy", "service-ips") >= wanted,
        }
    }
}

/// Transactions as they are committed.
pub struct Commits(Socket);

impl Commits {
    pub fn of(world: &World) -> Self {
        let socket = world.node.within(|| {
            let mut socket = Socket::new(NETFILTER).unwrap();
            socket.bind(&SocketAddr::new(0, 0)).unwrap();
            socket.add_membership(GROUP).unwrap();
            socket.set_rx_buf_sz(64_i32 << 20).unwrap();
            socket.set_non_blocking(true).unwrap();
            socket
        });
        Self(socket)
    }

    /// Forgets those that were.
    pub fn drain(&self) -> bool {
        let mut was_any = false;
        while let Some(is_commit) = self.read() {
            was_any |= is_commit;
        }
        was_any
    }

    /// When the next one is seen; none within the limit.
    pub fn next(&self, limit: Duration) -> Option<Instant> {
        let until = Instant::now() + limit;
        loop {
            match self.read() {
                Some(true) => return Some(Instant::now()),
                Some(false) => {}
                None => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                    poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout).unwrap();
                }
            }
        }
    }

    /// One datagram, and whether it tells of a commit.
    fn read(&self) -> Option<bool> {
        let mut buffer = Vec::with_capacity(64 << 10);
        match self.0.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("failed to read the kernel's notices: {error}"),
        }
        let mut rest = buffer.as_slice();
        let mut is_commit = false;
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            is_commit |= u16::from_ne_bytes([rest[4], rest[5]]) == NEW_GENERATION;
            rest = rest.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
        }
        Some(is_commit)
    }
}
