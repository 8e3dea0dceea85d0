//! Conflicts between Services, cluster IPs and what an update names, small enough to read.

use super::*;
use crate::datapath::entry::{Frontend, NodePortAddresses};
use crate::datapath::settings::NodePortSelector;
use crate::model::service::Service;
use k8s_openapi::api::core::v1 as core;

fn service(name: &str, day: u8, spec: &str) -> Service {
    let yaml = format!(
        "metadata: {{name: {name}, namespace: ns, creationTimestamp: '2026-01-0{day}T00:00:00Z'}}\n\
         spec: {{ports: [{{port: 80, nodePort: 3001}}], {spec}}}"
    );
    Service::try_from(&serde_saphyr::from_str::<core::Service>(&yaml).unwrap()).unwrap()
}

fn node(spec: &str) -> Node {
    let yaml = format!(
        "metadata: {{name: n}}\nspec: {{{spec}}}\nstatus: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}]}}"
    );
    Node::try_from(&serde_saphyr::from_str::<core::Node>(&yaml).unwrap()).unwrap()
}

fn key(name: &str) -> EntryKey {
    let port =
        ServicePortKey { service: ServiceKey::new("ns", name), port: PortName::new(""), protocol: Protocol::Tcp };
    EntryKey { port, family: Family::V4 }
}

/// An index with this node, and what follows from it.
fn start() -> (Index, Desired) {
    let mut index = Index::default();
    index.apply_node(node(""));
    (index, Desired::default())
}

fn turn(index: &mut Index, desired: &mut Desired) -> Update {
    let changes = index.take_changes();
    desired.update(index, &Settings::default(), &changes)
}

fn frontends(desired: &Desired, name: &str) -> Vec<Frontend> {
    desired.entries().get(&key(name)).map(|entry| entry.frontends.keys().copied().collect()).unwrap_or_default()
}

#[test]
fn the_older_service_has_a_contested_node_port_until_it_goes() {
    let (mut index, mut desired) = start();
    let node_port = Frontend::NodePort(3001.try_into().unwrap());
    index.apply_service(service("young", 2, "clusterIP: 172.30.0.1"));
    turn(&mut index, &mut desired);
    assert!(frontends(&desired, "young").contains(&node_port));

    index.apply_service(service("old", 1, "clusterIP: 172.30.0.2"));
    let update = turn(&mut index, &mut desired);
    assert_eq!(update.entries, BTreeSet::from([key("old"), key("young")]));
    assert!(frontends(&desired, "old").contains(&node_port) && !frontends(&desired, "young").contains(&node_port));
    let conflicts: Vec<String> = desired.conflicts().map(|conflict| conflict.to_string()).collect();
    assert_eq!(conflicts, ["NodePort 3001/TCP (IPv4) of ns/young/TCP is served by ns/old/TCP"]);

    index.remove_service(&ServiceKey::new("ns", "old"));
    turn(&mut index, &mut desired);
    assert!(frontends(&desired, "young").contains(&node_port));
    assert_eq!(desired.conflicts().count(), 0);
}

#[test]
fn an_older_external_ip_does_not_take_a_cluster_ip() {
    let (mut index, mut desired) = start();
    index.apply_service(service("thief", 1, "clusterIP: 172.30.0.1, externalIPs: [172.30.0.2]"));
    index.apply_service(service("victim", 2, "clusterIP: 172.30.0.2"));
    turn(&mut index, &mut desired);
    let contested = Frontend::Address("172.30.0.2:80".parse().unwrap());
    assert!(frontends(&desired, "victim").contains(&contested));
    assert!(!frontends(&desired, "thief").contains(&contested));
}

#[test]
fn a_service_that_turns_headless_takes_its_cluster_ip_along() {
    let (mut index, mut desired) = start();
    index.apply_service(service("a", 1, "clusterIP: 172.30.0.1"));
    index.apply_service(service("b", 1, "clusterIP: 172.30.0.2"));
    turn(&mut index, &mut desired);
    assert_eq!(desired.node().cluster_ips.len(), 2);
    index.apply_service(service("a", 1, "clusterIP: None"));
    let update = turn(&mut index, &mut desired);
    // Its NodePort goes over to the other one.
    assert_eq!(update.entries, BTreeSet::from([key("a"), key("b")]));
    assert_eq!(update.cluster_ips, BTreeSet::from(["172.30.0.1".parse().unwrap()]));
    assert_eq!(desired.node().cluster_ips, BTreeSet::from(["172.30.0.2".parse().unwrap()]));
}

#[test]
fn a_change_that_changes_nothing_is_no_update() {
    let (mut index, mut desired) = start();
    index.apply_service(service("a", 1, "clusterIP: 172.30.0.1"));
    assert!(turn(&mut index, &mut desired).is_node_changed);
    index.apply_service(Service { resource_version: "2".into(), ..service("a", 1, "clusterIP: 172.30.0.1") });
    assert!(turn(&mut index, &mut desired).is_empty());
}

#[test]
fn pod_prefixes_follow_the_node() {
    let (mut index, mut desired) = start();
    turn(&mut index, &mut desired);
    index.apply_node(node("podCIDRs: [10.0.1.0/24]"));
    assert!(turn(&mut index, &mut desired).is_node_changed);
    assert_eq!(desired.node().pod_cidrs, ["10.0.1.0/24".parse().unwrap()]);
}

#[test]
fn unreadable_source_ranges_close_the_address() {
    let spec = "type: LoadBalancer, clusterIP: 172.30.0.1, loadBalancerSourceRanges: [nonsense]";
    let mut service = service("a", 1, spec);
    service.ingress = vec![crate::model::service::Ingress { address: "192.0.2.9".parse().unwrap(), is_proxied: false }];
    let entries = entries_of(&service.into(), std::iter::empty(), &node(""));
    let entry = &entries[&key("a")];
    let treatment = *entry.frontends.get(&Frontend::Address("192.0.2.9:80".parse().unwrap())).unwrap();
    assert!(matches!(treatment, crate::datapath::entry::Treatment::External { is_filtered: true, .. }));
    assert!(entry.source_ranges.is_empty());
}

#[test]
fn a_list_of_node_port_addresses_is_resolved_family_by_family() {
    let local: BTreeSet<IpAddr> =
        ["192.0.2.1", "198.51.100.1", "127.0.0.1", "2001:db8::1"].map(|text| text.parse().unwrap()).into();
    let ports = |texts: &[&str]| {
        let node_port_addresses = texts.iter().map(|text| text.parse::<NodePortSelector>().unwrap()).collect();
        node::node_ports(&Settings { node_port_addresses, ..Settings::default() }, &node(""), &local)
    };
    let these = |texts: &[&str]| NodePortAddresses::These(texts.iter().map(|text| text.parse().unwrap()).collect());
    assert_eq!(ports(&[]).v4, these(&["192.0.2.1"]));
    assert_eq!(ports(&["primary", "198.51.100.0/24"]).v4, these(&["192.0.2.1", "198.51.100.1"]));
    assert_eq!(ports(&["127.0.0.0/8"]).v4, these(&[]));
    assert_eq!(ports(&["0.0.0.0/0"]).v4, NodePortAddresses::All);
    assert_eq!(ports(&["0.0.0.0/0"]).v6, these(&[]));
    assert_eq!((ports(&["all"]).v4, ports(&["all"]).v6), (NodePortAddresses::All, NodePortAddresses::All));
}
