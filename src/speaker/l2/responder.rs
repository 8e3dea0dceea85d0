//! Whether a frame is answered, and with what. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{arp, ndp};
use crate::model::link::Mac;

/// What one interface announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// The Ethernet address that answers carry.
    pub mac: Mac,
    /// The addresses that are answered for.
    pub addresses: BTreeSet<IpAddr>,
}

/// Why a frame is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Cut, of another protocol, or against the RFC.
    Malformed,
    /// A reply or an advertisement.
    NotARequest,
    /// Somebody announces the address as its own.
    Announcement,
    /// Sent to another station's Ethernet address.
    WrongDestination,
    /// Sent by ourselves.
    OwnFrame,
    /// For an address that is not announced here.
    NotAnnounced,
}

impl DropReason {
    /// The value of the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotARequest => "not-a-request",
            Self::Announcement => "announcement",
            Self::WrongDestination => "wrong-destination",
            Self::OwnFrame => "own-frame",
            Self::NotAnnounced => "not-announced",
        }
    }
}

/// The answer to an ARP frame.
///
/// # Errors
/// The reason, when there is none.
pub fn answer_arp(station: &Station, frame: &[u8]) -> Result<arp::Frame, DropReason> {
    let request = arp::parse(frame)?;
    check(station, request.sender_mac, request.destination, request.destination == Mac::BROADCAST)?;
    if !station.addresses.contains(&IpAddr::V4(request.target)) {
        return Err(DropReason::NotAnnounced);
    }
    Ok(arp::reply(&request, station.mac))
}

/// The answer to a frame that may hold a neighbour solicitation.
///
/// # Errors
/// The reason, when there is none.
pub fn answer_ndp(station: &Station, frame: &[u8]) -> Result<ndp::Frame, DropReason> {
    let solicitation = ndp::parse(frame)?;
    check(station, solicitation.source_mac, solicitation.destination_mac, solicitation.destination_mac.is_group())?;
    if !station.addresses.contains(&IpAddr::V6(solicitation.target)) {
        return Err(DropReason::NotAnnounced);
    }
    Ok(ndp::advertisement(&solicitation, station.mac))
}

fn check(station: &Station, from: Mac, to: Mac, is_for_all: bool) -> Result<(), DropReason> {
    if from == station.mac {
        return Err(DropReason::OwnFrame);
    }
    if to != station.mac && !is_for_all {
        return Err(DropReason::WrongDestination);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);

    fn station(address: &str) -> Station {
        Station { mac: OWN, addresses: [address.parse().unwrap()].into() }
    }

    fn request(destination: [u8; 6], sender: [u8; 6]) -> Vec<u8> {
        let mut frame = destination.to_vec();
        frame.extend(sender);
        frame.extend(b"\x08\x06\0\x01\x08\0\x06\x04\0\x01");
        frame.extend(sender);
        frame.extend(b"\xc0\0\x02\x09\0\0\0\0\0\0\xc0\0\x02\x32");
        frame
    }

    #[test]
    fn every_arp_frame_has_its_outcome() {
        let (client, other) = ([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8]);
        let announced = station("192.0.2.50");
        for (station, destination, sender, expected) in [
            (&announced, [0xff; 6], client, None),
            (&announced, OWN.octets(), client, None),
            (&announced, other, client, Some(DropReason::WrongDestination)),
            (&announced, Mac::ALL_NODES.octets(), client, Some(DropReason::WrongDestination)),
            (&announced, [0xff; 6], OWN.octets(), Some(DropReason::OwnFrame)),
            (&announced, [0xff; 6], [0xff; 6], Some(DropReason::Malformed)),
            (&station("192.0.2.51"), [0xff; 6], client, Some(DropReason::NotAnnounced)),
            (&station("2001:db8::1"), [0xff; 6], client, Some(DropReason::NotAnnounced)),
        ] {
            assert_eq!(answer_arp(station, &request(destination, sender)).err(), expected);
        }
    }

    #[test]
    fn what_is_no_solicitation_is_not_answered() {
        let station = station("2001:db8::1");
        let unsolicited = ndp::unsolicited_advertisement("2001:db8::1".parse().unwrap(), Mac::new([2, 0, 0, 0, 0, 9]));
        assert_eq!(answer_ndp(&station, &unsolicited), Err(DropReason::NotARequest));
        assert_eq!(answer_ndp(&station, &request([0xff; 6], [2; 6])), Err(DropReason::Malformed));
    }
}
