//! `healthCheckNodePort`.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use steelyard::datapath::watch::Event;
use steelyard::runtime::limits::raise_open_files;
use steelyard::runtime::watch::Event as Seen;

use crate::namespace::wait;
use crate::node::{LIMIT, Node, get, inside, service};

const BOTH: [&str; 2] = ["192.0.2.11:32000", "[2001:db8::11]:32000"];

fn local(port: u16) -> String {
    format!(
        "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: {port}, clusterIP: 172.30.0.1, \
         ports: [{{port: 80}}]"
    )
}

fn cluster() -> String {
    "type: LoadBalancer, clusterIP: 172.30.0.1, ports: [{port: 80}]".to_owned()
}

/// Waits until each address answers a neighbour with a status, or none at all.
fn wait_for(node: &Node, addresses: &[&str], status: Option<u16>) -> Duration {
    wait(LIMIT, &format!("{status:?} at {addresses:?}"), || {
        addresses.iter().all(|at| get(&node.pair.client, at, "/").ok().map(|answer| answer.status) == status)
    })
}

#[test]
fn a_service_of_one_family_is_answered_for_by_both_as_its_endpoints_come_and_go() {
    let node = Node::start("ports", &[]);
    node.settle();
    node.see_service("web", &local(32000));
    wait_for(&node, &BOTH, Some(503));
    let ready = "{addresses: [10.0.0.1], nodeName: here}, {addresses: [10.0.0.2], nodeName: there}";
    node.see_slice("web", "IPv4", 8080, ready);
    wait_for(&node, &BOTH, Some(200));
    for at in BOTH {
        let answer = get(&node.pair.client, at, "/any/path?at=all").unwrap();
        for header in
            ["x-load-balancing-endpoint-weight: 1", "content-type: application/json", "x-content-type-options: nosniff"]
        {
            assert!(answer.head.lines().any(|line| line == header), "no {header} in {}", answer.head);
        }
        let expected = json!({
            "service": {"namespace": "ns", "name": "web"}, "localEndpoints": 1, "serviceProxyHealthy": true,
        });
        assert_eq!(serde_json::from_str::<Value>(&answer.body).unwrap(), expected);
    }
    // Still used by the datapath, but no place for new traffic.
    let dying = "{addresses: [10.0.0.1], nodeName: here, conditions: {ready: false, serving: true, terminating: true}}";
    node.see_slice("web", "IPv4", 8080, dying);
    wait_for(&node, &BOTH, Some(503));
}

#[test]
fn a_port_is_free_at_once_when_the_policy_changes_and_taken_back_when_it_returns() {
    let node = Node::start("policy", &[]);
    node.settle();
    node.see_service("web", &local(32000));
    wait_for(&node, &BOTH, Some(503));
    node.see_service("web", &cluster());
    wait_for(&node, &BOTH, None);
    let squatter = inside(&node.pair.node, || TcpListener::bind(BOTH[0]).unwrap());

    node.see_service("web", &local(32000));
    wait_for(&node, &BOTH[1..], Some(503));
    let problem = node.wait_for_problem(Some("web"), "FailedToStartServiceHealthcheck");
    assert!(problem.contains(BOTH[0]) && problem.contains("in use"), "{problem}");
    drop(squatter);
    wait_for(&node, &BOTH, Some(503));
    node.wait_for_no_problem();

    node.see_service("web", &local(32001));
    wait_for(&node, &["192.0.2.11:32001", "[2001:db8::11]:32001"], Some(503));
    wait_for(&node, &BOTH, None);
    node.forget_service("web");
    wait_for(&node, &["192.0.2.11:32001", "[2001:db8::11]:32001"], None);
}

#[test]
fn a_port_passes_from_one_service_to_another() {
    let node = Node::start("passes", &[]);
    node.settle();
    node.see_service("a", &local(32000));
    node.see_service("b", &local(32001).replace("30.0.1", "30.0.2"));
    wait_for(&node, &BOTH, Some(503));
    node.see_service("a", &local(32001));
    node.see_service("b", &local(32000).replace("30.0.1", "30.0.2"));
    for (port, name) in [(32000, "b"), (32001, "a")] {
        wait(LIMIT, &format!("{name} at {port}"), || {
            let answer = get(&node.pair.client, &format!("192.0.2.11:{port}"), "/");
            answer.is_ok_and(|answer| answer.body.contains(&format!("\"name\":\"{name}\"")))
        });
    }
    node.wait_for_no_problem();
}

#[test]
fn addresses_that_come_later_answer_too() {
    let node = Node::start("later", &["198.51.100.0/24", "primary"]);
    node.settle();
    node.see_service("web", &local(32000));
    wait_for(&node, &BOTH, Some(503));
    node.pair.node.ip("addr add 198.51.100.1/24 dev veth0");
    node.pair.client.ip("addr add 198.51.100.2/24 dev veth0");
    wait_for(&node, &["198.51.100.1:32000"], None);
    node.see_addresses(&["127.0.0.1", "::1", "192.0.2.11", "2001:db8::11", "198.51.100.1"]);
    wait_for(&node, &["198.51.100.1:32000", BOTH[0], BOTH[1]], Some(503));
}

#[test]
fn everywhere_means_addresses_of_both_families_that_nobody_told_of() {
    let node = Node::start("all", &["all"]);
    node.settle();
    node.see_service("web", &local(32000));
    wait_for(&node, &BOTH, Some(503));
    node.pair.node.ip("addr add 198.51.100.1/24 dev veth0");
    node.pair.client.ip("addr add 198.51.100.2/24 dev veth0");
    wait_for(&node, &["198.51.100.1:32000"], Some(503));
}

#[test]
fn of_a_thousand_services_a_change_of_one_costs_one() {
    const MANY: u16 = 1000;
    raise_open_files();
    let node = Node::start("many", &[]);
    node.settle();
    let named = |number: u16| {
        let spec =
            local(20000 + number).replace("172.30.0.1", &format!("172.30.{}.{}", number / 250, number % 250 + 1));
        service(&format!("s{number}"), &spec)
    };
    let start = Instant::now();
    node.see(Event::Service(Seen::Replaced((0..MANY).map(named).collect())));
    let last = [format!("192.0.2.11:{}", 20000 + MANY - 1), format!("[2001:db8::11]:{}", 20000 + MANY - 1)];
    wait_for(&node, &[last[0].as_str(), last[1].as_str()], Some(503));
    let all = start.elapsed();
    node.see_slice("s7", "IPv4", 8080, "{addresses: [10.0.0.1], nodeName: here}");
    let one = wait_for(&node, &["192.0.2.11:20007", "[2001:db8::11]:20007"], Some(200));
    node.see_service("s8", &cluster().replace("30.0.1", "30.0.9"));
    let closed = wait_for(&node, &["192.0.2.11:20008", "[2001:db8::11]:20008"], None);
    // What it costs here, for whoever reads the log; the limits are those of a machine that does ten other things.
    let _told = std::io::Write::write_all(
        &mut std::io::stderr().lock(),
        format!("{MANY} Services in {all:?}, one more endpoint in {one:?}, one Service less in {closed:?}\n")
            .as_bytes(),
    );
    assert!(all < LIMIT && one < Duration::from_millis(500) && closed < Duration::from_millis(500));
    assert!(node.problems().is_empty(), "{:?}", node.problems());
}
