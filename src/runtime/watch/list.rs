//! Takes a list of objects apart while it still arrives: nobody ever holds all of it.
//!
//! ```text
//!   "k8s\0"  Unknown { 1: TypeMeta, 2: raw = List { 1: ListMeta, 2: item, 2: item, … }, 3: …, 4: … }
//! ```

use prost::Message;
use thiserror::Error;

use super::wire::WireError;
use super::wire::messages::ListMeta;

/// What every protobuf answer of an API server begins with.
pub(super) const MAGIC: &[u8] = b"k8s\0";
/// The kind of a field that has a length, and the bits of a key that tell the kind.
const BYTES: usize = 2;
const KIND: usize = 7;
/// Keys of the fields that are read: the number of the field, and its kind.
const RAW: usize = 2 << 3 | BYTES;
const METADATA: usize = 1 << 3 | BYTES;
const ITEM: usize = 2 << 3 | BYTES;
/// The most bytes that a key or a length has.
const LONGEST_NUMBER: usize = 10;
/// Larger than etcd takes any object.
const LARGEST: usize = 64 << 20;

/// Why an answer is no list.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum ListError {
    #[error("the answer is no protobuf of Kubernetes")]
    Foreign,
    #[error("the list ends before it is whole")]
    Cut,
    #[error("the list is only a part")]
    Part,
    #[error("the list has no resource version")]
    NoVersion,
    #[error("the list has a field that no list has")]
    Field,
    #[error("an object is larger than any that a cluster takes, or than the list that it is in")]
    Large,
    #[error("a part of the list cannot be read")]
    Wire(#[from] WireError),
}

/// A list, as far as it has arrived.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// What has arrived and is not read yet: less than one item, once it was fed.
    pending: Vec<u8>,
    is_begun: bool,
    /// How much of the inner list is to come, while in it.
    inside: Option<usize>,
    version: String,
    is_part: bool,
}

impl Incoming {
    /// Takes in what has arrived and gives each item that is whole now.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut item: impl FnMut(&[u8]) -> Result<(), WireError>,
    ) -> Result<(), ListError> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        if !self.is_begun {
            match rest.split_at_checked(MAGIC.len()) {
                Some((MAGIC, after)) => rest = after,
                Some(_) => return Err(ListError::Foreign),
                None => {
                    self.pending = pending;
                    return Ok(());
                }
            }
            self.is_begun = true;
        }
        while let Some(after) = self.step(rest, &mut item)? {
            rest = after;
        }
        let read = pending.len() - rest.len();
        self.pending = pending;
        self.pending.drain(..read);
        Ok(())
    }

    /// Reads one field, if it is all there, and gives what comes after.
    fn step<'a>(
        &mut self,
        mut rest: &'a [u8],
        item: &mut impl FnMut(&[u8]) -> Result<(), WireError>,
    ) -> Result<Option<&'a [u8]>, ListError> {
        if self.inside == Some(0) {
            self.inside = None;
        }
        let before = rest.len();
        let Some(key) = number(&mut rest)? else { return Ok(None) };
        if key & KIND != BYTES {
            return Err(ListError::Field);
        }
        let Some(length) = number(&mut rest)? else { return Ok(None) };
        if self.inside.is_none() && key == RAW {
            self.inside = Some(length);
            return Ok(Some(rest));
        }
        // What the field would leave of the inner list.
        let left = self.inside.map(|left| left.checked_sub(before - rest.len())?.checked_sub(length));
        if length > LARGEST || left == Some(None) {
            return Err(ListError::Large);
        }
        let Some((value, after)) = rest.split_at_checked(length) else { return Ok(None) };
        if let Some(left) = left {
            self.inside = left;
            match key {
                METADATA => {
                    let ListMeta { resource_version, continue_ } = ListMeta::decode(value).map_err(WireError::from)?;
                    self.version = resource_version;
                    self.is_part = !continue_.is_empty();
                }
                ITEM => item(value)?,
                _ => {}
            }
        }
        Ok(Some(after))
    }

    /// Nothing comes any more: the resource version of the list, if that is whole.
    pub(super) fn finish(self) -> Result<String, ListError> {
        match self {
            Self { is_begun: true, inside: None | Some(0), is_part: false, pending, version } if pending.is_empty() => {
                if version.is_empty() {
                    Err(ListError::NoVersion)
                } else {
                    Ok(version)
                }
            }
            Self { is_part: true, .. } => Err(ListError::Part),
            Self { .. } => Err(ListError::Cut),
        }
    }
}

/// Reads a key or a length, which are written alike; nothing where its end is not there yet.
fn number(rest: &mut &[u8]) -> Result<Option<usize>, WireError> {
    let arrived = rest.len();
    match prost::decode_length_delimiter(&mut *rest) {
        Ok(number) => Ok(Some(number)),
        Err(_) if arrived < LONGEST_NUMBER => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat()
    }

    fn answer() -> Vec<u8> {
        let list = [field(1, &field(2, b"77")), field(2, b"one"), field(2, b""), field(2, b"three")].concat();
        [MAGIC, &field(1, b"types"), &field(2, &list), &field(3, b""), &field(4, b"")].concat()
    }

    /// Fed in pieces of a size.
    fn read(answer: &[u8], size: usize) -> Result<(Vec<Vec<u8>>, String), ListError> {
        let (mut incoming, mut items) = (Incoming::default(), Vec::new());
        for piece in answer.chunks(size) {
            incoming.feed(piece, |item| {
                items.push(item.to_vec());
                Ok(())
            })?;
        }
        Ok((items, incoming.finish()?))
    }

    #[test]
    fn items_come_whole_however_the_answer_is_cut() {
        let expected = (["one", "", "three"].map(|item| item.as_bytes().to_vec()).to_vec(), "77".to_owned());
        for size in 1..=answer().len() {
            assert_eq!(read(&answer(), size), Ok(expected.clone()), "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_whole_list_is_refused() {
        let whole = answer();
        for length in 1..whole.len() - 4 {
            let outcome = read(&whole[..length], 5);
            assert!(matches!(outcome, Err(ListError::Cut | ListError::NoVersion)), "{length} bytes: {outcome:?}");
        }
        assert_eq!(read(br#"{"kind": "List"}"#, 3), Err(ListError::Foreign));
        let part = field(1, &[field(2, b"77"), field(3, b"more")].concat());
        assert_eq!(read(&[MAGIC, &field(2, &part)].concat(), 3), Err(ListError::Part));
        assert_eq!(read(&[MAGIC, &field(2, &field(2, b"one"))].concat(), 3), Err(ListError::NoVersion));
        let beyond = [MAGIC, &[2 << 3 | 2, 2, 2 << 3 | 2, 9]].concat();
        assert_eq!(read(&beyond, 3), Err(ListError::Large), "an object that ends after its list");
        let huge = [MAGIC, &[1 << 3 | 2, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat();
        assert_eq!(read(&huge, 3), Err(ListError::Large));
        assert_eq!(read(&[MAGIC, &[1 << 3, 1]].concat(), 3), Err(ListError::Field));
        let endless = read(&[MAGIC, &[0xff; 16]].concat(), 3);
        assert!(matches!(endless, Err(ListError::Wire(WireError::Message(_)))), "{endless:?}");
    }
}
