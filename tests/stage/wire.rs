//! The packets: the first of a TCP, UDP or SCTP connection, and what comes of it.
//!
//! Each carries a tag that address translation leaves alone: TCP's sequence number, SCTP's initiate tag, UDP's data.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use steelyard::datapath::simulate::Packet;
use steelyard::model::Protocol;

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const TTL: u8 = 64;

/// In every tag of ours, so that no field of another packet is taken for one.
pub const TAGS: u32 = 0x5e00_0000;
/// The part of a tag that says so.
pub const TAG_MASK: u32 = 0xff00_0000;

/// What was seen of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The packet itself.
    Packet { tag: u32, source: IpAddr, destination: SocketAddr },
    /// An ICMP error about it.
    Error { tag: u32, to: IpAddr, is_port_unreachable: bool },
}

/// Builds the first packet of a connection.
pub fn first_packet(packet: &Packet, source_port: u16, tag: u32) -> Vec<u8> {
    let Packet { source, destination, port, protocol } = *packet;
    let mut payload = Vec::new();
    payload.extend(source_port.to_be_bytes());
    payload.extend(port.get().to_be_bytes());
    match protocol {
        Protocol::Tcp => {
            payload.extend(tag.to_be_bytes());
            payload.extend([0; 4]);
            // 20 bytes of header, SYN, some window.
            payload.extend([5 << 4, 0x02, 0x20, 0, 0, 0, 0, 0]);
            let sum = transport_checksum(source, destination, protocol.number(), &payload);
            payload[16..18].copy_from_slice(&sum.to_be_bytes());
        }
        Protocol::Udp => {
            payload.extend([0, 12, 0, 0]);
            payload.extend(tag.to_be_bytes());
            let sum = match transport_checksum(source, destination, protocol.number(), &payload) {
                0 => 0xffff,
                sum => sum,
            };
            payload[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        Protocol::Sctp => {
            // No verification tag yet, and the checksum; then INIT, 20 bytes.
            payload.extend([0; 8]);
            payload.extend([1, 0, 0, 20]);
            payload.extend(tag.to_be_bytes());
            payload.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            let sum = crc32c(&payload);
            payload[8..12].copy_from_slice(&sum.to_le_bytes());
        }
    }
    with_ip_header(source, destination, protocol.number(), &payload)
}

fn with_ip_header(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
            packet.extend([0, 0, 0x40, 0, TTL, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = fold(sum_of(&packet, 0));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            packet.extend([protocol, TTL]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        mixed => panic!("{mixed:?} are of two families"),
    }
    packet.extend_from_slice(payload);
    packet
}

/// What was seen, or the tag of a packet and what is wrong with it.
pub type Sight = Result<Seen, (u32, String)>;

/// Reads a packet from its IP header on. Says what is wrong with one that looks like ours; others are nothing.
pub fn read(packet: &[u8]) -> Option<Sight> {
    let (source, destination, protocol, payload) = split(packet)?;
    read_payload(source, destination, protocol, payload)
}

/// Reads what an IP header carries.
pub fn read_payload(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Option<Sight> {
    if let ICMP | ICMP_V6 = protocol {
        let is_error = (protocol == ICMP && matches!(payload.first()?, 3 | 4 | 5 | 11 | 12))
            || (protocol == ICMP_V6 && matches!(payload.first()?, 1..=4));
        if !is_error {
            return None;
        }
        let (_, _, inner_protocol, inner) = split(payload.get(8..)?)?;
        let is_port_unreachable =
            matches!((protocol, payload.first()?, payload.get(1)?), (ICMP, 3, 3) | (ICMP_V6, 1, 4));
        return Some(Ok(Seen::Error { tag: tag_of(inner_protocol, inner)?, to: destination, is_port_unreachable }));
    }
    // An answer of the node's own stack to one connection may have the number of another one, as a reset has the next.
    if !begins_connection(protocol, payload)? {
        return None;
    }
    let tag = tag_of(protocol, payload)?;
    if !has_right_checksum(source, destination, protocol, payload) {
        return Some(Err((tag, format!("the packet from {source} to {destination} came with a wrong checksum"))));
    }
    let port = u16::from_be_bytes(payload.get(2..4)?.try_into().ok()?);
    Some(Ok(Seen::Packet { tag, source, destination: SocketAddr::new(destination, port) }))
}

fn split(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            let length = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?)).min(packet.len());
            let address = |at: usize| -> Option<IpAddr> {
                Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into())
            };
            Some((address(12)?, address(16)?, *packet.get(9)?, packet.get(header..length)?))
        }
        6 => {
            let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
            let address = |at: usize| -> Option<IpAddr> {
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into())
            };
            Some((address(8)?, address(24)?, *packet.get(6)?, packet.get(40..(40 + length).min(packet.len()))?))
        }
        _ => None,
    }
}

fn begins_connection(protocol: u8, payload: &[u8]) -> Option<bool> {
    const TCP_FLAGS: u8 = 0x17;
    const SYN: u8 = 0x02;
    const SCTP_INIT: u8 = 1;
    Some(match protocol {
        6 => payload.get(13)? & TCP_FLAGS == SYN,
        132 => *payload.get(12)? == SCTP_INIT,
        _ => true,
    })
}

fn tag_of(protocol: u8, payload: &[u8]) -> Option<u32> {
    let at = match protocol {
        6 => 4,
        17 => 8,
        132 => 16,
        _ => return None,
    };
    let tag = u32::from_be_bytes(payload.get(at..at + 4)?.try_into().ok()?);
    (tag & TAG_MASK == TAGS).then_some(tag)
}

fn has_right_checksum(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> bool {
    if protocol == Protocol::Sctp.number() {
        let mut cleared = payload.to_vec();
        cleared[8..12].fill(0);
        return payload[8..12] == crc32c(&cleared).to_le_bytes();
    }
    transport_checksum(source, destination, protocol, payload) == 0
}

/// RFC 1071 over the pseudo header and the payload.
fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let addresses = [octets(source), octets(destination)].concat();
    let length = u32::try_from(payload.len()).unwrap();
    let sum = sum_of(&addresses, u32::from(protocol) + length);
    fold(sum_of(payload, sum))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn sum_of(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    })
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// SCTP's checksum (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 })
    })
}
