//! The datapath's own `/healthz` and `/livez`.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use steelyard::datapath::health_check::freshness::LATE_AFTER;
use steelyard::datapath::watch::Event;
use steelyard::names::NodeName;
use steelyard::runtime::watch::Event as Seen;

use crate::namespace::wait;
use crate::node::{HEALTH, LIMIT, Node, get, inside};

const BOTH: [&str; 2] = [HEALTH, "[2001:db8::11]:10256"];

/// What load balancers and supervisors are told, by both families.
fn statuses(node: &Node) -> Option<(u16, u16)> {
    let mut told = BOTH.iter().map(|at| {
        let status = |path| Some(get(&node.pair.client, at, path).ok()?.status);
        Some((status("/healthz")?, status("/livez")?))
    });
    let first = told.next()??;
    told.all(|other| other == Some(first)).then_some(first)
}

fn wait_for(node: &Node, expected: (u16, u16), limit: Duration) {
    wait(limit, &format!("{expected:?} of /healthz and /livez"), || statuses(node) == Some(expected));
}

#[test]
fn a_node_is_healthy_from_its_first_turn_until_it_leaves() {
    let node = Node::start("healthz", &[]);
    wait_for(&node, (503, 200), LIMIT);
    node.settle();
    wait_for(&node, (200, 200), LIMIT);
    let healthz: Value = serde_json::from_str(&get(&node.pair.client, HEALTH, "/healthz").unwrap().body).unwrap();
    assert_eq!((&healthz["nodeEligible"], &healthz["status"]["IPv6"]["healthy"]), (&true.into(), &true.into()));
    node.see_node("taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]");
    wait_for(&node, (503, 200), LIMIT);
    node.see_node("");
    wait_for(&node, (200, 200), LIMIT);
    node.see(Event::Node(Seen::Removed(NodeName::new("here"))));
    wait_for(&node, (503, 200), LIMIT);
    assert_eq!(get(&node.pair.client, HEALTH, "/").unwrap().status, 404);
    let mode = get(&node.pair.node, "127.0.0.1:10249", "/proxyMode").unwrap();
    assert_eq!((mode.status, mode.body.as_str()), (200, "nftables"));
    assert!(node.metric("kubeproxy_proxy_healthz_total{code=\"503\"}").unwrap() >= 3.0);
    assert!(node.metric("kubeproxy_proxy_livez_total{code=\"200\"}").unwrap() >= 5.0);
}

#[test]
fn a_kernel_that_refuses_everything_makes_the_node_unhealthy_until_it_does_not() {
    let node = Node::start("refuses", &[]);
    node.settle();
    // A table that another program owns is closed to us; it goes with the program.
    let mut owner = inside(&node.pair.node, || {
        let nft = Command::new("nft").arg("--interactive").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        nft.expect("nft is missing: install nftables")
    });
    let mut input = owner.stdin.take().unwrap();
    input.write_all(b"delete table ip steelyard; add table ip steelyard { flags owner; }\n").unwrap();
    wait(LIMIT, "the foreign owner", || {
        let output = node.pair.node.run("nft list tables ip");
        let tables = String::from_utf8(output.stdout).unwrap();
        let listed = String::from_utf8(node.pair.node.run("nft list table ip steelyard").stdout).unwrap();
        tables.contains("steelyard") && listed.contains("flags owner")
    });
    node.see_service("web", "clusterIP: 172.30.0.1, ports: [{port: 80}]");
    wait(LIMIT, "a turn that failed", || {
        let failures = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"}";
        node.metric(failures).is_some_and(|failures| failures > 0.0)
    });
    assert_eq!(statuses(&node), Some((200, 200)), "one failure is no illness");
    wait_for(&node, (503, 503), LATE_AFTER + LIMIT);
    drop(input);
    owner.wait().unwrap();
    wait_for(&node, (200, 200), LIMIT);
    assert_eq!(node.metric("kubeproxy_sync_proxy_rules_service_changes_pending"), Some(0.0));
}

#[test]
fn a_port_that_a_kube_proxy_still_has_is_had_when_it_is_gone() {
    let pair = crate::namespace::Pair::new("health-squatter");
    let squatter = inside(&pair.node, || TcpListener::bind("[::]:10256").unwrap());
    let node = Node::start_on(pair, &[]);
    node.see_everything();
    node.see_service(
        "web",
        "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 32000, clusterIP: 172.30.0.1, \
         ports: [{port: 80}]",
    );
    let problem = node.wait_for_problem(None, "FailedToServeHealth");
    assert!(problem.contains("in use") && problem.contains("kube-proxy"), "{problem}");
    wait(LIMIT, "the rest of the agent", || get(&node.pair.client, "192.0.2.11:32000", "/").is_ok());
    drop(squatter);
    wait_for(&node, (200, 200), LIMIT);
    node.wait_for_no_problem();
}
