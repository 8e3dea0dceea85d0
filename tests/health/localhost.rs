//! NodePorts on localhost.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::namespace::{Namespace, wait};
use crate::node::{LIMIT, Node, inside};

const NODE_PORT: &str = "type: NodePort, clusterIPs: [172.30.0.1, 'fd00::1'], ports: [{port: 80, nodePort: 30080}]";
const BOTH: [&str; 2] = ["127.0.0.1:30080", "[::1]:30080"];

/// Reads until its client has said everything, then answers with its own address and what it heard.
fn start_endpoint(namespace: &Namespace, at: &'static str) {
    let listener = inside(namespace, || TcpListener::bind(at).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut heard = String::new();
                let _gone = stream.read_to_string(&mut heard);
                let _gone = stream.write_all(format!("{at} heard {} bytes", heard.len()).as_bytes());
            });
        }
    });
}

/// Says something, ends its half, and hears the answer.
fn talk(node: &Node, at: &str, bytes: usize) -> std::io::Result<String> {
    inside(&node.pair.node, || {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(&vec![b'x'; bytes])?;
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

fn wait_until_served(node: &Node, addresses: &[&str], is_served: bool) {
    wait(LIMIT, &format!("{addresses:?} served: {is_served}"), || {
        addresses.iter().all(|at| talk(node, at, 1).is_ok_and(|text| !text.is_empty()) == is_served)
    });
}

#[test]
fn a_client_on_localhost_reaches_endpoints_elsewhere_in_both_families() {
    let node = Node::start("localhost", &["primary", "localhost"]);
    start_endpoint(&node.pair.client, "192.0.2.9:8080");
    start_endpoint(&node.pair.client, "[2001:db8::9]:8080");
    node.settle();
    node.see_service("web", NODE_PORT);
    wait_until_served(&node, &BOTH, false);
    node.see_slice("web", "IPv4", 8080, "{addresses: [192.0.2.9], nodeName: there}");
    wait_until_served(&node, &BOTH[..1], true);
    node.see_slice("web", "IPv6", 8080, "{addresses: ['2001:db8::9'], nodeName: there}");
    wait_until_served(&node, &BOTH, true);
    // More than any buffer on the way holds, then the end of one half before the answer.
    assert_eq!(talk(&node, BOTH[0], 5_000_000).unwrap(), "192.0.2.9:8080 heard 5000000 bytes");
    assert_eq!(talk(&node, BOTH[1], 5_000_000).unwrap(), "[2001:db8::9]:8080 heard 5000000 bytes");
    node.forget_service("web");
    wait_until_served(&node, &BOTH, false);
}

#[test]
fn policy_local_listens_only_where_there_is_an_endpoint() {
    let node = Node::start("local", &["127.0.0.0/8"]);
    start_endpoint(&node.pair.client, "192.0.2.9:8080");
    node.settle();
    node.see_service("web", &format!("externalTrafficPolicy: Local, {NODE_PORT}"));
    node.see_slice("web", "IPv4", 8080, "{addresses: [192.0.2.9], nodeName: here}");
    wait_until_served(&node, &BOTH[..1], true);
    node.see_slice("web", "IPv4", 8080, "{addresses: [192.0.2.9], nodeName: there}");
    wait_until_served(&node, &BOTH[..1], false);
    node.see_service("web", NODE_PORT);
    wait_until_served(&node, &BOTH[..1], true);
    node.see_slice("web", "IPv6", 8080, "{addresses: ['2001:db8::9'], nodeName: here}");
    assert!(talk(&node, BOTH[1], 1).is_err(), "only IPv4 loopback is listed");
}

#[test]
fn all_clients_share_one_pin_where_the_service_has_affinity() {
    let node = Node::start("affinity", &["localhost"]);
    node.pair.client.ip("addr add 192.0.2.8/24 dev veth0");
    start_endpoint(&node.pair.client, "192.0.2.9:8080");
    start_endpoint(&node.pair.client, "192.0.2.8:8080");
    node.settle();
    let (two, one) = ("{addresses: [192.0.2.8]}, {addresses: [192.0.2.9]}", "{addresses: [192.0.2.9]}");
    let heard = |times| (0..times).map(|_| talk(&node, BOTH[0], 1).unwrap()).collect::<BTreeSet<String>>();
    node.see_service("web", NODE_PORT);
    node.see_slice("web", "IPv4", 8080, two);
    wait_until_served(&node, &BOTH[..1], true);
    assert_eq!(heard(4).len(), 2);
    node.see_service("web", &format!("sessionAffinity: ClientIP, {NODE_PORT}"));
    wait(LIMIT, "affinity", || heard(6).len() == 1);
    let pinned = heard(20);
    assert_eq!(pinned.len(), 1);
    // The endpoint goes: everybody moves to the other.
    let rest = if pinned.iter().any(|text| text.starts_with("192.0.2.9")) { "{addresses: [192.0.2.8]}" } else { one };
    node.see_slice("web", "IPv4", 8080, rest);
    wait(LIMIT, "the other endpoint", || heard(1) != pinned);
}

#[test]
fn an_endpoint_that_does_not_answer_is_passed_over_and_without_any_the_client_is_reset() {
    let node = Node::start("refused", &["localhost"]);
    start_endpoint(&node.pair.client, "192.0.2.9:8080");
    node.settle();
    node.see_service("web", NODE_PORT);
    node.see_slice("web", "IPv4", 8080, "{addresses: [192.0.2.9]}, {addresses: [192.0.2.11]}");
    wait_until_served(&node, &BOTH[..1], true);
    for _ in 0..6 {
        assert_eq!(talk(&node, BOTH[0], 1).unwrap(), "192.0.2.9:8080 heard 1 bytes");
    }
    node.see_slice("web", "IPv4", 8080, "{addresses: [192.0.2.11]}");
    wait_until_served(&node, &BOTH[..1], false);
    assert_eq!(talk(&node, BOTH[0], 1).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn udp_is_not_served_and_a_port_of_another_program_is_told() {
    let node = Node::start("others", &["localhost"]);
    start_endpoint(&node.pair.client, "192.0.2.9:8080");
    let squatter = inside(&node.pair.node, || TcpListener::bind(BOTH[0]).unwrap());
    node.settle();
    node.see_service("web", NODE_PORT);
    node.see_slice("web", "IPv4", 8080, "{addresses: [192.0.2.9]}");
    node.wait_for_problem(Some("web"), "FailedToListenOnLocalhost");
    drop(squatter);
    wait_until_served(&node, &BOTH[..1], true);
    node.wait_for_no_problem();
    // The port is free for UDP: nobody forwards it.
    inside(&node.pair.node, || UdpSocket::bind(BOTH[0]).unwrap());
}

#[test]
fn connections_outlive_their_node_port_and_too_many_wait() {
    let node = Node::start("outlive", &["localhost"]);
    start_endpoint(&node.pair.client, "192.0.2.9:8080");
    node.settle();
    node.see_service("web", NODE_PORT);
    node.see_slice("web", "IPv4", 8080, "{addresses: [192.0.2.9]}");
    wait_until_served(&node, &BOTH[..1], true);
    let most = steelyard::runtime::listeners::MOST_CONNECTIONS;
    let mut held: Vec<TcpStream> =
        inside(&node.pair.node, || (0..most).map(|_| TcpStream::connect(BOTH[0]).unwrap()).collect());
    let established = || {
        let output = node.pair.client.run("ss -Htn state established sport = :8080");
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    wait(LIMIT, "all of them at the endpoint", || established() == most);
    let mut waiting = inside(&node.pair.node, || TcpStream::connect(BOTH[0]).unwrap());
    waiting.write_all(b"?").unwrap();
    waiting.shutdown(Shutdown::Write).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(waiting.read(&mut [0; 64]).is_err(), "served beyond the limit");
    // One ends, and the one that waits is served.
    drop(held.pop());
    waiting.set_read_timeout(Some(LIMIT)).unwrap();
    let mut text = String::new();
    waiting.read_to_string(&mut text).unwrap();
    assert_eq!(text, "192.0.2.9:8080 heard 1 bytes");

    node.forget_service("web");
    wait_until_served(&node, &BOTH[..1], false);
    let mut survivor = held.pop().unwrap();
    survivor.write_all(b"still here").unwrap();
    survivor.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    survivor.read_to_string(&mut text).unwrap();
    assert_eq!(text, "192.0.2.9:8080 heard 10 bytes");
}
