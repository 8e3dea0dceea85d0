//! Load-balancer addresses as a client on the wire meets them, beside the ports that Services have: who pings is answered,
//! who dials another port is told so, what was released is silent, and errors about a translated flow find their way.
//!
//! Real packets through a node in namespaces of its own; as root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test program of its own, not covered by the exceptions for test functions"
)]

#[path = "../stage/namespace.rs"]
mod namespace;
mod scene;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::scene::{PORT, SERVED, Scene};

/// Longer than any answer takes, and short enough to wait for one that does not come.
const SILENCE: Duration = Duration::from_millis(300);
/// How long what must come may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What becomes of a TCP connection attempt.
fn dial(address: &str, port: u16, patience: Duration) -> Result<(), io::ErrorKind> {
    let address: IpAddr = address.parse().unwrap();
    TcpStream::connect_timeout(&SocketAddr::new(address, port), patience).map(drop).map_err(|error| error.kind())
}

/// What becomes of a datagram.
fn ask(address: &str, port: u16) -> Result<(), io::ErrorKind> {
    let address: IpAddr = address.parse().unwrap();
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.connect((address, port)).unwrap();
    socket.send(b"?").map_err(|error| error.kind())?;
    socket.recv(&mut [0; 8]).map(drop).map_err(|error| error.kind())
}

#[test]
fn echo_requests_are_answered_in_the_name_of_the_address() {
    let scene = Scene::new("echo");
    scene.program("Cluster", true);
    for address in SERVED {
        for (who, place) in [("client", &scene.client), ("pod", &scene.pod), ("node", &scene.node)] {
            let answer = scene::ping(place, address).unwrap_or_else(|error| panic!("from the {who}: {error}"));
            assert!(answer.contains("ttl=64"), "from the {who}: {answer}");
        }
    }
    assert_eq!(scene.sent_back(), 0);
}

#[test]
fn echo_requests_go_nowhere_where_they_are_not_answered() {
    let scene = Scene::new("noecho");
    scene.program("Cluster", false);
    for address in SERVED {
        for place in [&scene.client, &scene.pod, &scene.node] {
            assert!(scene::is_silent(place, address), "{address}");
        }
    }
    assert_eq!(scene.sent_back(), 0, "a packet that comes back to where it came from goes in a circle");
}

#[test]
fn ports_that_no_service_has_are_rejected() {
    let scene = Scene::new("ports");
    scene.program("Cluster", true);
    for address in SERVED {
        for place in [&scene.client, &scene.pod, &scene.node] {
            // An error that comes before the call is through is not heard, the next one is: after a second.
            let outcome = place.run(|| dial(address, PORT + 1, PATIENCE));
            assert_eq!(outcome, Err(io::ErrorKind::ConnectionRefused), "{address} from {}", place.name());
            // What the node sends itself is refused at once, and its sender learns it by another error.
            let refused = [Err(io::ErrorKind::ConnectionRefused), Err(io::ErrorKind::PermissionDenied)];
            assert!(refused.contains(&place.run(|| ask(address, PORT))), "{address}");
        }
        // IP in IP, of which a Service cannot have any.
        assert!(scene::send_protocol(&scene.client, address, 4).is_ok());
    }
    assert_eq!(scene.sent_back(), 0);
}

#[test]
fn a_node_that_has_the_address_itself_answers_for_it() {
    let scene = Scene::new("own");
    scene.program("Cluster", false);
    for address in SERVED {
        scene
            .node
            .ip(&format!("addr add {address} dev lo{}\n", if address.contains(':') { " nodad" } else { "" }))
            .unwrap();
        let address_and_port = SocketAddr::new(address.parse().unwrap(), PORT + 1);
        let _listener = scene.node.run(|| TcpListener::bind(address_and_port)).unwrap();
        assert_eq!(scene.client.run(|| dial(address, PORT + 1, PATIENCE)), Ok(()), "{address}");
        scene::ping(&scene.client, address).unwrap();
    }
}

#[test]
fn what_was_released_is_dropped_for_a_while() {
    let scene = Scene::new("released");
    scene.program("Cluster", true);
    scene.program_nothing();
    let check = |when: &str| {
        for address in SERVED {
            assert_eq!(
                scene.client.run(|| dial(address, PORT, SILENCE)),
                Err(io::ErrorKind::TimedOut),
                "{address} {when}"
            );
            assert!(scene::is_silent(&scene.client, address), "{address} {when}");
        }
        assert_eq!(scene.sent_back(), 0, "{when}");
        let listing = scene.node.run(|| namespace::run_program("nft", &["list", "ruleset"], "")).unwrap();
        assert_eq!(listing.matches("expires").count(), SERVED.len(), "{when}: {listing}");
        let loads = scene.client.run(|| namespace::run_program("nft", &["--check", "-f", "-"], &listing));
        assert!(loads.is_ok(), "{when}: {loads:?}");
    };
    check("by the agent that served it");
    // An agent that comes later finds it and leaves it.
    scene.program_nothing();
    check("after a restart");
    scene.program("Cluster", true);
    let _listeners = scene.listen();
    for address in SERVED {
        assert_eq!(scene.client.run(|| dial(address, PORT, PATIENCE)), Ok(()), "{address} is served again");
        scene::ping(&scene.client, address).unwrap();
    }
    let other = Scene::new("went");
    other.program("Cluster", true);
    other.program_without_service_by_another_agent();
    for address in SERVED {
        assert_eq!(
            other.client.run(|| dial(address, PORT, SILENCE)),
            Err(io::ErrorKind::TimedOut),
            "{address} went unseen"
        );
    }
}

#[test]
fn what_was_released_is_let_through_once_another_has_it() {
    let scene = Scene::new("another");
    scene.program("Cluster", true);
    scene.program_nothing();
    let sent_back = |when: &str| {
        let before = scene.sent_back();
        for address in SERVED {
            assert_eq!(
                scene.client.run(|| dial(address, PORT, SILENCE)),
                Err(io::ErrorKind::TimedOut),
                "{address} {when}"
            );
        }
        scene.sent_back() - before
    };
    assert_eq!(sent_back("released"), 0);
    // To where routes lead.
    scene.program_for_another_proxy();
    assert!(sent_back("another's") >= SERVED.len() as u64);
    // Dropped anew, for the whole time, when it goes again after it was ours again.
    scene.program("Cluster", true);
    scene.program_nothing();
    assert_eq!(sent_back("released again"), 0);
}

/// Sends as much as needs large packets, and waits until all of it has arrived.
fn transfer(mut from: TcpStream, mut to: TcpStream) -> io::Result<usize> {
    const LENGTH: usize = 300_000;
    from.set_write_timeout(Some(PATIENCE))?;
    to.set_read_timeout(Some(PATIENCE))?;
    let sender = std::thread::spawn(move || from.write_all(&[7; LENGTH]).map(|()| from));
    let mut received = 0;
    let mut part = vec![0; 65_536];
    while received < LENGTH {
        match to.read(&mut part)? {
            0 => break,
            count => received += count,
        }
    }
    sender.join().unwrap()?;
    assert_eq!(received, LENGTH);
    Ok(received)
}

#[test]
fn errors_about_packets_too_big_reach_who_sent_them() {
    for policy in ["Cluster", "Local"] {
        let scene = Scene::new(&format!("mtu{policy}"));
        scene.program(policy, true);
        let listeners = scene.listen();
        // Narrow in the middle, whoever looks: the ends do not learn of it when they connect.
        scene.make_narrow();
        for (address, listener) in SERVED.iter().zip(&listeners) {
            let target = SocketAddr::new(address.parse().unwrap(), PORT);
            let connect = || {
                let client = scene.remote.run(|| TcpStream::connect_timeout(&target, PATIENCE)).unwrap();
                (client, listener.accept().unwrap().0)
            };
            // Both now: who has learnt of the path tells the other when they connect, and nothing too big is sent.
            let (out, back) = (connect(), connect());
            transfer(out.1, out.0).unwrap_or_else(|error| panic!("{policy}: {address} to its client: {error}"));
            transfer(back.0, back.1).unwrap_or_else(|error| panic!("{policy}: a client to {address}: {error}"));
        }
        assert!(scene.has_learnt_narrow_path(&scene.pod), "no error of {policy} came to the endpoint");
        assert!(scene.has_learnt_narrow_path(&scene.remote), "no error of {policy} came to the client");
    }
}
