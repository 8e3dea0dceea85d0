//! The expressions that rules are made of, each a small instruction on the kernel's registers.

use std::borrow::Cow;
use std::time::Duration;

use super::attribute::{put, put_nested, put_text, put_u32};
use super::element::DATA_VALUE;
use crate::model::Family;

/// One of the sixteen 32-bit registers; longer values take several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u32);

impl Register {
    /// The verdict register.
    const VERDICT: u32 = 0;

    /// `NFT_REG32_00` is 8.
    const fn number(self) -> u32 {
        8 + self.0
    }
}

/// What ends a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Drop the packet.
    Drop,
    /// Go on in another chain, then come back.
    Jump(Cow<'static, str>),
    /// Go on in another chain, then return to where this one was called from.
    Goto(Cow<'static, str>),
}

impl Verdict {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        const DATA_VERDICT: u16 = 2;
        const CODE: u16 = 1;
        const CHAIN: u16 = 2;
        let (code, chain) = match self {
            Self::Drop => (0i32, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        put_nested(out, DATA_VERDICT, |out| {
            put(out, CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                put_text(out, CHAIN, chain);
            }
        });
    }
}

/// A field of the packet's metadata (`NFT_META_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// `meta priority`: 32 bits in the machine's byte order.
    Priority = 2,
    /// `meta l4proto`: 8 bits.
    Protocol = 16,
}

/// A field of the packet's connection (`NFT_CT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConntrackKey {
    /// `ct state`: bits in the machine's byte order.
    State,
    /// `ct status`: bits in the machine's byte order.
    Status,
    /// `ct original ip daddr`: the address dialled.
    OriginalDestination(Family),
    /// `ct original proto-dst`: the port dialled.
    OriginalPort,
}

/// A header of the packet (`NFT_PAYLOAD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The IP header.
    Network = 1,
    /// TCP, UDP or SCTP.
    Transport = 2,
}

/// Whose address type is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fib {
    /// `fib saddr type`.
    Source = 1,
    /// `fib daddr type`.
    Destination = 2,
}

/// How a register is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// Goes on when equal.
    Equal = 0,
    /// Goes on when not equal.
    NotEqual = 1,
}

/// An expression. A rule ends without effect at the first that does not match or finds nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads metadata.
    Meta(MetaKey, Register),
    /// Stores metadata.
    SetMeta(MetaKey, Register),
    /// Loads `length` bytes of the packet.
    Payload {
        /// From where `offset` counts.
        header: Header,
        /// In bytes.
        offset: u32,
        /// In bytes.
        length: u32,
        /// Where to.
        to: Register,
    },
    /// Loads a field of the connection.
    Conntrack(ConntrackKey, Register),
    /// Keeps the bits of the mask, in the machine's byte order.
    And(Register, u32),
    /// Keeps the bits of the mask in a single byte.
    AndByte(Register, u8),
    /// Keeps the bits of the mask and sets others, in the machine's byte order: `& MASK | BITS`.
    AndOr(Register, u32, u32),
    /// Turns 32 bits from the machine's to network order.
    ToNetworkOrder(Register),
    /// Compares with 32 bits in the machine's byte order.
    Compare(Register, Compared, u32),
    /// Compares with a single byte.
    CompareByte(Register, Compared, u8),
    /// Goes on if the register has this port, in network order.
    IsPort(Register, u16),
    /// Goes on if the set has the key that begins in the register.
    Contained(Register, &'static str),
    /// Goes on if it has not.
    NotContained(Register, &'static str),
    /// Goes on if the transport protocol in the register is one of these: `{ tcp, udp, sctp }`.
    ProtocolIn(Register, &'static [u8]),
    /// Replaces the key by the map's value for it; goes on if there is one.
    Map(Register, &'static str),
    /// Stores the value for the key in a map that packets fill, for a time. A key that is there already keeps its value,
    /// and its time begins anew. Goes on unless the map is full.
    Update {
        /// The map.
        map: &'static str,
        /// Where the key begins.
        key: Register,
        /// Where the value begins.
        value: Register,
        /// For how long.
        timeout: Duration,
    },
    /// Takes the map's verdict for the key; goes on if there is none.
    VerdictMap(Register, &'static str),
    /// Takes the verdict that is listed for the priority in the register; goes on if there is none:
    /// `vmap { c000:0 : goto frontend }`.
    PriorityVerdict(Register, Vec<(u32, Verdict)>),
    /// Loads a number in the machine's byte order.
    Number(Register, u32),
    /// Loads a port, in network order.
    Port(Register, u16),
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Loads the type of an address in the routing table: 2 is local.
    FibType(Fib, Register),
    /// Loads a random number below the modulus, in the machine's byte order.
    Random(Register, u32),
    /// Translates the destination; ends the rule.
    Dnat {
        /// The family of the address.
        family: Family,
        /// Where the address is.
        address: Register,
        /// Where the port is.
        port: Register,
    },
    /// Translates the source to the address of the interface and a random port; ends the rule.
    MasqueradeFullyRandom,
    /// Answers with ICMP port unreachable and drops the packet.
    RejectPortUnreachable(Family),
    /// Answers a TCP segment with a reset and drops it; an RST is dropped without one.
    RejectTcpReset,
}

/// A set or map that stands inside a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InlineSet<'a> {
    /// Transport protocols.
    Protocols(&'a [u8]),
    /// Verdicts by priority.
    Verdicts(&'a [(u32, Verdict)]),
}

/// `fib … type local`: `RTN_LOCAL`.
pub(super) const LOCAL_ADDRESS: u32 = 2;

impl Expression {
    /// Goes on if the address is one of this machine.
    pub fn is_local(of: Fib, scratch: Register) -> [Self; 2] {
        [Self::FibType(of, scratch), Self::Compare(scratch, Compared::Equal, LOCAL_ADDRESS)]
    }

    /// The set or map that stands inside the expression and that a batch has to make first.
    pub(super) fn inline_set(&self) -> Option<InlineSet<'_>> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "only two kinds have one")]
        match self {
            Self::ProtocolIn(_, protocols) => Some(InlineSet::Protocols(protocols)),
            Self::PriorityVerdict(_, verdicts) => Some(InlineSet::Verdicts(verdicts)),
            _ => None,
        }
    }

    /// `inline` is the number, in the batch, of the set that [`Self::inline_set`] describes.
    pub(super) fn encode(&self, out: &mut Vec<u8>, inline: u32) {
        match self {
            Self::Meta(key, to) => encode(out, "meta", |out| {
                put_u32(out, 2, *key as u32);
                put_u32(out, 1, to.number());
            }),
            Self::SetMeta(key, from) => encode(out, "meta", |out| {
                put_u32(out, 2, *key as u32);
                put_u32(out, 3, from.number());
            }),
            Self::Payload { header, offset, length, to } => encode(out, "payload", |out| {
                put_u32(out, 1, to.number());
                put_u32(out, 2, *header as u32);
                put_u32(out, 3, *offset);
                put_u32(out, 4, *length);
            }),
            Self::Conntrack(key, to) => encode(out, "ct", |out| encode_conntrack(out, *key, *to)),
            Self::And(register, mask) => encode_bitwise(out, *register, *mask, 0),
            Self::AndOr(register, mask, bits) => encode_bitwise(out, *register, *mask & !bits, *bits),
            Self::AndByte(register, mask) => encode(out, "bitwise", |out| {
                put_u32(out, 1, register.number());
                put_u32(out, 2, register.number());
                put_u32(out, 3, 1);
                put_nested(out, 4, |out| put(out, DATA_VALUE, &[*mask]));
                put_nested(out, 5, |out| put(out, DATA_VALUE, &[0]));
            }),
            Self::ToNetworkOrder(register) => encode(out, "byteorder", |out| {
                put_u32(out, 1, register.number());
                put_u32(out, 2, register.number());
                put_u32(out, 3, 1);
                put_u32(out, 4, 4);
                put_u32(out, 5, 4);
            }),
            Self::Compare(register, how, number) => encode(out, "cmp", |out| {
                put_u32(out, 1, register.number());
                put_u32(out, 2, *how as u32);
                put_nested(out, 3, |out| put(out, DATA_VALUE, &number.to_ne_bytes()));
            }),
            Self::CompareByte(register, how, byte) => encode(out, "cmp", |out| {
                put_u32(out, 1, register.number());
                put_u32(out, 2, *how as u32);
                put_nested(out, 3, |out| put(out, DATA_VALUE, &[*byte]));
            }),
            Self::IsPort(register, port) => encode(out, "cmp", |out| {
                put_u32(out, 1, register.number());
                put_u32(out, 2, Compared::Equal as u32);
                put_nested(out, 3, |out| put(out, DATA_VALUE, &port.to_be_bytes()));
            }),
            Self::Contained(key, set) => encode_lookup(out, set, *key, None, |_| {}),
            Self::NotContained(key, set) => encode_lookup(out, set, *key, None, |out| put_u32(out, 5, 1)),
            Self::Map(key, map) => encode_lookup(out, map, *key, Some(key.number()), |_| {}),
            Self::Update { map, key, value, timeout } => encode(out, "dynset", |out| {
                const UPDATE: u32 = 1;
                put_text(out, 1, map);
                put_u32(out, 3, UPDATE);
                put_u32(out, 4, key.number());
                put_u32(out, 5, value.number());
                let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                put(out, 6, &milliseconds.to_be_bytes());
            }),
            Self::VerdictMap(key, map) => encode_lookup(out, map, *key, Some(Register::VERDICT), |_| {}),
            Self::ProtocolIn(key, _) => encode_lookup(out, "__set%d", *key, None, |out| put_u32(out, 4, inline)),
            Self::PriorityVerdict(key, _) => {
                encode_lookup(out, "__map%d", *key, Some(Register::VERDICT), |out| put_u32(out, 4, inline));
            }
            Self::Number(to, number) => encode(out, "immediate", |out| {
                put_u32(out, 1, to.number());
                put_nested(out, 2, |out| put(out, DATA_VALUE, &number.to_ne_bytes()));
            }),
            Self::Port(to, port) => encode(out, "immediate", |out| {
                put_u32(out, 1, to.number());
                put_nested(out, 2, |out| put(out, DATA_VALUE, &port.to_be_bytes()));
            }),
            Self::Verdict(verdict) => encode(out, "immediate", |out| {
                put_u32(out, 1, Register::VERDICT);
                put_nested(out, 2, |out| verdict.encode(out));
            }),
            Self::FibType(of, to) => encode(out, "fib", |out| {
                put_u32(out, 3, *of as u32);
                put_u32(out, 2, 3);
                put_u32(out, 1, to.number());
            }),
            Self::Random(to, modulus) => encode(out, "numgen", |out| {
                put_u32(out, 1, to.number());
                put_u32(out, 2, *modulus);
                put_u32(out, 3, 1);
                put_u32(out, 4, 0);
            }),
            Self::Dnat { family, address, port } => encode(out, "nat", |out| {
                put_u32(out, 1, 1);
                put_u32(out, 2, u32::from(super::protocol_family(*family)));
                put_u32(out, 3, address.number());
                put_u32(out, 5, port.number());
            }),
            // `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
            Self::MasqueradeFullyRandom => encode(out, "masq", |out| put_u32(out, 1, 1 << 4)),
            Self::RejectPortUnreachable(family) => encode(out, "reject", |out| {
                put_u32(out, 1, 0);
                put(
                    out,
                    2,
                    &[match family {
                        Family::V4 => 3,
                        Family::V6 => 4,
                    }],
                );
            }),
            // `NFT_REJECT_TCP_RST`
            Self::RejectTcpReset => encode(out, "reject", |out| {
                put_u32(out, 1, 1);
                put(out, 2, &[0]);
            }),
        }
    }
}

fn encode(out: &mut Vec<u8>, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    put_text(out, NAME, name);
    put_nested(out, DATA, fill);
}

/// `NFT_BITWISE_MASK_XOR`
fn encode_bitwise(out: &mut Vec<u8>, register: Register, mask: u32, xor: u32) {
    encode(out, "bitwise", |out| {
        put_u32(out, 1, register.number());
        put_u32(out, 2, register.number());
        put_u32(out, 3, 4);
        put_nested(out, 4, |out| put(out, DATA_VALUE, &mask.to_ne_bytes()));
        put_nested(out, 5, |out| put(out, DATA_VALUE, &xor.to_ne_bytes()));
    });
}

fn encode_lookup(out: &mut Vec<u8>, set: &str, key: Register, to: Option<u32>, more: impl FnOnce(&mut Vec<u8>)) {
    encode(out, "lookup", |out| {
        put_text(out, 1, set);
        put_u32(out, 2, key.number());
        if let Some(to) = to {
            put_u32(out, 3, to);
        }
        more(out);
    });
}

fn encode_conntrack(out: &mut Vec<u8>, key: ConntrackKey, to: Register) {
    const ORIGINAL: [u8; 1] = [0];
    let (number, direction) = match key {
        ConntrackKey::State => (0, None),
        ConntrackKey::Status => (2, None),
        ConntrackKey::OriginalPort => (12, Some(ORIGINAL)),
        ConntrackKey::OriginalDestination(Family::V4) => (20, Some(ORIGINAL)),
        ConntrackKey::OriginalDestination(Family::V6) => (22, Some(ORIGINAL)),
    };
    put_u32(out, 2, number);
    put_u32(out, 1, to.number());
    if let Some(direction) = direction {
        put(out, 3, &direction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::nf_tables::attribute::Attributes;

    fn encoded(expression: &Expression) -> (String, Vec<u8>) {
        let mut out = Vec::new();
        expression.encode(&mut out, 0);
        let attributes = Attributes(&out);
        let name = attributes.find(1).map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        (name.unwrap(), attributes.find(2).unwrap().to_vec())
    }

    #[test]
    fn a_lookup_names_its_set_key_and_destination() {
        let (name, data) = encoded(&Expression::Map(Register(0), "services"));
        let data = Attributes(&data);
        assert_eq!(name, "lookup");
        assert_eq!(data.find(1), Some(&b"services\0"[..]));
        assert_eq!((data.u32(2), data.u32(3), data.u32(5)), (Some(8), Some(8), None));
        let (_, data) = encoded(&Expression::VerdictMap(Register(0), "dispatch"));
        assert_eq!(Attributes(&data).u32(3), Some(0));
        let (_, data) = encoded(&Expression::NotContained(Register(0), "pod_cidrs"));
        assert_eq!((Attributes(&data).u32(3), Attributes(&data).u32(5)), (None, Some(1)));
    }

    #[test]
    fn numbers_in_registers_have_the_order_of_the_machine_and_attributes_that_of_the_network() {
        let (_, data) = encoded(&Expression::And(Register(1), 0xff00_0000));
        let data = Attributes(&data);
        assert_eq!(data.u32(1), Some(9));
        assert_eq!(data.nested(4).and_then(|mask| mask.find(1)), Some(&0xff00_0000u32.to_ne_bytes()[..]));
    }

    #[test]
    fn jumps_carry_their_chain() {
        let (name, data) = encoded(&Expression::Verdict(Verdict::Jump("classify".into())));
        let verdict = Attributes(&data).nested(2).and_then(|data| data.nested(2)).unwrap();
        assert_eq!(name, "immediate");
        assert_eq!(verdict.find(1), Some(&(-3i32).to_be_bytes()[..]));
        assert_eq!(verdict.find(2), Some(&b"classify\0"[..]));
    }

    #[test]
    fn the_address_dialled_is_that_of_the_original_direction() {
        let (_, data) = encoded(&Expression::Conntrack(ConntrackKey::OriginalDestination(Family::V6), Register(0)));
        assert_eq!(Attributes(&data).u32(2), Some(22));
        assert_eq!(Attributes(&data).find(3), Some(&[0][..]));
        let (_, data) = encoded(&Expression::Conntrack(ConntrackKey::State, Register(0)));
        assert_eq!(Attributes(&data).find(3), None);
    }
}
