//! Against the real kernel, in network namespaces of their own, with the `conntrack` program to put entries there.

use std::num::NonZeroU16;
use std::process::Command;

use super::*;
use crate::model::Protocol;
use crate::netlink::nf_tables::test::in_new_namespace;

/// Runs `conntrack`.
fn conntrack(arguments: &str) -> String {
    let output = Command::new("conntrack")
        .args(arguments.split_whitespace())
        .output()
        .expect("these tests put connections there with conntrack: apt-get install conntrack");
    assert!(output.status.success(), "conntrack {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn insert(protocol: &str, port: u16, from: &str, to: &str, endpoint: &str) {
    let state = if protocol == "tcp" { "--state ESTABLISHED" } else { "" };
    conntrack(&format!(
        "-I -p {protocol} -s {from} -d {to} --sport {port} --dport 53 -r {endpoint} -q {from} \
         --reply-port-src 5353 --reply-port-dst {port} -t 100 {state}"
    ));
}

fn dump(conntrack: &mut Conntrack, filter: Filter) -> Vec<Entry> {
    let mut entries = Vec::new();
    conntrack.dump(&filter, |entry| entries.push(entry)).unwrap();
    entries.sort_by_key(|entry| entry.source);
    entries
}

const UDP: Filter = Filter { family: Family::V4, protocol: Protocol::Udp, destination: None, port: None };

#[test]
fn entries_are_read_as_filtered_and_deleted_one_by_one() {
    in_new_namespace(|| {
        insert("udp", 1001, "10.0.0.1", "10.96.0.10", "10.244.0.1");
        insert("udp", 1002, "10.0.0.1", "10.96.0.10", "10.244.0.2");
        insert("udp", 1003, "10.0.0.1", "10.96.0.11", "10.244.0.2");
        insert("tcp", 1004, "10.0.0.1", "10.96.0.10", "10.244.0.2");
        insert("udp", 1005, "fd00::1", "fd00:96::a", "fd00:244::1");
        let mut socket = Conntrack::open().unwrap();
        assert_eq!(socket.count().unwrap(), 5);
        let all = dump(&mut socket, UDP);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].source, "10.0.0.1:1001".parse().unwrap());
        assert_eq!(all[0].destination, "10.96.0.10:53".parse().unwrap());
        assert_eq!(all[0].reply_source, "10.244.0.1:5353".parse().unwrap());
        assert!(all[0].id.is_some());
        let to = Filter { destination: Some("10.96.0.10".parse().unwrap()), port: NonZeroU16::new(53), ..UDP };
        assert_eq!(dump(&mut socket, to), all[..2]);
        assert_eq!(dump(&mut socket, Filter { port: NonZeroU16::new(54), ..UDP }), []);
        assert_eq!(dump(&mut socket, Filter { protocol: Protocol::Tcp, ..UDP }).len(), 1);
        let six = dump(&mut socket, Filter { family: Family::V6, ..UDP });
        assert_eq!(six[0].reply_source, "[fd00:244::1]:5353".parse().unwrap());

        let to = Filter {
            family: Family::V6,
            destination: Some("fd00:96::a".parse().unwrap()),
            port: NonZeroU16::new(53),
            ..UDP
        };
        assert_eq!(dump(&mut socket, to), six);
        let other = Filter { destination: Some("fd00:96::b".parse().unwrap()), ..to };
        assert_eq!(dump(&mut socket, other), []);

        assert_eq!(socket.delete(&[all[0], six[0]]).unwrap(), 2);
        assert_eq!(socket.delete(&[all[0]]).unwrap(), 0, "it is gone");
        assert_eq!(dump(&mut socket, UDP), all[1..]);
        assert_eq!(conntrack("-L -p tcp").lines().count(), 1);
    });
}

#[test]
fn the_kernel_itself_filters() {
    in_new_namespace(|| {
        for port in 1..=50 {
            insert("udp", 2000 + port, "10.0.0.1", "10.96.0.10", "10.244.0.1");
        }
        insert("udp", 1001, "10.0.0.1", "10.96.0.11", "10.244.0.1");
        let mut socket = Conntrack::open().unwrap();
        let filter = Filter { destination: Some("10.96.0.11".parse().unwrap()), ..UDP };
        let sequence = socket.next_sequence();
        let mut bytes = Vec::new();
        put_header(&mut bytes, GET, DUMP, sequence, Family::V4);
        filter.write(&mut bytes);
        close_message(&mut bytes, 0);
        socket.send(&bytes).unwrap();
        let mut told = 0;
        while let Some(datagram) = socket.receive().unwrap() {
            told += Messages(datagram).filter(|answer| answer.kind == kind_of(NEW)).count();
        }
        assert_eq!(told, 1);
    });
}

#[test]
fn a_thousand_are_deleted_together() {
    in_new_namespace(|| {
        for port in 1..=1100 {
            insert("udp", 2000 + port, "10.0.0.1", "10.96.0.10", "10.244.0.1");
        }
        let mut socket = Conntrack::open().unwrap();
        let all = dump(&mut socket, UDP);
        assert_eq!(all.len(), 1100);
        assert_eq!(socket.delete(&all).unwrap(), 1100);
        assert_eq!(dump(&mut socket, UDP), []);
    });
}
