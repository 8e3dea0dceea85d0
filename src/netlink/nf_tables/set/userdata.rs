//! What `nft` keeps of a set in its userdata: the expression that each field was declared `typeof`, without which a listing
//! prints raw numbers or does not load again. Written as `nft` 1.0.6 writes it.

use super::{Data, Field, Set};
use crate::model::Family;

/// `NFTNL_UDATA_SET_*`.
pub(super) fn of(set: &Set) -> Vec<u8> {
    const KEY_BYTE_ORDER: u8 = 0;
    const DATA_BYTE_ORDER: u8 = 1;
    const KEY_TYPEOF: u8 = 3;
    const DATA_TYPEOF: u8 = 4;
    /// nft's kind of a verdict expression.
    const VERDICT: u32 = 1;
    let mut out = Vec::new();
    put_userdata_u32(&mut out, KEY_BYTE_ORDER, byte_order(&set.key));
    let data = match &set.data {
        None => None,
        Some(Data::Fields(data)) => Some((byte_order(data), typeof_fields(data))),
        Some(Data::Verdict) => Some((0, typeof_expression(VERDICT, &[]))),
    };
    if let Some((byte_order, _)) = &data {
        put_userdata_u32(&mut out, DATA_BYTE_ORDER, *byte_order);
    }
    put_userdata(&mut out, KEY_TYPEOF, &typeof_fields(&set.key));
    if let Some((_, expression)) = &data {
        put_userdata(&mut out, DATA_TYPEOF, expression);
    }
    out
}

impl Field {
    /// nft's `enum byteorder`: 1 the machine's, 2 the network's.
    const fn byte_order(self) -> u32 {
        match self {
            Self::Source(_) | Self::Destination(_) | Self::Port => 2,
            Self::Protocol | Self::Priority | Self::Slot => 1,
        }
    }

    /// The expression of `typeof`, as nft keeps it: its kind, then what only this kind knows.
    fn typeof_userdata(self) -> Vec<u8> {
        const PAYLOAD: u32 = 7;
        const META: u32 = 9;
        const NUMGEN: u32 = 23;
        const IP: u32 = 12;
        const IP6: u32 = 13;
        const TRANSPORT: u32 = 11;
        let (kind, parameters): (u32, &[u32]) = match self {
            Self::Source(Family::V4) => (PAYLOAD, &[IP, 11]),
            Self::Destination(Family::V4) => (PAYLOAD, &[IP, 12]),
            Self::Source(Family::V6) => (PAYLOAD, &[IP6, 8]),
            Self::Destination(Family::V6) => (PAYLOAD, &[IP6, 9]),
            Self::Port => (PAYLOAD, &[TRANSPORT, 2]),
            Self::Protocol => (META, &[16]),
            Self::Priority => (META, &[2]),
            Self::Slot => (NUMGEN, &[1, 65_536, 0]),
        };
        let mut data = Vec::new();
        for (index, parameter) in (0u8..).zip(parameters) {
            put_userdata_u32(&mut data, index, *parameter);
        }
        typeof_expression(kind, &data)
    }
}

/// Only single fields have one; concatenations are 0, "invalid".
fn byte_order(fields: &[Field]) -> u32 {
    match fields {
        [field] => field.byte_order(),
        _ => 0,
    }
}

fn typeof_fields(fields: &[Field]) -> Vec<u8> {
    const CONCATENATION: u32 = 13;
    match fields {
        [field] => field.typeof_userdata(),
        fields => {
            let mut data = Vec::new();
            for (index, field) in (0u8..).zip(fields) {
                put_userdata(&mut data, index, &field.typeof_userdata());
            }
            typeof_expression(CONCATENATION, &data)
        }
    }
}

fn typeof_expression(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_userdata_u32(&mut out, 0, kind);
    put_userdata(&mut out, 1, data);
    out
}

/// libnftnl's own attributes: a byte of type, a byte of length, no padding, numbers in the machine's byte order.
fn put_userdata(out: &mut Vec<u8>, kind: u8, data: &[u8]) {
    out.push(kind);
    out.push(u8::try_from(data.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(data);
}

fn put_userdata_u32(out: &mut Vec<u8>, kind: u8, number: u32) {
    put_userdata(out, kind, &number.to_ne_bytes());
}
