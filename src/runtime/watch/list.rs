//! Takes a list of objects apart while it still arrives: nobody ever holds all of it.
//!
//! ```text
//!   "k8s\0"  Unknown { 1: TypeMeta, 2: raw = List { 1: ListMeta, 2: item, 2: item, … }, 3: …, 4: … }
//! ```

use thiserror::Error;

use super::protobuf::{WireError, fields, varint};

/// What every protobuf answer of an API server begins with.
const MAGIC: &[u8] = b"k8s\0";
const RAW: u64 = 2;
const METADATA: u64 = 1;
const ITEM: u64 = 2;
const RESOURCE_VERSION: u64 = 2;
const CONTINUE: u64 = 3;
/// The kind of a field that has a length.
const BYTES: u64 = 2;
/// Larger than etcd takes any object.
const LARGEST: u64 = 64 << 20;

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
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A list, as far as it has arrived.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// What has arrived and is not read yet: less than one item, once it was fed.
    pending: Vec<u8>,
    is_begun: bool,
    /// How much of the inner list is to come, while in it.
    inside: Option<u64>,
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
        let Some(tag) = varint(&mut rest)? else { return Ok(None) };
        let (number, kind) = (tag >> 3, tag & 7);
        if kind != BYTES {
            return Err(WireError::Kind(u8::try_from(kind).unwrap_or(u8::MAX)).into());
        }
        let Some(length) = varint(&mut rest)? else { return Ok(None) };
        if self.inside.is_none() && number == RAW {
            self.inside = Some(length);
            return Ok(Some(rest));
        }
        if length > LARGEST {
            return Err(WireError::Number.into());
        }
        let Some((value, after)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) else {
            return Ok(None);
        };
        if let Some(left) = &mut self.inside {
            let read = u64::try_from(before - after.len()).unwrap_or(u64::MAX);
            *left = left.checked_sub(read).ok_or(WireError::Short)?;
            match number {
                METADATA => self.read_metadata(value)?,
                ITEM => item(value)?,
                _ => {}
            }
        }
        Ok(Some(after))
    }

    fn read_metadata(&mut self, metadata: &[u8]) -> Result<(), WireError> {
        for field in fields(metadata) {
            match field? {
                (RESOURCE_VERSION, value) => self.version = value.text()?,
                (CONTINUE, value) => self.is_part = !value.bytes()?.is_empty(),
                _ => {}
            }
        }
        Ok(())
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
    }
}
