//! ARP for IPv4 over Ethernet (RFC 826), with what address conflict detection adds (RFC 5227).
//!
//! ```text
//! Ethernet   | destination (6) | source (6) | 0x0806 |
//! ARP        | hardware = 1 | protocol = 0x0800 | 6 | 4 | operation |
//!            | sender hardware (6) | sender protocol (4) | target hardware (6) | target protocol (4) |
//! ```

use std::net::Ipv4Addr;

use pnet_base::MacAddr;
use pnet_packet::arp::{ArpHardwareTypes, ArpOperation, ArpOperations, ArpPacket, MutableArpPacket};
use pnet_packet::ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet_packet::{MutablePacket, Packet};

use super::responder::DropReason;
use crate::model::link::Mac;

/// The length of an Ethernet header and an ARP packet. On the wire the frame is padded to 60 bytes.
pub const FRAME_LENGTH: usize = 42;

/// A whole frame.
pub type Frame = [u8; FRAME_LENGTH];

/// A question for an address: a request, or a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the frame was sent to.
    pub destination: Mac,
    /// Who asks.
    pub sender_mac: Mac,
    /// From which address; unspecified in a probe (RFC 5227 §1.1).
    pub sender: Ipv4Addr,
    /// For which address.
    pub target: Ipv4Addr,
}

/// Reads a request.
///
/// # Errors
/// When the frame is no request that anybody may answer.
pub fn parse(frame: &[u8]) -> Result<Request, DropReason> {
    let ethernet = EthernetPacket::new(frame).ok_or(DropReason::Malformed)?;
    let arp = ArpPacket::new(ethernet.payload()).ok_or(DropReason::Malformed)?;
    // RFC 826, packet reception: hardware type, protocol and their lengths are checked before anything is believed.
    let is_ipv4_over_ethernet = ethernet.get_ethertype() == EtherTypes::Arp
        && arp.get_hardware_type() == ArpHardwareTypes::Ethernet
        && arp.get_protocol_type() == EtherTypes::Ipv4
        && arp.get_hw_addr_len() == 6
        && arp.get_proto_addr_len() == 4;
    if !is_ipv4_over_ethernet {
        return Err(DropReason::Malformed);
    }
    if arp.get_operation() != ArpOperations::Request {
        return Err(DropReason::NotARequest);
    }
    let request = Request {
        destination: mac(ethernet.get_destination()),
        sender_mac: mac(arp.get_sender_hw_addr()),
        sender: arp.get_sender_proto_addr(),
        target: arp.get_target_proto_addr(),
    };
    if request.sender_mac.is_group() || request.sender_mac == Mac::ZERO {
        return Err(DropReason::Malformed);
    }
    // RFC 5227 §1.1: sender and target equal is an announcement, which asks nothing.
    if request.sender == request.target {
        return Err(DropReason::Announcement);
    }
    Ok(request)
}

/// The reply to a request, to the one who asked (RFC 826).
pub fn reply(request: &Request, own: Mac) -> Frame {
    build(request.sender_mac, own, ArpOperations::Reply, request.target, request.sender_mac, request.sender)
}

/// An announcement as a request: updates every cache that has the address (RFC 5227 §3).
pub fn gratuitous_request(address: Ipv4Addr, own: Mac) -> Frame {
    build(Mac::BROADCAST, own, ArpOperations::Request, address, Mac::ZERO, address)
}

/// An announcement as a reply: some stacks heed only these (RFC 5944 §4.6 allows both).
pub fn gratuitous_reply(address: Ipv4Addr, own: Mac) -> Frame {
    build(Mac::BROADCAST, own, ArpOperations::Reply, address, own, address)
}

fn build(
    destination: Mac,
    own: Mac,
    operation: ArpOperation,
    sender: Ipv4Addr,
    target_mac: Mac,
    target: Ipv4Addr,
) -> Frame {
    let mut frame = [0; FRAME_LENGTH];
    // Neither packet can fail to fit: the frame's length is that of both headers.
    if let Some(mut ethernet) = MutableEthernetPacket::new(&mut frame) {
        ethernet.set_destination(pnet(destination));
        ethernet.set_source(pnet(own));
        ethernet.set_ethertype(EtherTypes::Arp);
        if let Some(mut arp) = MutableArpPacket::new(ethernet.payload_mut()) {
            arp.set_hardware_type(ArpHardwareTypes::Ethernet);
            arp.set_protocol_type(EtherTypes::Ipv4);
            arp.set_hw_addr_len(6);
            arp.set_proto_addr_len(4);
            arp.set_operation(operation);
            arp.set_sender_hw_addr(pnet(own));
            arp.set_sender_proto_addr(sender);
            arp.set_target_hw_addr(pnet(target_mac));
            arp.set_target_proto_addr(target);
        }
    }
    frame
}

fn mac(address: MacAddr) -> Mac {
    Mac::new(address.octets())
}

fn pnet(mac: Mac) -> MacAddr {
    MacAddr::from(mac.octets())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const CLIENT: Mac = Mac::new([2, 0, 0, 0, 0, 9]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

    /// `arping 192.0.2.50` from 192.0.2.9, as tcpdump shows it.
    const REQUEST: &[u8] = b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x09\x08\x06\0\x01\x08\0\x06\x04\0\x01\
                             \x02\0\0\0\0\x09\xc0\0\x02\x09\0\0\0\0\0\0\xc0\0\x02\x32";
    const REPLY: &[u8] = b"\x02\0\0\0\0\x09\x02\0\0\0\0\x01\x08\x06\0\x01\x08\0\x06\x04\0\x02\
                           \x02\0\0\0\0\x01\xc0\0\x02\x32\x02\0\0\0\0\x09\xc0\0\x02\x09";

    #[test]
    fn a_request_is_read_and_answered_byte_for_byte() {
        let request = parse(REQUEST).unwrap();
        let sender = Ipv4Addr::new(192, 0, 2, 9);
        assert_eq!(request, Request { destination: Mac::BROADCAST, sender_mac: CLIENT, sender, target: ADDRESS });
        assert_eq!(reply(&request, OWN), REPLY);
    }

    #[test]
    fn a_probe_is_answered_to_the_prober() {
        // RFC 5227 §2.1.1: the sender address of a probe is zero.
        let mut probe = REQUEST.to_vec();
        probe[28..32].fill(0);
        let answer = reply(&parse(&probe).unwrap(), OWN);
        assert_eq!(&answer[..6], CLIENT.octets());
        assert_eq!(&answer[38..], [0, 0, 0, 0]);
    }

    #[test]
    fn announcements_are_whole_frames_to_everybody() {
        let request = gratuitous_request(ADDRESS, OWN);
        assert_eq!(parse(&request), Err(DropReason::Announcement));
        assert_eq!((&request[..6], &request[32..38]), (&[0xff; 6][..], &[0; 6][..]));
        assert_eq!((&request[28..32], &request[38..]), (&ADDRESS.octets()[..], &ADDRESS.octets()[..]));
        let reply = gratuitous_reply(ADDRESS, OWN);
        assert_eq!(parse(&reply), Err(DropReason::NotARequest));
        assert_eq!((&reply[..6], &reply[32..38]), (&[0xff; 6][..], &OWN.octets()[..]));
    }

    #[test]
    fn what_is_no_ipv4_over_ethernet_is_malformed() {
        for (offset, value) in [(13, 0), (15, 6), (17, 6), (18, 8), (19, 16), (22, 1)] {
            let mut frame = REQUEST.to_vec();
            frame[offset] = value;
            assert_eq!(parse(&frame), Err(DropReason::Malformed), "byte {offset}");
        }
        assert_eq!(parse(&REQUEST[..41]), Err(DropReason::Malformed));
        assert_eq!(parse(&[]), Err(DropReason::Malformed));
    }

    proptest! {
        #[test]
        fn no_frame_makes_the_parser_panic(frame in prop::collection::vec(any::<u8>(), 0..80)) {
            let _outcome = parse(&frame);
        }
    }
}
