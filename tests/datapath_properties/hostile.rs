//! Objects that no API server would let through do not bring the datapath down.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::json;
use steelyard::datapath::desired::Desired;
use steelyard::datapath::index::Index;
use steelyard::datapath::settings::Settings;
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::node::Node;
use steelyard::model::service::Service;

/// Words that mean something somewhere, numbers at the edges, and noise.
fn text() -> impl Strategy<Value = String> {
    let words = [
        "",
        "None",
        "0.0.0.0",
        "::",
        "255.255.255.255",
        "::ffff:10.0.0.1",
        "10.0.0.1",
        "fd00::1",
        "10.0.0.0/8",
        "::/0",
        "0.0.0.0/0",
        "TCP",
        "UDP",
        "Local",
        "Cluster",
        "ClientIP",
        "LoadBalancer",
        "ExternalName",
        "Proxy",
        "IPv4",
        "a",
    ];
    prop_oneof![4 => prop::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => ".{0,8}"]
}

fn number() -> impl Strategy<Value = i32> {
    prop_oneof![Just(0), Just(-1), Just(65_535), Just(65_536), Just(i32::MAX), Just(i32::MIN), 1..100_i32]
}

fn service() -> impl Strategy<Value = core::Service> {
    let meta = (option::of(text()), option::of(text()));
    let lists = [vec(text(), 0..4), vec(text(), 0..4), vec(text(), 0..4), vec(text(), 0..4), vec(text(), 0..4)];
    let ports = vec((option::of(text()), number(), option::of(text()), option::of(number())), 0..4);
    let rest = (option::of(text()), option::of(text()), option::of(text()), option::of(number()), option::of(text()));
    (meta, lists, ports, rest).prop_map(|((namespace, name), lists, ports, (kind, outer, affinity, timeout, mode))| {
        let [cluster, external, ingress, ranges, families] = lists;
        let ports: Vec<_> = ports
            .into_iter()
            .map(|(name, port, protocol, node_port)| {
                json!({ "name": name, "port": port, "protocol": protocol, "nodePort": node_port })
            })
            .collect();
        let ingress: Vec<_> = ingress.into_iter().map(|ip| json!({ "ip": ip, "ipMode": mode })).collect();
        serde_json::from_value(json!({
            "metadata": { "namespace": namespace, "name": name },
            "spec": {
                "type": kind, "clusterIPs": cluster, "externalIPs": external, "ports": ports, "ipFamilies": families,
                "externalTrafficPolicy": outer, "internalTrafficPolicy": outer, "sessionAffinity": affinity,
                "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": timeout } },
                "healthCheckNodePort": timeout, "loadBalancerSourceRanges": ranges,
            },
            "status": { "loadBalancer": { "ingress": ingress } },
        }))
        .unwrap()
    })
}

fn slice() -> impl Strategy<Value = discovery::EndpointSlice> {
    let meta = (option::of(text()), option::of(text()), option::of(text()), text());
    let endpoints = vec((vec(text(), 0..3), option::of(text()), option::of(text())), 0..4);
    let ports = option::of(vec((option::of(text()), option::of(number()), option::of(text())), 0..4));
    (meta, endpoints, ports).prop_map(|((namespace, name, service, kind), endpoints, ports)| {
        let endpoints: Vec<_> = endpoints
            .into_iter()
            .map(|(addresses, node, zone)| {
                let zones: Vec<_> = zone.into_iter().map(|zone| json!({ "name": zone })).collect();
                json!({ "addresses": addresses, "nodeName": node, "hints": { "forZones": zones } })
            })
            .collect();
        let ports = ports.map(|ports| {
            let port = |(name, port, protocol)| json!({ "name": name, "port": port, "protocol": protocol });
            ports.into_iter().map(port).collect::<Vec<_>>()
        });
        let labels = service.map_or(json!({}), |service| json!({ "kubernetes.io/service-name": service }));
        serde_json::from_value(json!({
            "metadata": { "namespace": namespace, "name": name, "labels": labels },
            "addressType": kind, "endpoints": endpoints, "ports": ports,
        }))
        .unwrap()
    })
}

proptest! {
    #[test]
    fn no_object_brings_the_datapath_down(
        services in vec(service(), 0..5),
        slices in vec(slice(), 0..5),
        addresses in vec(text(), 0..4),
        pods in vec(text(), 0..4),
    ) {
        let mut index = Index::default();
        index.replace_services(services.iter().filter_map(|object| Service::try_from(object).ok()));
        index.replace_slices(slices.iter().filter_map(|object| EndpointSlice::try_from(object).ok()));
        let addresses: Vec<_> = addresses.into_iter().map(|ip| json!({ "type": "InternalIP", "address": ip })).collect();
        let node: core::Node = serde_json::from_value(json!({
            "metadata": { "name": "n" }, "spec": { "podCIDRs": pods }, "status": { "addresses": addresses },
        })).unwrap();
        index.apply_node(Node::try_from(&node).unwrap());
        let desired = Desired::from_index(&index, &Settings::default());
        prop_assert!(desired.conflicts().all(|conflict| conflict.loser != conflict.owner));
    }
}
