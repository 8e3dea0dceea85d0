//! Sets and maps: what their keys and values consist of.
//!
//! The kernel needs lengths only. `nft` also wants a type, which it packs from six bits per field, and the userdata.

mod userdata;

use super::attribute::{put, put_nested, put_text, put_u32};
use crate::model::Family;

/// `NFT_DATA_VERDICT` as the type of a map's data.
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// A field of a key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `ip saddr`, `ip6 saddr`.
    Source(Family),
    /// `ip daddr`, `ip6 daddr`.
    Destination(Family),
    /// `meta l4proto`.
    Protocol,
    /// `th dport`.
    Port,
    /// `meta priority`: in the machine's byte order, but in network order where it is part of a range.
    Priority,
    /// `numgen random mod 65536`: a slot, in the machine's byte order.
    Slot,
}

/// What a map gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Values of these fields.
    Fields(Vec<Field>),
    /// A verdict.
    Verdict,
}

/// How a set finds its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// By equality. The kernel lets it grow.
    Exact,
    /// By equality, and there are never more than this many.
    Sized(u32),
    /// In ranges.
    Interval,
    /// By equality, and each goes by itself this many seconds after it came.
    Passing {
        /// How long an element stays.
        seconds: u16,
    },
    /// By equality, inside one rule: nameless and never changed.
    Inline,
    /// By equality; rules add elements, each for a time, and none when there are this many.
    Learned(u32),
}

/// A set, or with data a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The name.
    pub name: &'static str,
    /// Exact keys or ranges.
    pub kind: SetKind,
    /// The key's fields.
    pub key: Vec<Field>,
    /// What a map gives; none for a set.
    pub data: Option<Data>,
}

impl Field {
    /// nft's `enum datatypes`.
    const fn data_type(self) -> u32 {
        match self {
            Self::Source(Family::V4) | Self::Destination(Family::V4) => 7,
            Self::Source(Family::V6) | Self::Destination(Family::V6) => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Priority => 23,
            Self::Slot => 4,
        }
    }

    const fn length(self) -> u32 {
        match self {
            Self::Source(Family::V4) | Self::Destination(Family::V4) | Self::Priority | Self::Slot => 4,
            Self::Source(Family::V6) | Self::Destination(Family::V6) => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

impl Set {
    /// A set.
    pub fn new(name: &'static str, kind: SetKind, key: Vec<Field>) -> Self {
        Self { name, kind, key, data: None }
    }

    /// A map with exact keys.
    pub fn map(name: &'static str, key: Vec<Field>, data: Vec<Field>) -> Self {
        Self { name, kind: SetKind::Exact, key, data: Some(Data::Fields(data)) }
    }

    /// A map from exact keys to verdicts.
    pub fn verdict_map(name: &'static str, key: Vec<Field>) -> Self {
        Self { name, kind: SetKind::Exact, key, data: Some(Data::Verdict) }
    }

    /// A map that packets fill.
    pub fn learned(name: &'static str, size: u32, key: Vec<Field>, data: Vec<Field>) -> Self {
        Self { name, kind: SetKind::Learned(size), key, data: Some(Data::Fields(data)) }
    }

    /// A set or map written inside a rule, as in `meta l4proto { tcp, udp }`; the kernel replaces the `%d`.
    pub(super) fn inline(field: Field, data: Option<Data>) -> Self {
        let name = if data.is_some() { "__map%d" } else { "__set%d" };
        Self { name, kind: SetKind::Inline, key: vec![field], data }
    }

    /// `size` is how many elements an inline one gets.
    pub(super) fn encode(&self, out: &mut Vec<u8>, table: &str, id: u32, size: u32) {
        const TABLE: u16 = 1;
        const NAME: u16 = 2;
        const FLAGS: u16 = 3;
        const KEY_TYPE: u16 = 4;
        const KEY_LENGTH: u16 = 5;
        const DATA_TYPE: u16 = 6;
        const DATA_LENGTH: u16 = 7;
        const DESCRIPTION: u16 = 9;
        const SIZE: u16 = 1;
        const ID: u16 = 10;
        const TIMEOUT: u16 = 11;
        const USERDATA: u16 = 13;
        put_text(out, TABLE, table);
        put_text(out, NAME, self.name);
        put_u32(out, FLAGS, self.flags());
        put_u32(out, KEY_TYPE, data_type(&self.key));
        put_u32(out, KEY_LENGTH, length(&self.key));
        match &self.data {
            None => {}
            Some(Data::Fields(data)) => {
                put_u32(out, DATA_TYPE, data_type(data));
                put_u32(out, DATA_LENGTH, length(data));
            }
            Some(Data::Verdict) => {
                put_u32(out, DATA_TYPE, VERDICT_TYPE);
                put_u32(out, DATA_LENGTH, 0);
            }
        }
        if self.has_concatenated_ranges() {
            put_nested(out, DESCRIPTION, |out| encode_field_lengths(out, &self.key));
        } else if let SetKind::Inline = self.kind {
            put_nested(out, DESCRIPTION, |out| put_u32(out, SIZE, size));
        } else if let SetKind::Learned(size) | SetKind::Sized(size) = self.kind {
            put_nested(out, DESCRIPTION, |out| put_u32(out, SIZE, size));
        }
        if let SetKind::Passing { seconds } = self.kind {
            put(out, TIMEOUT, &(u64::from(seconds) * 1_000).to_be_bytes());
        }
        put_u32(out, ID, id);
        put(out, USERDATA, &userdata::of(self));
    }

    fn has_concatenated_ranges(&self) -> bool {
        self.kind == SetKind::Interval && self.key.len() > 1
    }

    /// `NFT_SET_*`.
    fn flags(&self) -> u32 {
        const ANONYMOUS_CONSTANT: u32 = 0x1 | 0x2;
        const INTERVAL: u32 = 0x4;
        const MAP: u32 = 0x8;
        const TIMEOUT: u32 = 0x10;
        const TIMEOUT_DYNAMIC: u32 = 0x10 | 0x20;
        const CONCATENATED: u32 = 0x80;
        let mut flags = match self.kind {
            SetKind::Exact | SetKind::Sized(_) => 0,
            SetKind::Interval => INTERVAL,
            SetKind::Passing { .. } => TIMEOUT,
            SetKind::Inline => ANONYMOUS_CONSTANT,
            SetKind::Learned(_) => TIMEOUT_DYNAMIC,
        };
        if self.data.is_some() {
            flags |= MAP;
        }
        if self.has_concatenated_ranges() {
            flags |= CONCATENATED;
        }
        flags
    }
}

/// `NFTA_SET_DESC_CONCAT`: a range in each field needs to know where fields begin.
fn encode_field_lengths(out: &mut Vec<u8>, fields: &[Field]) {
    const CONCATENATED: u16 = 2;
    const LIST_ELEMENT: u16 = 1;
    const FIELD_LENGTH: u16 = 1;
    put_nested(out, CONCATENATED, |out| {
        for field in fields {
            put_nested(out, LIST_ELEMENT, |out| put_u32(out, FIELD_LENGTH, field.length()));
        }
    });
}

/// One type, or several packed into one number.
fn data_type(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |packed, field| packed << 6 | field.data_type())
}

/// Fields in a concatenation are padded to registers.
fn length(fields: &[Field]) -> u32 {
    match fields {
        [field] => field.length(),
        fields => fields.iter().map(|field| field.length().next_multiple_of(4)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn userdata(set: &Set) -> String {
        super::userdata::of(set).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    // The numbers below are what `nft --debug=mnl` 1.0.6 shows for the declarations in the comments.

    /// `map frontends { typeof ip daddr . meta l4proto . th dport : meta priority; }`
    #[test]
    fn a_map_with_a_concatenated_key_is_described_as_nft_describes_it() {
        let set = Set::map(
            "frontends",
            vec![Field::Destination(Family::V4), Field::Protocol, Field::Port],
            vec![Field::Priority],
        );
        assert_eq!(data_type(&set.key), 0x730d);
        assert_eq!(length(&set.key), 12);
        assert_eq!(set.flags(), 0x8);
        assert_eq!(
            userdata(&set),
            "000400000000010401000000034400040d000000013c00140004\
             07000000010c00040c00000001040c000000010e000409000000\
             010600041000000002140004070000\
             00010c00040b0000000104020000\
             00040e0004090000000106000402000000"
        );
    }

    /// `map endpoints { typeof meta priority . numgen random mod 65536 : ip6 daddr . th dport; }`
    #[test]
    fn a_map_with_a_concatenated_value_is_described_as_nft_describes_it() {
        let set = Set::map(
            "endpoints",
            vec![Field::Priority, Field::Slot],
            vec![Field::Destination(Family::V6), Field::Port],
        );
        assert_eq!(data_type(&set.key), 0x05c4);
        assert_eq!(data_type(&[Field::Destination(Family::V6), Field::Port]), 0x020d);
        assert_eq!(length(&[Field::Destination(Family::V6), Field::Port]), 20);
        assert_eq!(
            userdata(&set),
            "0004000000000104000000000334\
             00040d000000012c000e000409000000010600040200000001\
             1a000417000000011200040100000001040000010002040000\
             000004340004\
             0d000000012c0014000407000000010c00040d000000010409000000\
             0114000407000000010c00040b000000010402000000"
        );
    }

    /// `map dispatch { typeof meta priority : verdict; }`
    #[test]
    fn a_verdict_map_is_described_as_nft_describes_it() {
        let set = Set::verdict_map("dispatch", vec![Field::Priority]);
        assert_eq!(
            userdata(&set),
            "000401000000010400000000030e0004090000000106000402000000040800040100000001".to_owned() + "00"
        );
    }

    /// `set source_ranges { typeof meta priority . ip6 saddr; flags interval; }`
    #[test]
    fn concatenated_ranges_describe_their_fields() {
        let set = Set::new("source_ranges", SetKind::Interval, vec![Field::Priority, Field::Source(Family::V6)]);
        assert_eq!(set.flags(), 0x84);
        assert_eq!(data_type(&set.key), 0x5c8);
        let mut out = Vec::new();
        encode_field_lengths(&mut out, &set.key);
        assert_eq!(
            out,
            [28, 0, 2, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 0, 0, 0, 4, 12, 0, 1, 0x80, 8, 0, 1, 0, 0, 0, 0, 16]
        );
    }
}
