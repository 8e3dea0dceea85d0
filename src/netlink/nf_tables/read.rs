//! Reads back what is in the kernel: a table's comment and the elements of its sets.
//!
//! Each call is a read of its own: between two of them, anyone may change the tables.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use netlink_sys::SocketAddr;
use nix::errno::Errno;

use super::attribute::{Attributes, put_text};
use super::batch::{SUBSYSTEM, Table};
use super::connection::{Connection, ConnectionError, DONE, Failure, Failures, Message, Messages};
use super::element::{DATA_VALUE, INTERVAL_END};
use super::protocol_family;
use crate::model::Family;
use crate::netlink::message::{REQUEST, close_message, put_message_header};

const GET_TABLE: u8 = 1;
const GET_SET: u8 = 10;
const GET_ELEMENTS: u8 = 13;
const GET_GENERATION: u8 = 16;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub(in crate::netlink) const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: what the dump gives is no one state of the tables.
const DUMP_INTERRUPTED: u16 = 0x10;
/// How often a dump is begun before it is given up.
const ATTEMPTS: usize = 4;
/// How often a set is walked until no element is named twice.
const WALKS: usize = 8;
/// `struct nfgenmsg`.
const NETFILTER_HEADER: usize = 4;

/// What is known of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpedTable {
    /// The comment that it was made with.
    pub comment: Option<String>,
    /// `NFT_TABLE_F_*`.
    pub flags: u32,
}

/// An element of a set or map, as bytes: each field in its own order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DumpedElement {
    /// The key.
    pub key: Vec<u8>,
    /// The last key of a range of concatenated keys.
    pub key_end: Vec<u8>,
    /// A map's value; empty for sets and for verdicts.
    pub value: Vec<u8>,
    /// The chain that a verdict goes to.
    pub chain: Option<String>,
    /// Whether the key is the first behind an interval.
    pub is_interval_end: bool,
}

impl Connection {
    /// The table, if there is one.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or refuses for another reason than that there is none.
    pub fn table(&mut self, table: Table) -> Result<Option<DumpedTable>, ConnectionError> {
        const NAME: u16 = 1;
        const FLAGS: u16 = 2;
        let mut found = None;
        let request = |out: &mut Vec<u8>| put_text(out, NAME, table.name);
        let asked = self.ask(GET_TABLE, 0, table, request, |attributes| {
            found =
                Some(DumpedTable { comment: comment(&attributes), flags: attributes.u32(FLAGS).unwrap_or_default() });
        });
        match asked {
            Err(ConnectionError::Refused(Failures(failures)))
                if failures.iter().all(|failure| failure.errno == Errno::ENOENT) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
            Ok(()) => Ok(found),
        }
    }

    /// How many elements the sets and maps of a table may have, of those that have a size.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or it says each time that the tables changed meanwhile.
    pub fn sizes(&mut self, table: Table) -> Result<BTreeMap<String, u32>, ConnectionError> {
        const TABLE: u16 = 1;
        const NAME: u16 = 2;
        const DESCRIPTION: u16 = 9;
        const SIZE: u16 = 1;
        self.uninterrupted(|connection| {
            let mut sizes = BTreeMap::new();
            let request = |out: &mut Vec<u8>| put_text(out, TABLE, table.name);
            connection.ask(GET_SET, DUMP, table, request, |attributes| {
                let size = attributes.nested(DESCRIPTION).and_then(|description| description.u32(SIZE));
                if let (Some(name), Some(size)) = (attributes.text(NAME), size) {
                    sizes.insert(name, size);
                }
            })?;
            Ok(sizes)
        })
    }

    /// All elements of a set or map, in the order of their keys.
    ///
    /// The kernel's hash, where it has no size, may be growing while it is walked, just after many elements came: each part
    /// of the walk goes on behind as many elements as were seen, so that some are named twice and as many not at all. It is
    /// walked again then; where packets add elements all the time, the last walk has to do.
    ///
    /// # Errors
    ///
    /// When there is no such set, the kernel does not answer, or it says each time that the tables changed meanwhile.
    pub fn elements(&mut self, table: Table, set: &'static str) -> Result<Vec<DumpedElement>, ConnectionError> {
        let mut last = None;
        for _ in 0..WALKS {
            let walked = self.uninterrupted(|connection| {
                let mut found = Vec::new();
                connection.dump_elements(table, set, |element| found.push(element))?;
                Ok(found)
            });
            let mut found = match walked {
                Ok(found) => found,
                Err(ConnectionError::Interrupted) => break,
                Err(error) => return Err(error),
            };
            let seen = found.len();
            found.sort_unstable();
            found.dedup();
            if found.len() == seen {
                return Ok(found);
            }
            last = Some(found);
        }
        last.ok_or(ConnectionError::Interrupted)
    }

    /// Hands out the elements of a set or map and keeps none, since there may be many: in no order, some perhaps twice.
    /// Walks as often as [`Self::elements`], and makes do with less where packets or transactions are always in between.
    ///
    /// # Errors
    ///
    /// When there is no such set, or the kernel does not answer.
    pub fn walk(
        &mut self,
        table: Table,
        set: &'static str,
        mut take: impl FnMut(DumpedElement),
    ) -> Result<(), ConnectionError> {
        let mut seen: Vec<u64> = Vec::new();
        for _ in 0..WALKS {
            seen.clear();
            let walked = self.dump_elements(table, set, |element| {
                let mut hasher = DefaultHasher::new();
                element.key.hash(&mut hasher);
                seen.push(hasher.finish());
                take(element);
            });
            match walked {
                Ok(()) => {}
                Err(ConnectionError::Interrupted) => continue,
                Err(error) => return Err(error),
            }
            let count = seen.len();
            seen.sort_unstable();
            seen.dedup();
            if seen.len() == count {
                break;
            }
        }
        Ok(())
    }

    fn dump_elements(
        &mut self,
        table: Table,
        set: &'static str,
        mut take: impl FnMut(DumpedElement),
    ) -> Result<(), ConnectionError> {
        const TABLE: u16 = 1;
        const SET: u16 = 2;
        const ELEMENTS: u16 = 3;
        let request = |out: &mut Vec<u8>| {
            put_text(out, TABLE, table.name);
            put_text(out, SET, set);
        };
        self.ask(GET_ELEMENTS, DUMP, table, request, |attributes| {
            let list = attributes.nested(ELEMENTS).into_iter().flatten();
            list.for_each(|(_, element)| take(read_element(&Attributes(element))));
        })
    }

    /// The number of the last transaction that anybody made in this network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn generation(&mut self) -> Result<u32, ConnectionError> {
        const ID: u16 = 1;
        let mut generation = None;
        let any = Table { family: Family::V4, name: "" };
        self.ask(GET_GENERATION, 0, any, |_| {}, |attributes| generation = attributes.u32(ID))?;
        generation.ok_or(ConnectionError::NoAnswer)
    }

    /// Reads by dumps until no transaction of anybody comes in between: what such a dump gives is no one state of the tables.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Interrupted`] when one comes each time; all others at once.
    pub(super) fn uninterrupted<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, ConnectionError>,
    ) -> Result<T, ConnectionError> {
        for _ in 0..ATTEMPTS {
            match read(self) {
                Err(ConnectionError::Interrupted) => {}
                outcome => return outcome,
            }
        }
        Err(ConnectionError::Interrupted)
    }

    /// Sends one request and hands out the attributes of each answer, until the last.
    pub(super) fn ask(
        &mut self,
        message: u8,
        flags: u16,
        table: Table,
        fill: impl FnOnce(&mut Vec<u8>),
        mut take: impl FnMut(Attributes<'_>),
    ) -> Result<(), ConnectionError> {
        self.drain();
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut bytes = Vec::new();
        let kind = u16::from_be_bytes([SUBSYSTEM, message]);
        put_message_header(&mut bytes, kind, REQUEST | flags, sequence, protocol_family(table.family), 0);
        fill(&mut bytes);
        close_message(&mut bytes, 0);
        self.socket
            .send_to(&bytes, &SocketAddr::new(0, 0), 0)
            .map_err(|source| ConnectionError::Send { bytes: bytes.len(), source })?;
        let is_dump = flags & DUMP != 0;
        let mut is_answered = false;
        let mut is_interrupted = false;
        // The kernel fills the next datagram of a dump while this one is read, so there always is one until the end.
        while let Some(datagram) = self.receive()? {
            for answer in Messages(datagram).filter(|answer| answer.sequence == sequence) {
                is_interrupted |= answer.flags & DUMP_INTERRUPTED != 0;
                match end_of(&answer) {
                    None => {}
                    Some(0) if is_interrupted => return Err(ConnectionError::Interrupted),
                    Some(0) => return Ok(()),
                    Some(errno) if Errno::from_raw(errno) == Errno::EINTR => return Err(ConnectionError::Interrupted),
                    Some(errno) => {
                        let what = format!("read of table {table}");
                        let failure = Failure { what, errno: Errno::from_raw(errno), message: None };
                        return Err(ConnectionError::Refused(Failures(vec![failure])));
                    }
                }
                is_answered = true;
                take(Attributes(answer.payload.get(NETFILTER_HEADER..).unwrap_or_default()));
            }
        }
        if is_answered && !is_dump { Ok(()) } else { Err(ConnectionError::NoAnswer) }
    }
}

/// The error of a message that ends an answer, 0 for success: also a dump that breaks off half-way ends as if it were
/// done, with its error behind the header.
pub(in crate::netlink) fn end_of(answer: &Message<'_>) -> Option<i32> {
    if answer.kind == DONE {
        let status = answer.payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        return Some(status.min(0).saturating_neg());
    }
    answer.error().map(|(errno, _)| errno)
}

fn comment(attributes: &Attributes<'_>) -> Option<String> {
    const USERDATA: u16 = 6;
    const COMMENT: u8 = 0;
    match attributes.find(USERDATA)? {
        [COMMENT, length, text @ ..] => {
            let text = text.get(..usize::from(*length))?;
            Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
        }
        _ => None,
    }
}

fn read_element(attributes: &Attributes<'_>) -> DumpedElement {
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_END: u16 = 10;
    const DATA_VERDICT: u16 = 2;
    const VERDICT_CHAIN: u16 = 2;
    let value = |kind| attributes.nested(kind).and_then(|data| data.find(DATA_VALUE)).unwrap_or_default().to_vec();
    let verdict = attributes.nested(DATA).and_then(|data| data.nested(DATA_VERDICT));
    let chain = verdict.and_then(|verdict| verdict.find(VERDICT_CHAIN));
    DumpedElement {
        key: value(KEY),
        key_end: value(KEY_END),
        value: value(DATA),
        chain: chain.map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()),
        is_interval_end: attributes.u32(FLAGS).is_some_and(|flags| flags & INTERVAL_END != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::nf_tables::test::in_new_namespace;

    #[test]
    fn a_dump_that_was_interrupted_is_begun_anew_some_times() {
        in_new_namespace(|| {
            let mut connection = Connection::open().unwrap();
            let mut read = |interruptions: usize| {
                let mut reads = 0;
                let outcome = connection.uninterrupted(|_| {
                    reads += 1;
                    if reads > interruptions { Ok(()) } else { Err(ConnectionError::Interrupted) }
                });
                (reads, outcome)
            };
            assert!(matches!(read(0), (1, Ok(()))));
            assert!(matches!(read(ATTEMPTS - 1), (ATTEMPTS, Ok(()))));
            assert!(matches!(read(ATTEMPTS), (ATTEMPTS, Err(ConnectionError::Interrupted))));
            let refused = connection.uninterrupted(|_| Err::<(), _>(ConnectionError::NoAnswer));
            assert!(matches!(refused, Err(ConnectionError::NoAnswer)), "nothing else is tried again");
        });
    }

    #[test]
    fn a_dump_that_breaks_off_is_no_success() {
        let end = |kind, status: &[u8]| end_of(&Message { kind, flags: 0, sequence: 1, port: 0, payload: status });
        assert_eq!(end(DONE, &0i32.to_ne_bytes()), Some(0));
        assert_eq!(end(DONE, &[]), Some(0));
        assert_eq!(end(DONE, &(-2i32).to_ne_bytes()), Some(2));
        assert_eq!(end(2, &[&(-2i32).to_ne_bytes()[..], &[0; 16]].concat()), Some(2));
        assert_eq!(end(GET_TABLE.into(), &[0; 4]), None);
    }

    #[test]
    fn the_flags_of_a_message_are_read() {
        let mut bytes = Vec::new();
        put_message_header(&mut bytes, DONE, DUMP_INTERRUPTED, 7, 2, 0);
        close_message(&mut bytes, 0);
        let flags: Vec<(u16, u32)> = Messages(&bytes).map(|message| (message.flags, message.sequence)).collect();
        assert_eq!(flags, [(DUMP_INTERRUPTED, 7)]);
    }
}
