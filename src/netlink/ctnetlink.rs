//! Reads and deletes tracked connections by netlink, without the `conntrack` program.
//!
//! The kernel walks its whole table for each read, and what costs is to tell of entries: a [`Filter`] has it tell only of
//! those that are asked for (`CTA_FILTER`, from kernel 5.8; older ones tell of all of a family, which is why what comes
//! back is held to the filter here too).
//!
//! Numbers are those of the kernel's `include/uapi/linux/netfilter/nfnetlink_conntrack.h`; the bits of filters stand in its
//! `net/netfilter/nf_internals.h`.

mod entry;

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use thiserror::Error;

pub use self::entry::{Entry, Filter};
use super::datagrams;
use super::message::{ACKNOWLEDGE, REQUEST, close_message, put_message_header};
use super::nf_tables::attribute::Attributes;
use super::nf_tables::connection::Messages;
use super::nf_tables::protocol_family;
use super::nf_tables::read::{DUMP, end_of};
use crate::model::Family;

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u8 = 1;
/// `IPCTNL_MSG_CT_NEW`: an entry.
const NEW: u8 = 0;
const GET: u8 = 1;
const DELETE: u8 = 2;
const GET_STATISTICS: u8 = 5;
/// `struct nfgenmsg`.
const NETFILTER_HEADER: usize = 4;
/// Room for answers: a refused deletion is answered with some 40 bytes, which the kernel counts as 800.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Deletions that go out at once, some 100 bytes each.
const DELETIONS: usize = 500;

/// Why entries are not known to be read or deleted.
#[derive(Debug, Error)]
pub enum ConntrackError {
    /// No socket.
    #[error("failed to open a netlink socket for connection tracking")]
    Open(#[source] io::Error),
    /// A request did not go out.
    #[error("failed to send to connection tracking")]
    Send(#[source] io::Error),
    /// The answer did not come in.
    #[error("failed to receive from connection tracking")]
    Receive(#[source] io::Error),
    /// The kernel refused.
    #[error("connection tracking refused to {what}: {errno:?}")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// The kernel did not say that it was done.
    #[error("connection tracking gave no answer")]
    NoAnswer,
}

/// A socket to the tracked connections of the network namespace that it was opened in. Its functions block for as long as
/// the kernel takes, some 0.3 s for 200,000 entries.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Conntrack {
    /// Opens the socket.
    ///
    /// # Errors
    /// When the system refuses one.
    pub fn open() -> Result<Self, ConntrackError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.set_cap_ack(true)?;
            // The kernel answers inside `send`, and goes on with a dump inside `recv`: what there is is there at once.
            socket.set_non_blocking(true)?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            Ok(socket)
        };
        let socket = open().map_err(ConntrackError::Open)?;
        Ok(Self { socket, buffer: Vec::with_capacity(64 << 10), sequence: 0 })
    }

    /// How many entries there are, of whatever kind.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn count(&mut self) -> Result<usize, ConntrackError> {
        const ENTRIES: u16 = 1;
        self.drain();
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        put_header(&mut bytes, GET_STATISTICS, 0, sequence, Family::V4);
        close_message(&mut bytes, 0);
        self.send(&bytes)?;
        let datagram = self.receive()?.ok_or(ConntrackError::NoAnswer)?;
        let answer = Messages(datagram).find(|answer| answer.sequence == sequence).ok_or(ConntrackError::NoAnswer)?;
        if let Some((errno, _)) = answer.error() {
            return Err(ConntrackError::Refused { what: "count connections", errno: Errno::from_raw(errno) });
        }
        let attributes = Attributes(answer.payload.get(NETFILTER_HEADER..).unwrap_or_default());
        let count = attributes.u32(ENTRIES).ok_or(ConntrackError::NoAnswer)?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// Hands out every entry that the filter admits. Entries that come or go meanwhile may be missing.
    ///
    /// # Errors
    /// When the kernel refuses or breaks off; entries may have been handed out before.
    pub fn dump(&mut self, filter: &Filter, mut take: impl FnMut(Entry)) -> Result<(), ConntrackError> {
        self.drain();
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        put_header(&mut bytes, GET, DUMP, sequence, filter.family);
        filter.write(&mut bytes);
        close_message(&mut bytes, 0);
        self.send(&bytes)?;
        while let Some(datagram) = self.receive()? {
            for answer in Messages(datagram).filter(|answer| answer.sequence == sequence) {
                match end_of(&answer) {
                    None if answer.kind == kind_of(NEW) => {
                        let entry = answer.payload.get(NETFILTER_HEADER..).and_then(Entry::read);
                        if let Some(entry) = entry.filter(|entry| filter.admits(entry)) {
                            take(entry);
                        }
                    }
                    None => {}
                    Some(0) => return Ok(()),
                    Some(errno) => {
                        return Err(ConntrackError::Refused {
                            what: "list connections",
                            errno: Errno::from_raw(errno),
                        });
                    }
                }
            }
        }
        Err(ConntrackError::NoAnswer)
    }

    /// Deletes entries and tells how many there were; one that went by itself meanwhile, or has a successor, is left out.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that there is no such entry; others may be deleted all the same.
    pub fn delete(&mut self, entries: &[Entry]) -> Result<usize, ConntrackError> {
        let mut deleted = 0;
        for some in entries.chunks(DELETIONS) {
            deleted += self.delete_some(some)?;
        }
        Ok(deleted)
    }

    fn delete_some(&mut self, entries: &[Entry]) -> Result<usize, ConntrackError> {
        self.drain();
        let mut bytes = Vec::new();
        for entry in entries {
            let start = bytes.len();
            let sequence = self.next_sequence();
            let family = Family::of(entry.destination.ip());
            put_header(&mut bytes, DELETE, ACKNOWLEDGE, sequence, family);
            entry.write_key(&mut bytes);
            close_message(bytes.get_mut(start..).unwrap_or_default(), 0);
        }
        self.send(&bytes)?;
        let (mut deleted, mut answered, mut refusal) = (0, 0, None);
        while answered < entries.len() {
            let Some(datagram) = self.receive()? else { return Err(ConntrackError::NoAnswer) };
            for answer in Messages(datagram) {
                let Some((errno, _)) = answer.error() else { continue };
                answered += 1;
                if errno == 0 {
                    deleted += 1;
                } else if Errno::from_raw(errno) != Errno::ENOENT {
                    refusal = Some(Errno::from_raw(errno));
                }
            }
        }
        refusal.map_or(Ok(deleted), |errno| Err(ConntrackError::Refused { what: "delete a connection", errno }))
    }

    const fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), ConntrackError> {
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map(drop).map_err(ConntrackError::Send)
    }

    /// The next datagram that is there.
    fn receive(&mut self) -> Result<Option<&[u8]>, ConntrackError> {
        datagrams::receive(&self.socket, &mut self.buffer).map_err(ConntrackError::Receive)
    }

    /// Forgets answers to an earlier request that failed half-way.
    fn drain(&mut self) {
        datagrams::drain(&self.socket, &mut self.buffer);
    }
}

const fn kind_of(message: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, message])
}

fn put_header(out: &mut Vec<u8>, message: u8, flags: u16, sequence: u32, family: Family) {
    put_message_header(out, kind_of(message), REQUEST | flags, sequence, protocol_family(family), 0);
}

#[cfg(test)]
mod tests;
