//! Netlink attributes, written into and read from a buffer.
//!
//! ```text
//!  0                   1                   2                   3
//! +-------------------------------+-------------------------------+
//! | length, with these four bytes | type (bit 15: nested)         |
//! +-------------------------------+-------------------------------+
//! | payload, padded with zeros to a multiple of four bytes        |
//! +---------------------------------------------------------------+
//! ```
//!
//! Length and type are in the byte order of the machine, numbers in the payload of nf_tables attributes in network
//! order. (`struct nlattr`, `include/uapi/linux/netlink.h`)

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: without the flags for nesting and byte order.
const TYPE_MASK: u16 = !(0b11 << 14);
const HEADER: usize = 4;

/// Appends an attribute.
pub(in crate::netlink) fn put(out: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    put_header(out, kind, payload.len());
    out.extend_from_slice(payload);
    pad(out);
}

/// Appends a number in network order.
pub(in crate::netlink) fn put_u32(out: &mut Vec<u8>, kind: u16, number: u32) {
    put(out, kind, &number.to_be_bytes());
}

/// Appends a text with its terminating zero.
pub(in crate::netlink) fn put_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    put_header(out, kind, text.len() + 1);
    out.extend_from_slice(text.as_bytes());
    out.push(0);
    pad(out);
}

/// Appends an attribute whose payload is what `fill` appends.
pub(in crate::netlink) fn put_nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = open_nested(out, kind);
    fill(out);
    close_nested(out, start);
}

/// Begins an attribute that [`close_nested`] ends.
pub(in crate::netlink) fn open_nested(out: &mut Vec<u8>, kind: u16) -> usize {
    let start = out.len();
    put_header(out, kind | NESTED, 0);
    start
}

/// Fills in the length of the attribute that begins at `start`.
pub(in crate::netlink) fn close_nested(out: &mut [u8], start: usize) {
    let length = saturate(out.len() - start);
    if let Some(field) = out.get_mut(start..start + 2) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}

fn put_header(out: &mut Vec<u8>, kind: u16, payload: usize) {
    out.extend_from_slice(&saturate(HEADER + payload).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
}

/// Lengths never come near the limit: names are constants and element lists are cut at 60 kB.
fn saturate(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

pub(in crate::netlink) fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The attributes in a payload, as pairs of type and payload. Ends at the first that does not fit.
#[derive(Clone)]
pub(in crate::netlink) struct Attributes<'a>(pub(in crate::netlink) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of a type.
    pub(in crate::netlink) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(found, payload)| (found == kind).then_some(payload))
    }

    /// The attributes nested in the first attribute of a type.
    pub(in crate::netlink) fn nested(&self, kind: u16) -> Option<Attributes<'a>> {
        self.find(kind).map(Attributes)
    }

    /// A text, without its terminating zero.
    pub(super) fn text(&self, kind: u16) -> Option<String> {
        self.find(kind).map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    }

    /// A number in network order.
    pub(in crate::netlink) fn u32(&self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_be_bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_their_length_is_not() {
        let mut out = Vec::new();
        put_text(&mut out, 1, "steelyard");
        let mut expected = 14u16.to_ne_bytes().to_vec();
        expected.extend(1u16.to_ne_bytes());
        expected.extend(b"steelyard\0\0\0");
        assert_eq!(out, expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut out = Vec::new();
        put_nested(&mut out, 3, |out| {
            put_u32(out, 1, 0xc000_0001);
            put(out, 2, &[7]);
        });
        put_text(&mut out, 4, "a");
        let read = Attributes(&out);
        assert_eq!(read.nested(3).and_then(|inner| inner.u32(1)), Some(0xc000_0001));
        assert_eq!(read.nested(3).and_then(|inner| inner.find(2)), Some(&[7][..]));
        assert_eq!(read.find(4), Some(&b"a\0"[..]));
        assert_eq!(read.find(5), None);
    }

    #[test]
    fn cut_off_attributes_are_not_read() {
        let mut out = Vec::new();
        put_u32(&mut out, 1, 5);
        for length in 0..out.len() {
            assert_eq!(Attributes(&out[..length]).find(1), None, "{length}");
        }
        assert_eq!(Attributes(&[0, 0, 0, 0]).next(), None);
    }
}
