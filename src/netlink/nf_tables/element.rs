//! Elements of sets and maps, written into a message.

use super::attribute::{put, put_nested, put_u32};
use super::expression::Verdict;

const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const USERDATA: u16 = 6;
const KEY_END: u16 = 10;
pub(super) const DATA_VALUE: u16 = 1;
/// `NFT_SET_ELEM_INTERVAL_END`.
pub(super) const INTERVAL_END: u32 = 1;
/// `NFTNL_UDATA_SET_ELEM_FLAGS` with `NFTNL_SET_ELEM_F_INTERVAL_OPEN`: nothing ends this interval, it goes to the last
/// address there is. For nft's listing only.
const OPEN_INTERVAL: [u8; 6] = [1, 4, 1, 0, 0, 0];

/// How much of an element is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementKind {
    /// The key and the value.
    Whole,
    /// What finds it, to delete it.
    Key,
}

/// Encodes elements one after another.
pub struct ElementWriter<'a> {
    out: &'a mut Vec<u8>,
    kind: ElementKind,
}

impl<'a> ElementWriter<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>, kind: ElementKind) -> Self {
        Self { out, kind }
    }

    /// Begins an element, which `fill` completes.
    pub fn write(&mut self, fill: impl FnOnce(&mut ElementWriter<'_>)) {
        let kind = self.kind;
        put_nested(self.out, LIST_ELEMENT, |out| fill(&mut ElementWriter { out, kind }));
    }

    /// The key: each field in its own byte order, padded to four bytes.
    pub fn key(&mut self, bytes: &[u8]) {
        put_nested(self.out, KEY, |out| put(out, DATA_VALUE, bytes));
    }

    /// The last key of a range of concatenated keys.
    pub fn key_end(&mut self, bytes: &[u8]) {
        put_nested(self.out, KEY_END, |out| put(out, DATA_VALUE, bytes));
    }

    /// What a map gives for the key.
    pub fn value(&mut self, bytes: &[u8]) {
        if self.kind == ElementKind::Whole {
            put_nested(self.out, DATA, |out| put(out, DATA_VALUE, bytes));
        }
    }

    /// What a verdict map gives for the key.
    pub fn verdict(&mut self, verdict: &Verdict) {
        if self.kind == ElementKind::Whole {
            put_nested(self.out, DATA, |out| verdict.encode(out));
        }
    }

    /// Marks a key as the first behind an interval.
    pub fn is_interval_end(&mut self) {
        put_u32(self.out, FLAGS, INTERVAL_END);
    }

    /// Marks an interval as one that nothing ends.
    pub fn is_open_interval(&mut self) {
        if self.kind == ElementKind::Whole {
            put(self.out, USERDATA, &OPEN_INTERVAL);
        }
    }
}
