//! A tracked connection as its attributes tell it, and the attributes that name or filter one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use crate::model::{Family, Protocol};
use crate::netlink::nf_tables::attribute::{Attributes, put, put_nested};

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const FILTER_ORIGINAL_FLAGS: u16 = 1;

const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;

const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;

const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// `IPS_SEEN_REPLY`.
const SEEN_REPLY: u32 = 1 << 1;

/// `CTA_FILTER_F_*`: which parts of the tuple have to be equal.
const FILTER_DESTINATION: u32 = 1 << 1;
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;

/// Which entries to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Of this family.
    pub family: Family,
    /// Of this protocol.
    pub protocol: Protocol,
    /// Sent to this address, if one is given.
    pub destination: Option<IpAddr>,
    /// Sent to this port, if one is given.
    pub port: Option<NonZeroU16>,
}

impl Filter {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut flags = FILTER_PROTOCOL;
        put_nested(out, TUPLE_ORIGINAL, |out| {
            // For IPv6 the kernel takes the comparison of addresses the wrong way round and tells of all others (seen
            // with 6.18): there the port has to do.
            if let Some(destination) = self.destination.filter(IpAddr::is_ipv4) {
                flags |= FILTER_DESTINATION;
                put_nested(out, TUPLE_IP, |out| put_address(out, V4_DESTINATION, V6_DESTINATION, destination));
            }
            put_nested(out, TUPLE_PROTOCOL, |out| {
                put(out, PROTOCOL_NUMBER, &[self.protocol.number()]);
                if let Some(port) = self.port {
                    flags |= FILTER_DESTINATION_PORT;
                    put(out, DESTINATION_PORT, &port.get().to_be_bytes());
                }
            });
        });
        // In the machine's order, unlike most.
        put_nested(out, FILTER, |out| put(out, FILTER_ORIGINAL_FLAGS, &flags.to_ne_bytes()));
    }

    pub(super) fn admits(&self, entry: &Entry) -> bool {
        Family::of(entry.destination.ip()) == self.family
            && entry.protocol == self.protocol
            && self.destination.is_none_or(|address| entry.destination.ip() == address)
            && self.port.is_none_or(|port| entry.destination.port() == port.get())
    }
}

/// A tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who began it.
    pub source: SocketAddr,
    /// Where the first packet was sent, before any translation.
    pub destination: SocketAddr,
    /// Who answers.
    pub reply_source: SocketAddr,
    /// Whether anybody did.
    pub is_answered: bool,
    /// Its zone; 0 unless somebody sorts connections into zones.
    pub zone: u16,
    /// Tells it from a successor with the same addresses; bytes as the kernel gave them.
    pub id: Option<[u8; 4]>,
}

impl Entry {
    /// Reads the attributes of a message. Nothing for protocols that Services do not have.
    pub(super) fn read(attributes: &[u8]) -> Option<Self> {
        let attributes = Attributes(attributes);
        let original = Tuple::read(&attributes.nested(TUPLE_ORIGINAL)?)?;
        let reply = Tuple::read(&attributes.nested(TUPLE_REPLY)?)?;
        Some(Self {
            protocol: original.protocol,
            source: original.source,
            destination: original.destination,
            reply_source: reply.source,
            is_answered: attributes.u32(STATUS).is_some_and(|status| status & SEEN_REPLY != 0),
            zone: attributes.find(ZONE).and_then(|zone| Some(u16::from_be_bytes(zone.try_into().ok()?))).unwrap_or(0),
            id: attributes.find(ID).and_then(|id| id.try_into().ok()),
        })
    }

    /// What names the entry for a deletion. Without a tuple the kernel would delete every entry: this always writes one.
    pub(super) fn write_key(&self, out: &mut Vec<u8>) {
        put_nested(out, TUPLE_ORIGINAL, |out| {
            put_nested(out, TUPLE_IP, |out| {
                put_address(out, V4_SOURCE, V6_SOURCE, self.source.ip());
                put_address(out, V4_DESTINATION, V6_DESTINATION, self.destination.ip());
            });
            put_nested(out, TUPLE_PROTOCOL, |out| {
                put(out, PROTOCOL_NUMBER, &[self.protocol.number()]);
                put(out, SOURCE_PORT, &self.source.port().to_be_bytes());
                put(out, DESTINATION_PORT, &self.destination.port().to_be_bytes());
            });
        });
        if self.zone != 0 {
            put(out, ZONE, &self.zone.to_be_bytes());
        }
        if let Some(id) = self.id {
            put(out, ID, &id);
        }
    }
}

struct Tuple {
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Tuple {
    fn read(tuple: &Attributes<'_>) -> Option<Self> {
        let (ip, transport) = (tuple.nested(TUPLE_IP)?, tuple.nested(TUPLE_PROTOCOL)?);
        let number = *transport.find(PROTOCOL_NUMBER)?.first()?;
        let protocol = [Protocol::Udp, Protocol::Tcp, Protocol::Sctp].into_iter().find(|one| one.number() == number)?;
        let port = |kind| Some(u16::from_be_bytes(transport.find(kind)?.try_into().ok()?));
        Some(Self {
            protocol,
            source: SocketAddr::new(address(&ip, V4_SOURCE, V6_SOURCE)?, port(SOURCE_PORT)?),
            destination: SocketAddr::new(address(&ip, V4_DESTINATION, V6_DESTINATION)?, port(DESTINATION_PORT)?),
        })
    }
}

fn address(ip: &Attributes<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    if let Some(bytes) = ip.find(v4) {
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.find(v6)?).ok()?).into())
}

fn put_address(out: &mut Vec<u8>, v4: u16, v6: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put(out, v4, &address.octets()),
        IpAddr::V6(address) => put(out, v6, &address.octets()),
    }
}
