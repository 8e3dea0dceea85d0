//! Neighbour solicitations and advertisements (RFC 4861 §4.3, §4.4) over Ethernet (RFC 2464).
//!
//! ```text
//! Ethernet   | destination (6) | source (6) | 0x86dd |
//! IPv6       | version, class, flow (4) | length (2) | next header = 58 | hop limit = 255 | source (16) | destination (16) |
//! ICMPv6     | type 135 or 136 | code = 0 | checksum (2) | reserved or R S O (4) | target (16) | options ... |
//! option     | type: 1 source, 2 target | length = 1 | link-layer address (6) |
//! ```

use std::net::Ipv6Addr;

use pnet_base::MacAddr;
use pnet_packet::ethernet::{EtherTypes, MutableEthernetPacket};
use pnet_packet::icmpv6::ndp::NeighborAdvertFlags;
use pnet_packet::icmpv6::{self, Icmpv6Packet};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv6::MutableIpv6Packet;

use super::responder::DropReason;
use crate::model::link::Mac;

const ETHERNET_LENGTH: usize = 14;
const IPV6_LENGTH: usize = 40;
/// An advertisement with one option.
const ADVERTISEMENT_LENGTH: usize = 32;
/// The length of an advertisement with all its headers.
pub const FRAME_LENGTH: usize = ETHERNET_LENGTH + IPV6_LENGTH + ADVERTISEMENT_LENGTH;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ICMPV6: u8 = 58;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
/// RFC 4861 §3.1: a packet that crossed a router has less.
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A whole frame.
pub type Frame = [u8; FRAME_LENGTH];

/// A neighbour solicitation that passed every check of RFC 4861 §7.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// Where the frame was sent to.
    pub destination_mac: Mac,
    /// Whose frame it was.
    pub source_mac: Mac,
    /// Who asks; unspecified in duplicate address detection (RFC 4862 §5.4).
    pub source: Ipv6Addr,
    /// For which address.
    pub target: Ipv6Addr,
    /// The source link-layer address option.
    pub source_option: Option<Mac>,
}

/// The group that a solicitation for this address is sent to (RFC 4291 §2.7.1).
pub fn solicited_node_group(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// Reads a solicitation.
///
/// # Errors
/// When the frame is none, or fails a check of RFC 4861 §7.1.1.
pub fn parse(frame: &[u8]) -> Result<Solicitation, DropReason> {
    parse_checked(frame).ok_or(DropReason::Malformed)?
}

/// Nothing for a frame that is too short.
fn parse_checked(frame: &[u8]) -> Option<Result<Solicitation, DropReason>> {
    let (destination_mac, rest) = frame.split_first_chunk::<6>()?;
    let (source_mac, rest) = rest.split_first_chunk::<6>()?;
    let (ethertype, packet) = rest.split_first_chunk::<2>()?;
    let (header, rest) = packet.split_first_chunk::<8>()?;
    let (source, rest) = rest.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let &[first, _, _, _, high, low, next_header, hop_limit] = header;
    if *ethertype != EtherTypes::Ipv6.0.to_be_bytes() || first >> 4 != 6 || next_header != ICMPV6 {
        return Some(Err(DropReason::Malformed));
    }
    // What follows the packet's own length is padding of the frame.
    let message = rest.get(..usize::from(u16::from_be_bytes([high, low])))?;
    let (icmp, rest) = message.split_first_chunk::<8>()?;
    let &[kind, code, ..] = icmp;
    if kind != SOLICITATION {
        return Some(Err(DropReason::NotARequest));
    }
    let (target, options) = rest.split_first_chunk::<16>()?;
    let (source, destination) = (Ipv6Addr::from(*source), Ipv6Addr::from(*destination));
    let target = Ipv6Addr::from(*target);
    let source_option = match source_link_layer_address(options) {
        Ok(option) => option,
        Err(reason) => return Some(Err(reason)),
    };
    let checksum_is_right = Icmpv6Packet::new(message)
        .is_some_and(|packet| packet.get_checksum() == icmpv6::checksum(&packet, &source, &destination));
    let is_valid = hop_limit == HOP_LIMIT && code == 0 && checksum_is_right && !target.is_multicast();
    // "If the IP source address is the unspecified address, the IP destination address is a solicited-node multicast
    // address" and "there is no source link-layer address option in the message".
    let is_valid_detection =
        !source.is_unspecified() || (destination == solicited_node_group(target) && source_option.is_none());
    if !is_valid || !is_valid_detection || source.is_multicast() {
        return Some(Err(DropReason::Malformed));
    }
    Some(Ok(Solicitation {
        destination_mac: Mac::new(*destination_mac),
        source_mac: Mac::new(*source_mac),
        source,
        target,
        source_option,
    }))
}

fn source_link_layer_address(mut options: &[u8]) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    while let [kind, length, ..] = options {
        // Lengths count eight octets; zero is refused (§7.1.1: "all included options have a length that is greater
        // than zero").
        let (option, rest) = options
            .split_at_checked(usize::from(*length) * 8)
            .filter(|(option, _)| !option.is_empty())
            .ok_or(DropReason::Malformed)?;
        if *kind == SOURCE_LINK_LAYER_ADDRESS
            && let [_, _, a, b, c, d, e, f] = option
        {
            found = Some(Mac::new([*a, *b, *c, *d, *e, *f]));
        }
        options = rest;
    }
    if options.is_empty() { Ok(found) } else { Err(DropReason::Malformed) }
}

/// The advertisement that answers a solicitation (RFC 4861 §7.2.4).
pub fn advertisement(solicitation: &Solicitation, own: Mac) -> Frame {
    let target = solicitation.target;
    if solicitation.source.is_unspecified() {
        // "If the source of the solicitation is the unspecified address, the node MUST set the Solicited flag to zero
        // and multicast the advertisement to the all-nodes address."
        return build(target, ALL_NODES, Mac::ALL_NODES, NeighborAdvertFlags::Override, own);
    }
    let asker = solicitation.source_option.filter(|mac| !mac.is_group()).unwrap_or(solicitation.source_mac);
    let flags = NeighborAdvertFlags::Solicited | NeighborAdvertFlags::Override;
    build(target, solicitation.source, asker, flags, own)
}

/// An advertisement that nobody asked for, to all (RFC 4861 §7.2.6).
pub fn unsolicited_advertisement(address: Ipv6Addr, own: Mac) -> Frame {
    build(address, ALL_NODES, Mac::ALL_NODES, NeighborAdvertFlags::Override, own)
}

/// Its source is the announced address: unlike a link-local one it is always there, and binds address and MAC for
/// switches that inspect NDP.
fn build(address: Ipv6Addr, destination: Ipv6Addr, destination_mac: Mac, flags: u8, own: Mac) -> Frame {
    let mut frame = [0; FRAME_LENGTH];
    let (ethernet_bytes, packet) = frame.split_at_mut(ETHERNET_LENGTH);
    let (ipv6_bytes, message) = packet.split_at_mut(IPV6_LENGTH);
    // None of these can fail to fit: the lengths are those of the headers.
    if let Some(mut ethernet) = MutableEthernetPacket::new(ethernet_bytes) {
        ethernet.set_destination(MacAddr::from(destination_mac.octets()));
        ethernet.set_source(MacAddr::from(own.octets()));
        ethernet.set_ethertype(EtherTypes::Ipv6);
    }
    if let Some(mut ipv6) = MutableIpv6Packet::new(ipv6_bytes) {
        ipv6.set_version(6);
        // Thirty-two fits sixteen bits.
        ipv6.set_payload_length(ADVERTISEMENT_LENGTH as u16);
        ipv6.set_next_header(IpNextHeaderProtocols::Icmpv6);
        ipv6.set_hop_limit(HOP_LIMIT);
        ipv6.set_source(address);
        ipv6.set_destination(destination);
    }
    let [m0, m1, m2, m3, m4, m5] = own.octets();
    let head = [ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    let option = [TARGET_LINK_LAYER_ADDRESS, 1, m0, m1, m2, m3, m4, m5];
    fill(message, head.into_iter().chain(address.octets()).chain(option));
    let checksum = Icmpv6Packet::new(message).map_or(0, |packet| icmpv6::checksum(&packet, &address, &destination));
    let [high, low] = checksum.to_be_bytes();
    fill(message, [ADVERTISEMENT, 0, high, low].into_iter());
    frame
}

fn fill(bytes: &mut [u8], values: impl Iterator<Item = u8>) {
    bytes.iter_mut().zip(values).for_each(|(byte, value)| *byte = value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const CLIENT: Mac = Mac::new([2, 0, 0, 0, 0, 9]);

    fn address() -> Ipv6Addr {
        "2001:db8::32".parse().unwrap()
    }

    fn client() -> Ipv6Addr {
        "fe80::9".parse().unwrap()
    }

    /// A solicitation as a host sends it, with a right checksum.
    fn solicitation(source: Ipv6Addr, destination: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(address().octets());
        message.extend(options);
        let checksum = icmpv6::checksum(&Icmpv6Packet::new(&message).unwrap(), &source, &destination);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let mut frame = Mac::of_group(destination).octets().to_vec();
        frame.extend(CLIENT.octets());
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, u8::try_from(message.len()).unwrap(), 58, 255]);
        frame.extend(source.octets());
        frame.extend(destination.octets());
        frame.extend(message);
        frame
    }

    fn asked() -> Vec<u8> {
        let option = [1, 1, 2, 0, 0, 0, 0, 9];
        solicitation(client(), solicited_node_group(address()), &option)
    }

    #[test]
    fn the_group_of_an_address_is_that_of_the_rfc() {
        // RFC 4291 §2.7.1, its own example.
        let address = "4037::01:800:200e:8c6c".parse().unwrap();
        assert_eq!(solicited_node_group(address), "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn a_solicitation_is_read_and_answered_byte_for_byte() {
        let solicitation = parse(&asked()).unwrap();
        assert_eq!((solicitation.source, solicitation.target), (client(), address()));
        assert_eq!(solicitation.source_option, Some(CLIENT));
        let expected: Vec<u8> = [
            &b"\x02\0\0\0\0\x09\x02\0\0\0\0\x01\x86\xdd"[..],
            b"\x60\0\0\0\0\x20\x3a\xff",
            &address().octets(),
            &client().octets(),
            // The checksum was computed apart; 0x60 is solicited and override.
            b"\x88\0\xb9\x42\x60\0\0\0",
            &address().octets(),
            b"\x02\x01\x02\0\0\0\0\x01",
        ]
        .concat();
        assert_eq!(advertisement(&solicitation, OWN).to_vec(), expected);
    }

    #[test]
    fn duplicate_address_detection_is_answered_to_all() {
        let detection = solicitation(Ipv6Addr::UNSPECIFIED, solicited_node_group(address()), &[]);
        let answer = advertisement(&parse(&detection).unwrap(), OWN);
        assert_eq!(&answer[..6], Mac::ALL_NODES.octets());
        assert_eq!(&answer[38..54], ALL_NODES.octets());
        assert_eq!(answer[58], 0x20, "override without solicited");
        assert_eq!(answer, unsolicited_advertisement(address(), OWN));
    }

    #[test]
    fn a_unicast_probe_without_option_is_answered_to_its_frame() {
        let probe = solicitation(client(), address(), &[]);
        let answer = advertisement(&parse(&probe).unwrap(), OWN);
        assert_eq!(&answer[..6], CLIENT.octets());
    }

    #[test]
    fn every_check_of_the_rfc_is_made() {
        let group = solicited_node_group(address());
        let mut cases = vec![
            ("unspecified source to unicast", solicitation(Ipv6Addr::UNSPECIFIED, address(), &[])),
            ("unspecified source with option", solicitation(Ipv6Addr::UNSPECIFIED, group, &[1, 1, 2, 0, 0, 0, 0, 9])),
            ("option of length zero", solicitation(client(), group, &[1, 0, 2, 0, 0, 0, 0, 9])),
            ("cut option", solicitation(client(), group, &[1, 1, 2, 0])),
        ];
        for (what, offset, value) in [
            ("hop limit", 21, 254),
            ("code", 55, 1),
            ("checksum", 56, 0xaa),
            ("version", 14, 0x40),
            ("length", 19, 200),
        ] {
            let mut frame = asked();
            frame[offset] = value;
            cases.push((what, frame));
        }
        for (what, frame) in cases {
            assert_eq!(parse(&frame), Err(DropReason::Malformed), "{what}");
        }
        let mut advertisement = asked();
        advertisement[54] = 136;
        assert_eq!(parse(&advertisement), Err(DropReason::NotARequest));
    }

    #[test]
    fn padding_of_the_frame_is_no_option() {
        let mut frame = asked();
        frame.extend([0; 7]);
        assert!(parse(&frame).is_ok());
    }

    proptest! {
        #[test]
        fn no_frame_makes_the_parser_panic(noise in prop::collection::vec(any::<u8>(), 0..120), cut in 0usize..90) {
            let _outcome = parse(&noise);
            let frame = asked();
            let _outcome = parse(frame.get(..cut).unwrap_or(&frame));
        }

        #[test]
        fn a_flipped_bit_never_passes_the_checksum(byte in 54usize..86, bit in 0u8..8) {
            let mut frame = asked();
            frame[byte] ^= 1 << bit;
            prop_assert!(parse(&frame).is_err());
        }
    }
}
