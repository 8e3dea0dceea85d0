//! The socket: sends a batch and tells what the kernel said to it.

use std::fmt;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use thiserror::Error;

use super::attribute::Attributes;
use super::batch::Batch;
use super::events::Silencer;
use crate::netlink::datagrams;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
const ERROR: u16 = 2;
pub(in crate::netlink) const DONE: u16 = 3;
const KERNEL: (u32, u32) = (0, 0);
/// Room for the answers to a batch; a message that fails is answered with some 60 bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// A batch of so many bytes, some thousand elements, is not told to our own listener.
const SILENT_FROM: usize = 64 << 10;

/// Why a transaction is not known to be done, or nothing could be read.
///
/// With `Open`, `Send` and `Refused` the kernel's tables are as before. With `Receive` and `NoAnswer` a transaction may have
/// been done all the same: who needs to know has to read.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// No socket.
    #[error("failed to open a netlink socket for nf_tables")]
    Open(#[source] io::Error),
    /// The batch did not go out.
    #[error("failed to send {bytes} bytes to nf_tables")]
    Send {
        /// Its size.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The answer did not come in.
    #[error("failed to receive from nf_tables")]
    Receive(#[source] io::Error),
    /// The kernel did not answer the last message.
    #[error("nf_tables gave no answer")]
    NoAnswer,
    /// The kernel refused it.
    #[error("nf_tables refused: {0}")]
    Refused(Failures),
    /// The tables changed while they were read, each time.
    #[error("nf_tables kept changing while it was read")]
    Interrupted,
}

impl ConnectionError {
    /// Whether the kernel's tables are surely as they were before.
    pub const fn is_untouched(&self) -> bool {
        match self {
            Self::Open(_) | Self::Send { .. } | Self::Refused(_) | Self::Interrupted => true,
            Self::Receive(_) | Self::NoAnswer => false,
        }
    }

    /// Whether the kernel has not what a transaction was made for: something is gone, or is there already.
    pub fn is_mismatch(&self) -> bool {
        let is_state = |failure: &Failure| matches!(failure.errno, Errno::ENOENT | Errno::EEXIST | Errno::EBUSY);
        match self {
            Self::Refused(Failures(failures)) => failures.iter().any(is_state),
            Self::Open(_) | Self::Send { .. } | Self::Receive(_) | Self::NoAnswer | Self::Interrupted => false,
        }
    }
}

/// One message of a batch that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was to do: the message of a batch, the batch as a whole, or a read.
    pub what: String,
    /// The kernel's error.
    pub errno: Errno,
    /// The kernel's own explanation, where it gives one.
    pub message: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.what, self.errno)?;
        self.message.as_ref().map_or(Ok(()), |message| write!(f, " ({message})"))
    }
}

/// All messages that the kernel refused, in their order; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures(pub Vec<Failure>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        for (index, failure) in self.0.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{failure}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A socket to the nf_tables of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Connection {
    pub(super) socket: Socket,
    pub(super) buffer: Vec<u8>,
    pub(super) sequence: u32,
    port: u32,
    silencer: Option<Silencer>,
}

impl Connection {
    /// Opens the socket.
    ///
    /// # Errors
    ///
    /// When the system has no nf_tables or refuses a socket.
    pub fn open() -> Result<Self, ConnectionError> {
        let open = || -> io::Result<(Socket, u32)> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            let port = socket.bind_auto()?.port_number();
            socket.set_ext_ack(true)?;
            // Without it each error brings the whole failed message back.
            socket.set_cap_ack(true)?;
            // The kernel answers inside `send`: all there will be is there when it returns.
            socket.set_non_blocking(true)?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            Ok((socket, port))
        };
        let (socket, port) = open().map_err(ConnectionError::Open)?;
        Ok(Self { socket, buffer: Vec::with_capacity(64 << 10), sequence: 0, port, silencer: None })
    }

    /// By which the kernel's events name this socket.
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// From now on a listener of ours is silent while a large transaction is done: the kernel would write out each of its
    /// elements for it.
    pub fn silence(&mut self, silencer: Silencer) {
        self.silencer = Some(silencer);
    }

    /// Does all of the batch or nothing. Takes as long as the kernel takes, some 0.1 s for 50,000 new elements.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Refused`] names what the kernel objected to. Others may come after the kernel did it.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), ConnectionError> {
        self.run(batch, false)
    }

    /// Has the kernel check the batch and changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::commit`] would.
    pub fn check(&mut self, batch: &Batch) -> Result<(), ConnectionError> {
        self.run(batch, true)
    }

    fn run(&mut self, batch: &Batch, is_check: bool) -> Result<(), ConnectionError> {
        if batch.is_empty() {
            return Ok(());
        }
        let bytes = batch.finish(is_check);
        // The kernel doubles the figure and takes no message that is longer than the buffer.
        let room = bytes.len().max(256 << 10);
        setsockopt(&self.socket, sockopt::SndBufForce, &room)
            .map_err(|source| ConnectionError::Send { bytes: bytes.len(), source: source.into() })?;
        match self.silencer.clone().filter(|_| !is_check && bytes.len() >= SILENT_FROM) {
            Some(silencer) => self.exchange_silently(batch, &bytes, &silencer),
            None => self.exchange(batch, &bytes),
        }
    }

    fn exchange(&mut self, batch: &Batch, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.drain();
        self.socket
            .send_to(bytes, &SocketAddr::new(KERNEL.0, KERNEL.1), 0)
            .map_err(|source| ConnectionError::Send { bytes: bytes.len(), source })?;
        self.read_answers(batch)
    }

    /// What others did while nobody listened is known by the generation: each transaction is one.
    fn exchange_silently(&mut self, batch: &Batch, bytes: &[u8], silencer: &Silencer) -> Result<(), ConnectionError> {
        let before = self.generation()?;
        silencer.leave();
        let outcome = self.exchange(batch, bytes);
        silencer.join();
        let ours = u32::from(outcome.is_ok());
        if !self.generation().is_ok_and(|after| after.wrapping_sub(before) == ours) {
            silencer.missed();
        }
        outcome
    }

    /// Reads until there is no more. An answer to the last message is there even when others failed.
    fn read_answers(&mut self, batch: &Batch) -> Result<(), ConnectionError> {
        let mut failures = Vec::new();
        let mut is_answered = false;
        while let Some(bytes) = self.receive()? {
            for answer in Messages(bytes) {
                let Some((errno, attributes)) = answer.error() else { continue };
                is_answered |= answer.sequence == batch.last_sequence();
                if errno == 0 {
                    continue;
                }
                failures.push(Failure {
                    what: batch.label(answer.sequence).map_or_else(|| "commit".to_owned(), ToString::to_string),
                    errno: Errno::from_raw(errno),
                    message: explanation(&attributes),
                });
            }
        }
        match (failures.is_empty(), is_answered) {
            (false, _) => Err(ConnectionError::Refused(Failures(failures))),
            (true, true) => Ok(()),
            (true, false) => Err(ConnectionError::NoAnswer),
        }
    }

    /// Forgets answers to an earlier request that failed half-way.
    pub(super) fn drain(&mut self) {
        datagrams::drain(&self.socket, &mut self.buffer);
    }

    /// The next datagram that is there.
    pub(super) fn receive(&mut self) -> Result<Option<&[u8]>, ConnectionError> {
        datagrams::receive(&self.socket, &mut self.buffer).map_err(ConnectionError::Receive)
    }
}

/// `NLMSGERR_ATTR_MSG`.
fn explanation(attributes: &Attributes<'_>) -> Option<String> {
    const MESSAGE: u16 = 1;
    let text = attributes.find(MESSAGE)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

/// A message of the kernel.
pub(in crate::netlink) struct Message<'a> {
    pub(in crate::netlink) kind: u16,
    pub(in crate::netlink) flags: u16,
    pub(in crate::netlink) sequence: u32,
    /// Who caused it, by the port of its socket.
    pub(in crate::netlink) port: u32,
    pub(in crate::netlink) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The error of an answer, 0 for success, with the attributes that explain it (`struct nlmsgerr`, capped).
    pub(in crate::netlink) fn error(&self) -> Option<(i32, Attributes<'a>)> {
        if self.kind != ERROR {
            return None;
        }
        let errno = i32::from_ne_bytes(self.payload.get(0..4)?.try_into().ok()?);
        Some((errno.saturating_neg(), Attributes(self.payload.get(4 + HEADER..).unwrap_or_default())))
    }
}

/// The messages in a datagram.
pub(in crate::netlink) struct Messages<'a>(pub(in crate::netlink) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(u32::from_ne_bytes(self.0.get(0..4)?.try_into().ok()?)).ok()?;
        let kind = u16::from_ne_bytes(self.0.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(self.0.get(6..8)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(self.0.get(8..12)?.try_into().ok()?);
        let port = u32::from_ne_bytes(self.0.get(12..16)?.try_into().ok()?);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, port, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::netlink::nf_tables::test::in_new_namespace;
    use crate::netlink::nf_tables::{Chain, Expression, Register, Set, SetKind, Table};
    use crate::netlink::nf_tables::{Field, Verdict};

    const TABLE: Table = Table { family: Family::V4, name: "steelyard" };

    fn table_with_a_chain() -> Batch {
        let mut batch = Batch::new();
        batch.add_table(TABLE, Some("a comment"));
        batch.add_chain(TABLE, &Chain { name: "frontend".into(), hook: None });
        batch
    }

    #[test]
    fn errors_name_what_failed() {
        in_new_namespace(|| {
            let mut batch = table_with_a_chain();
            let name = "frontend";
            batch.add_rule(TABLE, name, &[Expression::Verdict(Verdict::Drop)]);
            batch.add_rule(TABLE, name, &[Expression::Contained(Register(0), "absent")]);
            batch.add_rule(TABLE, name, &[Expression::Verdict(Verdict::Jump("nowhere".into()))]);
            let error = Connection::open().unwrap().commit(&batch).unwrap_err();
            assert_eq!(
                error.to_string(),
                "nf_tables refused: add rule 2 of chain ip steelyard frontend: ENOENT, \
                 add rule 3 of chain ip steelyard frontend: ENOENT"
            );
            assert_eq!(nft(&["list", "ruleset"]), "");
        });
    }

    #[test]
    fn a_check_changes_nothing_and_finds_errors() {
        in_new_namespace(|| {
            let mut connection = Connection::open().unwrap();
            connection.check(&table_with_a_chain()).unwrap();
            assert_eq!(nft(&["list", "ruleset"]), "");
            let mut batch = table_with_a_chain();
            batch.delete_elements(TABLE, "absent", [1u32], |_, element| element.write(|element| element.key(&[0; 4])));
            assert!(matches!(connection.check(&batch), Err(ConnectionError::Refused(_))));
            connection.commit(&table_with_a_chain()).unwrap();
            assert!(nft(&["list", "ruleset"]).contains("chain frontend"));
        });
    }

    #[test]
    fn elements_and_comment_are_read_back() {
        in_new_namespace(|| {
            let mut connection = Connection::open().unwrap();
            let mut batch = table_with_a_chain();
            batch.add_set(TABLE, &Set::map("services", vec![Field::Priority], vec![Field::Priority]));
            batch.add_set(TABLE, &Set::new("pod_cidrs", SetKind::Interval, vec![Field::Source(Family::V4)]));
            batch.add_elements(TABLE, "services", 0..20_000u32, |number, element| {
                element.write(|element| {
                    element.key(&number.to_ne_bytes());
                    element.value(&(number + 1).to_ne_bytes());
                });
            });
            connection.commit(&batch).unwrap();
            let mut elements = connection.elements(TABLE, "services").unwrap();
            elements.sort_by_key(|element| u32::from_ne_bytes(element.key[..].try_into().unwrap()));
            assert_eq!(elements.len(), 20_000);
            assert_eq!(elements[7].value, 8u32.to_ne_bytes());
            assert_eq!(connection.elements(TABLE, "pod_cidrs").unwrap().len(), 0);
            assert_eq!(connection.table(TABLE).unwrap().unwrap().comment.as_deref(), Some("a comment"));
            assert!(connection.table(Table { family: Family::V6, ..TABLE }).unwrap().is_none());
        });
    }

    fn nft(arguments: &[&str]) -> String {
        crate::netlink::nf_tables::test::nft(arguments, "")
    }
}
