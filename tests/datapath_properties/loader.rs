//! The loader of the fact tables: what it cannot read it says, and mapping keeps what a case means.

use serde_json::{Value, json};

use crate::flows::expect::Expect;
use crate::flows::family::mapped_to_other_family;
use crate::flows::form::Scenario;
use crate::flows::world::World;
use crate::flows::{CaseFile, in_both_families};

fn scenario(change: impl FnOnce(&mut Value)) -> Result<Scenario, String> {
    let mut case = json!({
        "test": "t",
        "node": { "name": "n", "primary_ips": ["192.168.0.2"], "local_detector": { "mode": "pod-cidr", "cidrs": ["10.0.0.0/8"] } },
        "services": [{ "name": "ns/svc", "cluster_ips": ["172.30.0.1"], "ports": [{ "port": 80 }] }],
        "endpoints": [{ "service": "ns/svc", "ip": "10.0.0.1", "ports": { "": 80 } }],
        "flows": [{ "name": "f", "src": "10.0.0.2", "dst": "172.30.0.1", "port": 80, "expect": { "dnat": ["10.0.0.1:80"], "masq": false } }],
    });
    change(&mut case);
    Scenario::read(&case)
}

#[test]
fn every_built_in_scenario_can_be_read_and_mapped_there_and_back() {
    let file = CaseFile::built_in();
    assert!(file.problems.is_empty(), "{:?}", file.problems);
    for case in &file.scenarios {
        for (_, mapped) in in_both_families(case) {
            let mapped = mapped.unwrap();
            let scenario = Scenario::read(&mapped).unwrap();
            World::of(&scenario).unwrap();
            let back = mapped_to_other_family(&mapped).unwrap();
            assert_eq!(Scenario::read(&back).unwrap().flows.len(), scenario.flows.len());
        }
    }
}

#[test]
fn what_is_not_known_is_said() {
    assert!(scenario(|_| {}).unwrap().flows[0].1.is_ok());
    let error = scenario(|case| case["services"][0]["colour"] = json!("red")).unwrap_err();
    assert!(error.contains("colour"), "{error}");
    let error = scenario(|case| case["node"]["name"] = Value::Null).unwrap_err();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn a_flow_that_cannot_be_read_fails_alone() {
    for (field, value) in [
        ("dst", json!("nowhere")),
        ("port", json!(0)),
        ("proto", json!("ICMP")),
        ("expect", json!({})),
        ("expect", json!({ "drop": true, "reject": true })),
        ("expect", json!({ "dnat": ["10.0.0.1:80"] })),
        ("expect", json!({ "dnat": [], "masq": false })),
        ("expect", json!({ "dnat": ["10.0.0.1:80"], "masq_when_dnat_to": ["10.0.0.2:80"] })),
    ] {
        let read = scenario(|case| case["flows"][0][field] = value.clone()).unwrap();
        assert!(read.flows[0].1.is_err(), "{field}: {value}");
    }
}

#[test]
fn a_list_of_masqueraded_endpoints_is_taken_at_its_word() {
    let expect = json!({ "dnat": ["10.0.0.1:80", "10.0.0.2:80"], "masq": false, "masq_when_dnat_to": ["10.0.0.2:80"] });
    let read = scenario(|case| case["flows"][0]["expect"] = expect).unwrap();
    let Ok(flow) = &read.flows[0].1 else { panic!("not read") };
    let Expect::Dnat { endpoints, masqueraded } = &flow.expect else { panic!("no dnat") };
    assert_eq!((endpoints.len(), masqueraded.len()), (2, 1));
}

#[test]
fn absent_lists_are_empty_lists() {
    let read = scenario(|case| {
        case["endpoints"] = Value::Null;
        case["services"][0]["external_ips"] = Value::Null;
        case["node"]["nodeport_addresses"] = Value::Null;
    });
    assert!(read.unwrap().endpoints.is_empty());
}

#[test]
fn what_contained_an_address_contains_it_after_mapping() {
    let case = json!({
        "cidrs": ["fd00:10::/32", "fd00:10:96::/112", "::/0", "2001:db8::1/128"],
        "ips": ["fd00:10::5", "fd00:10:96::5", "2001:db8::1"],
        "endpoint": "[fd00:10:96::5]:80",
        "ip_family": "IPv6",
        "name": "fd00::1",
    });
    let mapped = mapped_to_other_family(&case).unwrap();
    let net = |index: usize| -> ipnet::IpNet { mapped["cidrs"][index].as_str().unwrap().parse().unwrap() };
    let ip = |index: usize| -> std::net::IpAddr { mapped["ips"][index].as_str().unwrap().parse().unwrap() };
    assert!(net(0).contains(&ip(0)) && net(0).contains(&ip(1)) && !net(0).contains(&ip(2)));
    assert!(!net(1).contains(&ip(0)) && net(1).contains(&ip(1)));
    assert_eq!(net(2).to_string(), "0.0.0.0/0");
    assert_eq!(net(3).addr(), ip(2));
    assert_eq!(mapped["endpoint"], format!("{}:80", ip(1)));
    assert_eq!((mapped["ip_family"].as_str(), mapped["name"].as_str()), (Some("IPv4"), Some("fd00::1")));
}

#[test]
fn bad_files_are_errors_and_not_panics() {
    assert!(CaseFile::parse("[]").is_err());
    assert!(CaseFile::parse("{").is_err());
    let file = CaseFile::parse(r#"{"schema": {"version": 2}, "scenarios": 3, "weather": []}"#).unwrap();
    assert_eq!(file.problems.len(), 3);
}
