//! One heartbeat on the wire.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+---------------+---------------+
//! |      'S'      |      'Y'      |      'H'      |      'B'      |
//! +---------------+---------------+---------------+---------------+
//! |  version = 1  |    status     |         reserved = 0          |
//! +---------------+---------------+-------------------------------+
//! |                             epoch                             |
//! |                           (64 bits)                           |
//! +---------------------------------------------------------------+
//! |                           sequence                            |
//! |                           (64 bits)                           |
//! +---------------+-----------------------------------------------+
//! |  name length  |  name of the sending node ...                 |
//! +---------------+-----------------------------------------------+
//! |  extensions: type (16 bits), length (16 bits), value ...      |
//! +---------------------------------------------------------------+
//! ```
//!
//! All numbers are big-endian. A reader skips extensions that it does not know, so that a rolling update of the agents
//! never splits the cluster; it refuses another version.

use thiserror::Error;

use crate::names::NodeName;

const MAGIC: [u8; 4] = *b"SYHB";
const VERSION: u8 = 1;
/// The longest heartbeat that is read.
pub const LONGEST: usize = 1200;

/// What the sender says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Its agent runs, but must not be given addresses yet.
    Starting,
    /// Ready to announce.
    Serving,
    /// Goodbye: its agent ends. The node itself and its pods may go on.
    Leaving,
}

/// A heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The node that sent it.
    pub node: NodeName,
    /// Which run of the sender's agent: greater after each start, as long as its clock does not step back.
    pub epoch: u64,
    /// Grows by one with each heartbeat of an epoch.
    pub sequence: u64,
    /// What the sender says of itself.
    pub status: Status,
}

/// Why a datagram is no heartbeat.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DecodeError {
    /// Somebody else's packet.
    #[error("no heartbeat of ours")]
    Foreign,
    /// From an agent of another age.
    #[error("heartbeat of version {0}")]
    Version(u8),
    /// Cut, or longer than it says.
    #[error("heartbeat is cut short or malformed")]
    Malformed,
}

impl Heartbeat {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let name = self.node.as_str().as_bytes();
        // Names of nodes are DNS subdomains: at most 253 bytes.
        let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
        let mut bytes = Vec::with_capacity(25 + name.len());
        bytes.extend(MAGIC);
        bytes.extend([VERSION, status_code(self.status), 0, 0]);
        bytes.extend(self.epoch.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.push(length);
        bytes.extend(name.iter().take(usize::from(length)));
        bytes
    }

    /// Reads one datagram.
    ///
    /// # Errors
    /// When it is none of ours, of another version, or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (magic, rest) = bytes.split_first_chunk::<4>().ok_or(DecodeError::Foreign)?;
        if *magic != MAGIC {
            return Err(DecodeError::Foreign);
        }
        let (&[version, status, _, _], rest) = rest.split_first_chunk::<4>().ok_or(DecodeError::Malformed)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let status = match status {
            1 => Status::Starting,
            2 => Status::Serving,
            3 => Status::Leaving,
            _ => return Err(DecodeError::Malformed),
        };
        let (epoch, rest) = rest.split_first_chunk::<8>().ok_or(DecodeError::Malformed)?;
        let (sequence, rest) = rest.split_first_chunk::<8>().ok_or(DecodeError::Malformed)?;
        let (length, rest) = rest.split_first().ok_or(DecodeError::Malformed)?;
        let (name, extensions) = rest.split_at_checked(usize::from(*length)).ok_or(DecodeError::Malformed)?;
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty()).ok_or(DecodeError::Malformed)?;
        skip_extensions(extensions)?;
        Ok(Self {
            node: NodeName::new(name),
            epoch: u64::from_be_bytes(*epoch),
            sequence: u64::from_be_bytes(*sequence),
            status,
        })
    }
}

fn status_code(status: Status) -> u8 {
    match status {
        Status::Starting => 1,
        Status::Serving => 2,
        Status::Leaving => 3,
    }
}

fn skip_extensions(mut bytes: &[u8]) -> Result<(), DecodeError> {
    while !bytes.is_empty() {
        let (&[_, _, high, low], rest) = bytes.split_first_chunk::<4>().ok_or(DecodeError::Malformed)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        bytes = rest.get(length..).ok_or(DecodeError::Malformed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heartbeat() -> Heartbeat {
        Heartbeat { node: "node1".into(), epoch: 0x0102, sequence: 7, status: Status::Serving }
    }

    #[test]
    fn the_bytes_are_those_of_the_diagram() {
        let expected = b"SYHB\x01\x02\0\0\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x07\x05node1";
        assert_eq!(heartbeat().encode(), expected);
    }

    #[test]
    fn unknown_extensions_are_skipped_and_cut_ones_refused() {
        let mut bytes = heartbeat().encode();
        bytes.extend([0, 9, 0, 2, 1, 1]);
        assert_eq!(Heartbeat::decode(&bytes), Ok(heartbeat()));
        bytes.extend([0, 9, 0, 2, 1]);
        assert_eq!(Heartbeat::decode(&bytes), Err(DecodeError::Malformed));
    }

    #[test]
    fn other_versions_and_other_programs_are_refused() {
        let mut bytes = heartbeat().encode();
        bytes[4] = 2;
        assert_eq!(Heartbeat::decode(&bytes), Err(DecodeError::Version(2)));
        assert_eq!(Heartbeat::decode(b"hello"), Err(DecodeError::Foreign));
        assert_eq!(Heartbeat::decode(b""), Err(DecodeError::Foreign));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            node in "[a-z0-9.-]{1,253}", epoch: u64, sequence: u64,
            status in prop::sample::select(vec![Status::Starting, Status::Serving, Status::Leaving]),
        ) {
            let heartbeat = Heartbeat { node: NodeName::new(node), epoch, sequence, status };
            prop_assert_eq!(Heartbeat::decode(&heartbeat.encode()), Ok(heartbeat));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0usize..40) {
            let _outcome = Heartbeat::decode(&bytes);
            let valid = heartbeat().encode();
            let _outcome = Heartbeat::decode(valid.get(..cut).unwrap_or(&valid));
        }
    }
}
