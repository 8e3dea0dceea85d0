//! Packets that connection tracking calls invalid: forwarded unless they shall not be.

use std::io::Read as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pnet_packet::tcp::{MutableTcpPacket, ipv4_checksum, ipv6_checksum};
use socket2::{Domain, Protocol, Socket, Type};
use steelyard::model::Family;

use crate::agent::service;
use crate::namespace::Namespace;
use crate::stage::Stage;

const FIN_ACK: u8 = 0x11;
const SYN: u8 = 0x02;

/// Sends a TCP segment that no socket knows of.
pub(crate) fn send_segment(namespace: &Namespace, from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32) {
    let mut bytes = [0u8; 20];
    let mut packet = MutableTcpPacket::new(&mut bytes).unwrap();
    packet.set_source(from.port());
    packet.set_destination(to.port());
    packet.set_sequence(sequence);
    packet.set_acknowledgement(1);
    packet.set_data_offset(5);
    packet.set_flags(flags);
    packet.set_window(1000);
    let checksum = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => ipv4_checksum(&packet.to_immutable(), from.ip(), to.ip()),
        (SocketAddr::V6(from), SocketAddr::V6(to)) => ipv6_checksum(&packet.to_immutable(), from.ip(), to.ip()),
        _ => unreachable!("one family"),
    };
    packet.set_checksum(checksum);
    namespace.run(|| {
        let socket = raw(from);
        socket.bind(&SocketAddr::new(from.ip(), 0).into()).unwrap();
        socket.send_to(&bytes, &SocketAddr::new(to.ip(), 0).into()).unwrap();
    });
}

fn raw(of: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(of), Type::RAW, Some(Protocol::TCP)).unwrap()
}

/// Sends an invalid segment and then the first of a connection, and tells whether the invalid one came too.
fn passes(stage: &Stage, sender: &Namespace, receiver: &Namespace, from: SocketAddr, to: SocketAddr) -> bool {
    let mut listener = receiver.run(|| raw(to));
    listener.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let limit = Instant::now() + crate::stage::LIMIT;
    let mut has_come = false;
    // The first packets may wait for a neighbour.
    while Instant::now() < limit {
        send_segment(sender, from, to, FIN_ACK, 7);
        send_segment(sender, SocketAddr::new(from.ip(), from.port() + 1), to, SYN, 7);
        let mut buffer = [0; 128];
        while let Ok(count) = listener.read(&mut buffer) {
            let bytes = &buffer[..count];
            let segment = match stage.family {
                Family::V4 => &bytes[20..],
                Family::V6 => bytes,
            };
            let (port, flags) = (u16::from_be_bytes([segment[2], segment[3]]), segment[13]);
            has_come |= port == to.port() && flags == FIN_ACK;
            if port == to.port() && flags == SYN {
                return has_come;
            }
        }
    }
    panic!("packets do not reach {to}");
}

#[test]
fn invalid_packets_from_and_to_pods_are_dropped_where_that_is_asked_for() {
    for (family, drop_invalid) in [(Family::V4, false), (Family::V4, true), (Family::V6, false), (Family::V6, true)] {
        let mut stage = Stage::without_agent(family);
        stage.drop_invalid = drop_invalid;
        stage.start_agent();
        stage.agent().lists(vec![service(stage.cluster_ip(80), serde_json::json!({}), &[])], vec![]);
        let (client, pod, other) = match family {
            Family::V4 => ("198.51.100.9:7000", "10.244.1.11:7001", "203.0.113.7:7002"),
            Family::V6 => ("[2001:db8:100::9]:7000", "[fd00:244:1::11]:7001", "[2001:db8:7::7]:7002"),
        };
        let [client, pod, other]: [SocketAddr; 3] = [client, pod, other].map(|text| text.parse().unwrap());
        let what = format!("{family}, drop {drop_invalid}");
        assert_eq!(passes(&stage, &stage.pods, &stage.client, pod, client), !drop_invalid, "{what}: from a pod");
        assert_eq!(passes(&stage, &stage.client, &stage.pods, client, pod), !drop_invalid, "{what}: to a pod");
        assert!(passes(&stage, &stage.client, &stage.pods, client, other), "{what}: between others");
    }
}
