//! `steelyard trace` as its users run it: what it prints, its exit codes, and that its verdicts are those of the fact tables.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test program of its own, not covered by the exceptions for test functions"
)]

#[path = "../flows/flows.rs"]
mod flows;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::flows::expect::Expect;
use crate::flows::form::Scenario;
use crate::flows::objects::Objects;
use crate::flows::{CaseFile, in_both_families, title_of};

const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/trace/cluster.yaml");

fn steelyard(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_steelyard"))
        .arg("trace")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What is printed, with the exit code before it.
fn trace(arguments: &str) -> String {
    let arguments: Vec<&str> = ["-f", CLUSTER].into_iter().chain(arguments.split(' ')).collect();
    let output = steelyard(&arguments, "");
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    format!("exit code {}\n{out}{err}", output.status.code().unwrap())
}

macro_rules! golden {
    ($($name:ident: $arguments:expr;)*) => {
        $(
            #[test]
            fn $name() {
                insta::assert_snapshot!(stringify!($name), trace($arguments));
            }
        )*
    };
}

golden! {
    client_of_policy_local_at_the_node_that_announces: "--from 203.0.113.7 --to 192.0.2.100:80";
    client_outside_the_source_ranges: "--from 198.51.100.7 --to 192.0.2.100:80";
    no_endpoint_on_this_node: "--from 203.0.113.7 --to 192.0.2.100:80 --node node3";
    pod_takes_the_short_circuit: "--from 10.244.3.9 --to 192.0.2.12:30080";
    pod_that_is_an_endpoint_itself: "--from 10.244.1.5 --to 10.96.0.10:80";
    zone_hints_leave_endpoints_out: "--from 10.244.2.77 --to 10.96.0.12:53 --protocol udp";
    six: "--from 2001:db8:7::7 --to [2001:db8::100]:80 --node node1";
    unlisted_port_of_a_served_address: "--from 203.0.113.7 --to 192.0.2.100:443";
    other_protocol: "--from 10.244.1.9 --to 10.96.0.12:53";
    nobodys_cluster_ip: "--from 10.244.1.9 --to 10.96.7.7:80";
    proxy_mode: "--from 203.0.113.7 --to 192.0.2.200:80 --node node1";
    another_proxys_service: "--from 203.0.113.7 --to 192.0.2.201:80 --node node1";
    node_port_at_another_address: "--from 203.0.113.7 --to 192.0.2.12:30080 --node-port-address 192.0.2.99";
    an_endpoint_dialled_directly: "--from 10.244.1.9 --to 10.244.2.5:8080";
    a_service_on_all_nodes: "--from 203.0.113.7 --to service/shop/web:http --all-nodes";
    json: "--from 203.0.113.7 --to 192.0.2.100:80 -o json";
    nobody_knows_where: "--from 203.0.113.7 --to 10.96.0.12:80";
    unknown_node: "--from 203.0.113.7 --to 192.0.2.100:80 --node node9";
    two_families: "--from 203.0.113.7 --to [2001:db8::100]:80";
    no_port: "--from 203.0.113.7 --to 192.0.2.100";
    alias: "--from 203.0.113.7 --to service/shop/alias";
    no_such_service: "--from 203.0.113.7 --to service/shop/nothing";
    no_such_file: "-f /nowhere/at/all.yaml --from 203.0.113.7 --to 192.0.2.100:80";
}

#[test]
fn a_wrong_command_line_has_the_exit_code_of_all_such() {
    assert_eq!(steelyard(&["--from", "nobody", "--to", "192.0.2.1:80"], "").status.code(), Some(2));
}

#[test]
fn a_file_that_is_no_yaml_is_named_with_its_line() {
    let output =
        steelyard(&["-f", "-", "--from", "192.0.2.1", "--to", "192.0.2.2:80"], "kind: Node\n---\na: [\nb: }\n");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.starts_with("steelyard: standard input, line "), "{error}");
}

#[test]
fn the_settings_of_the_agents_hold_where_none_are_given() {
    let agents = json!({
        "kind": "DaemonSet",
        "metadata": { "name": "steelyard-node", "labels": {
            "app.kubernetes.io/name": "steelyard", "app.kubernetes.io/component": "node",
        } },
        "spec": { "selector": {}, "template": { "spec": { "containers": [
            { "name": "node", "args": ["node", "--speaker=true", "--masquerade-all", "--unknown=1"] },
        ] } } },
    });
    let outcome = |more: &[&str]| {
        let arguments = ["-f", CLUSTER, "-f", "-", "--from", "10.244.1.77", "--to", "10.96.0.12:80"];
        let output = steelyard(&[&arguments[..], more].concat(), &agents.to_string());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(outcome(&[]).contains("everything to cluster IPs is masqueraded here"));
    assert!(outcome(&["--cluster-cidr", "10.244.0.0/16"]).contains("the client is a pod (10.244.0.0/16)"));
}

#[test]
fn a_node_that_does_not_forward_is_told_apart() {
    let announcement = |mode: &str| json!({ "kind": "NodeAnnouncement", "metadata": { "name": "node1" }, "status": { "datapath": mode } });
    let note = |mode: &str| {
        let arguments = ["-f", CLUSTER, "-f", "-", "--from", "10.244.1.77", "--to", "10.96.0.12:80"];
        let output = steelyard(&arguments, &announcement(mode).to_string());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap().contains("the agent of node1 does not forward (datapath Off)")
    };
    assert!(note("Off"));
    assert!(!note("On"));
}

/// Every flow of the fact tables, with the objects in a file as a user would have them.
#[test]
fn the_verdicts_are_those_of_the_fact_tables() {
    let file = CaseFile::built_in();
    let (mut count, mut wrong) = (0, Vec::new());
    for case in &file.scenarios {
        for (suffix, twin) in in_both_families(case) {
            let scenario = Scenario::read(&twin.unwrap()).unwrap();
            for (name, result) in check(&scenario) {
                count += 1;
                wrong.extend(result.err().map(|error| format!("{}{suffix}: {name}: {error}", title_of(case))));
            }
        }
    }
    assert!(count > 400, "{count} flows only");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

fn check(scenario: &Scenario) -> Vec<(String, Result<(), String>)> {
    let objects = Objects::of(scenario).unwrap();
    let mut items = vec![with_kind("Node", &objects.node)];
    items.extend(objects.services.iter().map(|service| with_kind("Service", service)));
    items.extend(objects.slices.iter().map(|slice| with_kind("EndpointSlice", slice)));
    let cidrs = scenario.node.service_cidrs.clone().unwrap_or_default();
    items.push(json!({ "kind": "ServiceCIDR", "metadata": { "name": "all" }, "spec": { "cidrs": cidrs } }));
    let input = json!({ "kind": "List", "items": items }).to_string();
    let node = &scenario.node;
    let mut common: Vec<String> = vec!["-f=-".into(), "-o=json".into(), format!("--node={}", node.name)];
    let detector = node.local_detector.as_ref();
    let cidrs = detector.and_then(|detector| detector.cidrs.as_ref()).into_iter().flatten();
    common.extend(cidrs.map(|cidr| format!("--cluster-cidr={cidr}")));
    common.extend(node.other_ips.iter().flatten().map(|address| format!("--local-address={address}")));
    common.extend(node.nodeport_addresses.iter().flatten().map(|address| format!("--node-port-address={address}")));
    if node.masquerade_all == Some(true) {
        common.push("--masquerade-all".into());
    }
    let one = |flow: &flows::form::Flow| {
        let packet = &flow.packet;
        let to = std::net::SocketAddr::new(packet.destination, packet.port.get());
        let mut arguments = common.clone();
        arguments.extend([format!("--from={}", packet.source), format!("--to={to}")]);
        arguments.push(format!("--protocol={}", packet.protocol));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = steelyard(&arguments, &input);
        let report: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stderr)))?;
        let traced = &report["traces"][0];
        let (code, outcome) = (output.status.code(), traced["outcome"].as_str());
        let used: Vec<&Value> =
            traced["endpoints"].as_array().unwrap().iter().filter(|endpoint| endpoint["isUsed"] == true).collect();
        let is_right = match &flow.expect {
            Expect::Dnat { endpoints, masqueraded } => {
                (code, outcome) == (Some(0), Some("forwarded"))
                    && used.len() == endpoints.len()
                    && used.iter().all(|endpoint| {
                        let address = endpoint["address"].as_str().unwrap().parse().unwrap();
                        endpoints.contains(&address)
                            && masqueraded.contains(&address) == (endpoint["isMasqueraded"] == true)
                    })
            }
            Expect::Drop => (code, outcome) == (Some(3), Some("dropped")),
            Expect::Reject => (code, outcome) == (Some(3), Some("rejected")),
            Expect::Passthrough => (code, outcome) == (Some(4), Some("notServed")),
        };
        if is_right { Ok(()) } else { Err(format!("expected {}, got {code:?} {traced}", flow.expect)) }
    };
    scenario.flows.iter().map(|(name, flow)| (name.to_string(), one(flow.as_ref().unwrap()))).collect()
}

fn with_kind(kind: &str, object: &impl serde::Serialize) -> Value {
    let mut object = serde_json::to_value(object).unwrap();
    object["kind"] = kind.into();
    object
}
