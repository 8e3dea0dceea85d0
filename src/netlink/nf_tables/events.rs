//! Tells when others change our tables: a listener to the kernel's notices of every nf_tables transaction.
//!
//! Our own transactions are left out in the kernel, by the port of the socket that made them: a filter on the listener's
//! socket sees it in the header of the first message of each notice, and a notice never mixes two transactions. What
//! others do to tables of their own is read and forgotten.
//!
//! As long as anybody listens, the kernel writes a message for each element that comes or goes, about 1 µs each, before it
//! asks any filter. So the listener leaves the group while a large transaction of ours is done, and the number of the
//! generation tells afterwards whether somebody else was there meanwhile ([`Silencer`]).

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, TokioSocket};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockFilter, SockRef};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::attribute::Attributes;
use super::batch::SUBSYSTEM;
use super::connection::{ConnectionError, Message, Messages};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
const NEW_GENERATION: u8 = 15;
/// `struct nfgenmsg`.
const NETFILTER_HEADER: usize = 4;
/// Somebody's transaction of 50,000 elements is 4 MB of notices.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Notices are no longer than this.
const LONGEST: usize = 64 << 10;
/// The name of who did it comes in the last notice of a transaction; so long we wait for it.
const NAME_WITHIN: Duration = Duration::from_millis(2);

/// Somebody else changed our tables, or may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Who, as far as the kernel told.
    pub process: Option<Process>,
}

/// A process that changed tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some(process) => process.fmt(f),
            None => f.write_str("somebody"),
        }
    }
}

/// Hears what others do to the tables of one name, in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    table: &'static str,
    own_ports: Box<[u32]>,
    buffer: Vec<u8>,
}

/// Lets a listener miss our own large transactions.
#[derive(Clone, Debug)]
pub struct Silencer(Arc<Shared>);

struct Shared {
    socket: Mutex<TokioSocket>,
    missed: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Silencer {
    /// The kernel tells the listener nothing from now on.
    pub(super) fn leave(&self) {
        self.set_membership(false);
    }

    /// It does again.
    pub(super) fn join(&self) {
        self.set_membership(true);
    }

    /// Something was lost: the listener reports a change.
    pub(super) fn missed(&self) {
        self.0.missed.notify_one();
    }

    fn set_membership(&self, is_member: bool) {
        let mut socket = self.0.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = socket.socket_mut();
        let done = if is_member { socket.add_membership(GROUP) } else { socket.drop_membership(GROUP) };
        if let Err(error) = done {
            tracing::warn!(%error, is_member, "failed to join or leave the kernel's notices of nf_tables");
            self.missed();
        }
    }
}

impl Listener {
    /// Listens from now on. Changes made by the sockets with these ports are ours.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket, or it may not listen.
    pub fn open(table: &'static str, own_ports: &[u32]) -> Result<Self, ConnectionError> {
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            SockRef::from(socket.socket_ref()).attach_filter(&all_but(own_ports))?;
            socket.socket_mut().bind_auto()?;
            socket.socket_mut().add_membership(GROUP)?;
            Ok(socket)
        };
        let socket = open().map_err(ConnectionError::Open)?;
        let shared = Arc::new(Shared { socket: Mutex::new(socket), missed: Notify::new() });
        Ok(Self { shared, table, own_ports: own_ports.into(), buffer: Vec::with_capacity(LONGEST) })
    }

    /// What keeps this listener from hearing our own large transactions.
    pub fn silencer(&self) -> Silencer {
        Silencer(Arc::clone(&self.shared))
    }

    /// Waits until somebody else has changed our tables. Changes that came together are told once. Cancel safe, save that
    /// a change may go unnoticed with the future that was about to tell it.
    ///
    /// # Errors
    ///
    /// When the socket is broken.
    pub async fn changed(&mut self) -> Result<Foreign, ConnectionError> {
        let mut culprit = self.first().await?;
        while culprit.process.is_none() && culprit.port.is_some() {
            match timeout(NAME_WITHIN, self.next()).await {
                Ok(seen) => {
                    let seen = seen?;
                    // Transactions come one after another. Of this one the end was lost, and others may never pause.
                    let is_over = seen.port != culprit.port;
                    culprit.add(seen);
                    if is_over {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        Ok(Foreign { process: culprit.process })
    }

    async fn first(&mut self) -> Result<Culprit, ConnectionError> {
        loop {
            let shared = Arc::clone(&self.shared);
            let seen = tokio::select! {
                () = shared.missed.notified() => return Ok(Culprit::default()),
                seen = self.next() => seen?,
            };
            if seen.is_touched {
                let mut culprit = Culprit::default();
                culprit.add(seen);
                return Ok(culprit);
            }
        }
    }

    /// What the next notice says.
    async fn next(&mut self) -> Result<Seen, ConnectionError> {
        let Self { shared, table, own_ports, buffer } = self;
        buffer.clear();
        match poll_fn(|context| receive(shared, context, buffer)).await {
            Ok(()) => Ok(Seen::read(buffer, table, own_ports)),
            // There was more than we read: whatever it was, it is worth a look.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                Ok(Seen { is_touched: true, ..Seen::default() })
            }
            Err(error) => Err(ConnectionError::Receive(error)),
        }
    }
}

fn receive(shared: &Shared, context: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<()>> {
    let socket = shared.socket.lock().unwrap_or_else(PoisonError::into_inner);
    socket.poll_recv(context, buffer)
}

/// A filter that drops what these ports did. The kernel reads numbers in network order.
fn all_but(ports: &[u32]) -> Vec<SockFilter> {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// `nlmsg_pid` of the first message.
    const PORT_OFFSET: u32 = 12;
    let mut filter = vec![SockFilter::new(LOAD_WORD, 0, 0, PORT_OFFSET)];
    for port in ports {
        filter.push(SockFilter::new(JUMP_IF_EQUAL, 0, 1, port.to_be()));
        filter.push(SockFilter::new(RETURN, 0, 0, 0));
    }
    filter.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    filter
}

/// Who is known to have touched our tables.
#[derive(Debug, Default)]
struct Culprit {
    port: Option<u32>,
    process: Option<Process>,
}

impl Culprit {
    fn add(&mut self, seen: Seen) {
        if seen.is_touched && self.port.is_none() {
            self.port = seen.port;
        }
        if self.port.is_some() && self.port == seen.port {
            self.process = self.process.take().or(seen.process);
        }
    }
}

/// What a notice says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    is_touched: bool,
    port: Option<u32>,
    process: Option<Process>,
}

impl Seen {
    fn read(notice: &[u8], table: &str, own_ports: &[u32]) -> Self {
        let mut seen = Self::default();
        for message in Messages(notice).filter(|message| !own_ports.contains(&message.port)) {
            let [kind, subsystem] = message.kind.to_le_bytes();
            if subsystem != SUBSYSTEM {
                continue;
            }
            seen.port = Some(message.port);
            if kind == NEW_GENERATION {
                seen.process = process(&message);
            } else {
                seen.is_touched |= is_about(&message, table);
            }
        }
        seen
    }
}

fn attributes<'a>(message: &Message<'a>) -> Attributes<'a> {
    Attributes(message.payload.get(NETFILTER_HEADER..).unwrap_or_default())
}

fn process(generation: &Message<'_>) -> Option<Process> {
    const PID: u16 = 2;
    const NAME: u16 = 3;
    let attributes = attributes(generation);
    Some(Process { pid: attributes.u32(PID)?, name: attributes.text(NAME)? })
}

/// Messages about anything in a table begin with the table's name.
fn is_about(message: &Message<'_>, table: &str) -> bool {
    const TABLE: u16 = 1;
    let is_ours =
        attributes(message).find(TABLE).is_some_and(|name| name.strip_suffix(b"\0") == Some(table.as_bytes()));
    let family = message.payload.first().copied();
    is_ours && crate::model::Family::ALL.into_iter().any(|of| Some(super::protocol_family(of)) == family)
}

#[cfg(test)]
mod tests;
