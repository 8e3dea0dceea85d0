//! The sockets of one interface: what the kernel lets through to them, and the groups that it hears for them.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::{Domain, Protocol, Socket, Type};

use super::ndp::solicited_node_group;
use super::responder::Station;
use crate::model::link::{InterfaceIndex, Mac};
use crate::netlink::packet_socket::{ETHERTYPE_ARP, ETHERTYPE_IPV6, Instruction, LONGEST_FILTER, PacketSocket};

// Offsets from the start of the Ethernet header.
const ARP_OPERATION: u32 = 20;
const ARP_TARGET: u32 = 38;
const IPV6_NEXT_HEADER: u32 = 20;
const ICMPV6_TYPE: u32 = 54;
/// The last four octets of a solicitation's target: the rest is compared here, not in the kernel.
const NDP_TARGET_END: u32 = 74;

// Operations of a classic BPF program, `linux/bpf_common.h`.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Keep the whole frame.
const ALL: u32 = u32::MAX;

/// The sockets of one interface.
#[derive(Debug)]
pub struct Sockets {
    index: InterfaceIndex,
    /// ARP requests for announced addresses. Absent while no IPv4 address is announced.
    pub arp: Option<PacketSocket>,
    /// Solicitations for announced addresses. Absent while no IPv6 address is announced, so that IPv6 traffic does not
    /// even meet a filter.
    pub ndp: Option<PacketSocket>,
    joined: BTreeSet<Ipv6Addr>,
    /// Has the kernel report our groups to switches that snoop (MLD); gets no packets.
    reporter: Option<Socket>,
    /// Whether it was said that the kernel has no room for the filters.
    is_crowding_told: bool,
}

/// What the kernel keeps for a socket.
#[derive(Debug)]
struct Filter {
    /// Requests for what is announced.
    exact: Vec<Instruction>,
    /// All requests, for when there are too many addresses: the responder compares anyway.
    any: Vec<Instruction>,
}

/// How a filter was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Exact,
    /// More than the kernel gives a socket (`net.core.optmem_max`).
    Crowded,
}

impl Sockets {
    /// Opens what the station needs.
    ///
    /// # Errors
    /// When the process lacks `CAP_NET_RAW`, or the interface is gone.
    pub fn open(index: InterfaceIndex, station: &Station) -> io::Result<Self> {
        let mut sockets =
            Self { index, arp: None, ndp: None, joined: BTreeSet::new(), reporter: None, is_crowding_told: false };
        sockets.follow(station)?;
        Ok(sockets)
    }

    /// Lets through what the station announces now, and nothing else.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn follow(&mut self, station: &Station) -> io::Result<()> {
        let (v4, v6) = by_family(&station.addresses);
        let (arp, ndp) = (self.arp.take(), self.ndp.take());
        if !v4.is_empty() {
            self.arp = Some(self.listen(arp, ETHERTYPE_ARP, &arp_filter(&v4))?);
        }
        if !v6.is_empty() {
            self.ndp = Some(self.listen(ndp, ETHERTYPE_IPV6, &ndp_filter(&v6))?);
        }
        self.follow_groups(v6.iter().map(|address| solicited_node_group(*address)).collect())
    }

    fn listen(&mut self, open: Option<PacketSocket>, ethertype: u16, filter: &Filter) -> io::Result<PacketSocket> {
        let socket = match open {
            Some(socket) => socket,
            None => PacketSocket::open(self.index, ethertype, &filter.any)?,
        };
        let fit = fit(filter, |program| socket.set_filter(program), || socket.clear_filter())?;
        if fit == Fit::Crowded && !self.is_crowding_told {
            self.is_crowding_told = true;
            tracing::warn!(
                interface = self.index.number(),
                "the kernel has no room for the filter of so many addresses (net.core.optmem_max): requests for others \
                 are dropped here instead"
            );
        }
        Ok(socket)
    }

    fn follow_groups(&mut self, wanted: BTreeSet<Ipv6Addr>) -> io::Result<()> {
        let Some(ndp) = &self.ndp else {
            // The groups ended with the socket.
            self.joined.clear();
            self.reporter = None;
            return Ok(());
        };
        let reporter = match &self.reporter {
            Some(reporter) => reporter,
            None => self.reporter.insert(Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?),
        };
        for group in self.joined.difference(&wanted) {
            ndp.leave(self.index, Mac::of_group(*group))?;
            // Was perhaps never joined, see below.
            let _left = reporter.leave_multicast_v6(group, self.index.number());
        }
        for group in wanted.difference(&self.joined) {
            ndp.join(self.index, Mac::of_group(*group))?;
            // An interface without IPv6 of its own, or too many groups: frames come all the same unless a switch snoops.
            if let Err(error) = reporter.join_multicast_v6(group, self.index.number()) {
                tracing::debug!(%group, %error, "group is not reported to switches");
            }
        }
        self.joined = wanted;
        Ok(())
    }
}

/// Attaches the exact program, or the other one where the kernel has no room.
fn fit(
    filter: &Filter,
    attach: impl Fn(&[Instruction]) -> io::Result<()>,
    detach: impl Fn() -> io::Result<()>,
) -> io::Result<Fit> {
    match attach(&filter.exact) {
        Ok(()) => Ok(Fit::Exact),
        Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
            // Not even a few instructions fit beside the old ones: all frames pass for a moment.
            if attach(&filter.any).is_err() {
                detach()?;
                attach(&filter.any)?;
            }
            // Until a moment ago the socket was charged for the old program, too.
            Ok(if attach(&filter.exact).is_ok() { Fit::Exact } else { Fit::Crowded })
        }
        Err(error) => Err(error),
    }
}

fn by_family(addresses: &BTreeSet<IpAddr>) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4.push(*address),
            IpAddr::V6(address) => v6.push(*address),
        }
    }
    (v4, v6)
}

/// Lets through ARP requests for these addresses.
fn arp_filter(addresses: &[Ipv4Addr]) -> Filter {
    let mut requests = Vec::new();
    require(&mut requests, LOAD_HALF, ARP_OPERATION, 1);
    keep(requests, ARP_TARGET, addresses.iter().map(|address| u32::from(*address)))
}

/// Lets through neighbour solicitations whose target ends like one of these addresses.
fn ndp_filter(addresses: &[Ipv6Addr]) -> Filter {
    let mut solicitations = Vec::new();
    require(&mut solicitations, LOAD_BYTE, IPV6_NEXT_HEADER, 58);
    require(&mut solicitations, LOAD_BYTE, ICMPV6_TYPE, 135);
    let ends: BTreeSet<u32> = addresses.iter().map(|address| low_word(*address)).collect();
    keep(solicitations, NDP_TARGET_END, ends.into_iter())
}

fn low_word(address: Ipv6Addr) -> u32 {
    let [.., a, b, c, d] = address.octets();
    u32::from_be_bytes([a, b, c, d])
}

/// Drops the frame unless the value at the offset is this.
fn require(program: &mut Vec<Instruction>, load: u16, offset: u32, value: u32) {
    program.push(step(load, 0, offset));
    program.push(Instruction { jump_true: 1, ..step(JUMP_IF_EQUAL, 0, value) });
    program.push(step(RETURN, 0, 0));
}

/// Keeps what passed so far if the word at the offset is one of these, two instructions for each.
fn keep(passed: Vec<Instruction>, offset: u32, words: impl ExactSizeIterator<Item = u32>) -> Filter {
    let mut any = passed.clone();
    any.push(step(RETURN, 0, ALL));
    if passed.len() + 2 * words.len() + 2 > LONGEST_FILTER {
        return Filter { exact: any.clone(), any };
    }
    let mut exact = passed;
    exact.push(step(LOAD_WORD, 0, offset));
    for word in words {
        exact.push(step(JUMP_IF_EQUAL, 1, word));
        exact.push(step(RETURN, 0, ALL));
    }
    exact.push(step(RETURN, 0, 0));
    Filter { exact, any }
}

const fn step(code: u16, jump_false: u8, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false, operand }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::{arp, ndp};
    use super::*;

    /// Runs a filter as the kernel does; loads beyond the frame drop it.
    fn passes(program: &[Instruction], frame: &[u8]) -> bool {
        let (mut at, mut register) = (0, 0u32);
        loop {
            let Instruction { code, jump_true, jump_false, operand } = program[at];
            at += 1;
            let offset = operand as usize;
            match code {
                LOAD_WORD | LOAD_HALF | LOAD_BYTE => {
                    let width = match code {
                        LOAD_WORD => 4,
                        LOAD_HALF => 2,
                        _ => 1,
                    };
                    let Some(bytes) = frame.get(offset..offset + width) else { return false };
                    register = bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
                }
                JUMP_IF_EQUAL => at += usize::from(if register == operand { jump_true } else { jump_false }),
                RETURN => return operand > 0,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn v4(count: u32) -> Vec<Ipv4Addr> {
        (0..count).map(|number| Ipv4Addr::from(0xc000_0200 + number)).collect()
    }

    #[test]
    fn only_requests_for_announced_addresses_pass() {
        let filter = arp_filter(&v4(3)).exact;
        let request = |number: u8| arp::gratuitous_request(Ipv4Addr::new(192, 0, 2, number), Mac::ZERO);
        assert!(passes(&filter, &request(0)) && passes(&filter, &request(2)));
        assert!(!passes(&filter, &request(3)));
        assert!(!passes(&filter, &arp::gratuitous_reply(Ipv4Addr::new(192, 0, 2, 0), Mac::ZERO)));
        assert!(!passes(&filter, &request(0)[..40]));
        assert!(!passes(&arp_filter(&[]).exact, &request(0)));
    }

    #[test]
    fn more_addresses_than_a_filter_holds_let_all_requests_pass() {
        let filter = arp_filter(&v4(3000)).exact;
        assert!(filter.len() < 10);
        assert!(passes(&filter, &arp::gratuitous_request(Ipv4Addr::new(10, 0, 0, 1), Mac::ZERO)));
        assert!(arp_filter(&v4(2045)).exact.len() <= LONGEST_FILTER);
    }

    /// A kernel that charges a socket for both programs while one replaces the other.
    #[test]
    fn a_kernel_without_room_keeps_all_requests() {
        let outcome = |room: usize, before: usize, addresses: u32| {
            let attached = Cell::new(before);
            let attach = |program: &[Instruction]| {
                if attached.get() + program.len() > room {
                    return Err(io::Error::from_raw_os_error(libc::ENOMEM));
                }
                attached.set(program.len());
                Ok(())
            };
            let detach = || {
                attached.set(0);
                Ok(())
            };
            (fit(&arp_filter(&v4(addresses)), attach, detach).unwrap(), attached.get())
        };
        assert_eq!(outcome(300, 4, 100), (Fit::Exact, 205));
        assert_eq!(outcome(300, 203, 100), (Fit::Exact, 205), "the old one left");
        assert_eq!(outcome(300, 203, 200), (Fit::Crowded, 4));
        assert_eq!(outcome(300, 299, 200), (Fit::Crowded, 4));
        let refused = fit(&arp_filter(&v4(1)), |_| Err(io::ErrorKind::InvalidInput.into()), || Ok(()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn only_solicitations_for_announced_addresses_pass() {
        let address: Ipv6Addr = "2001:db8::32".parse().unwrap();
        let filter = ndp_filter(&[address]).exact;
        let mut frame = ndp::unsolicited_advertisement(address, Mac::ZERO);
        assert!(!passes(&filter, &frame));
        frame[54] = 135;
        assert!(passes(&filter, &frame));
        frame[20] = 6;
        assert!(!passes(&filter, &frame));
        let mut other = ndp::unsolicited_advertisement("2001:db8::33".parse().unwrap(), Mac::ZERO);
        other[54] = 135;
        assert!(!passes(&filter, &other));
    }
}
