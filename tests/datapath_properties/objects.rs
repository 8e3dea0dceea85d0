//! Random API objects out of a small world, so that Services meet: few names, few addresses, few ports.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::node::Node;
use steelyard::model::service::Service;

pub(crate) const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
pub(crate) const SLICES: [&str; 5] = ["s1", "s2", "s3", "s4", "s5"];
/// Cluster IPs, load-balancer addresses and a node's own: any may be wanted as anything.
pub(crate) const ADDRESSES: [&str; 6] =
    ["172.30.0.1", "172.30.0.2", "fd00:10:96::1", "192.0.2.1", "192.168.0.2", "2001:db8::2"];
pub(crate) const ENDPOINTS: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "fd00:10::1", "fd00:10::2"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const ZONES: [&str; 2] = ["z1", "z2"];
const POLICIES: [&str; 2] = ["Cluster", "Local"];

pub(crate) fn service() -> impl Strategy<Value = Service> {
    let who = (select(SERVICES.to_vec()), option::of(1..4_u8), prop::bool::weighted(0.1));
    let addresses = (
        subsequence(ADDRESSES.to_vec(), 0..=2),
        subsequence(ADDRESSES.to_vec(), 0..=2),
        vec((select(ADDRESSES.to_vec()), option::of(select(vec!["VIP", "Proxy"]))), 0..3),
    );
    let ports = vec((select(vec!["", "p"]), select(vec!["TCP", "UDP"]), 80..82_u16, option::of(3001..3003_u16)), 0..3);
    let policies = (
        select(POLICIES.to_vec()),
        select(POLICIES.to_vec()),
        option::of(1..100_i32),
        subsequence(vec!["10.0.0.0/8", "192.168.0.0/24", "fd00::/8", "nonsense"], 0..=2),
    );
    (who, addresses, ports, policies).prop_map(
        |((name, day, is_foreign), (cluster, external, ingress), ports, (internal, outer, timeout, ranges))| {
            let labels =
                if is_foreign { json!({ "service.kubernetes.io/service-proxy-name": "x" }) } else { json!({}) };
            let ports: Vec<Value> = ports
                .into_iter()
                .map(|(name, protocol, port, node_port)| {
                    json!({ "name": name, "protocol": protocol, "port": port, "nodePort": node_port })
                })
                .collect();
            let ingress: Vec<Value> =
                ingress.into_iter().map(|(ip, mode)| json!({ "ip": ip, "ipMode": mode })).collect();
            let object: core::Service = serde_json::from_value(json!({
                "metadata": {
                    "namespace": "ns", "name": name, "labels": labels,
                    "creationTimestamp": day.map(|day| format!("2026-01-0{day}T00:00:00Z")),
                },
                "spec": {
                    "clusterIPs": cluster, "externalIPs": external, "ports": ports,
                    "internalTrafficPolicy": internal, "externalTrafficPolicy": outer,
                    "sessionAffinity": timeout.map(|_| "ClientIP"),
                    "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": timeout } },
                    "loadBalancerSourceRanges": ranges,
                },
                "status": { "loadBalancer": { "ingress": ingress } },
            }))
            .unwrap();
            Service::try_from(&object).unwrap()
        },
    )
}

pub(crate) fn slice() -> impl Strategy<Value = EndpointSlice> {
    let endpoint = (
        select(ENDPOINTS.to_vec()),
        option::of(select(NODES.to_vec())),
        [option::of(any::<bool>()), option::of(any::<bool>()), option::of(any::<bool>())],
        subsequence(ZONES.to_vec(), 0..=2),
        subsequence(NODES.to_vec(), 0..=1),
    );
    let ports = btree_map(select(vec!["", "p"]), (select(vec!["TCP", "UDP"]), 8080..8082_u16), 0..3);
    let endpoints = vec(endpoint, 0..6);
    (select(SLICES.to_vec()), select(SERVICES.to_vec()), any::<bool>(), ports, endpoints).prop_map(
        |(name, service, is_v4, ports, endpoints)| {
            let ports: Vec<Value> = ports
                .into_iter()
                .map(|(name, (protocol, port))| json!({ "name": name, "protocol": protocol, "port": port }))
                .collect();
            let endpoints: Vec<Value> = endpoints
                .into_iter()
                .map(|(address, node, [ready, serving, terminating], zones, nodes)| {
                    let named = |names: Vec<&str>| -> Vec<Value> {
                        names.into_iter().map(|name| json!({ "name": name })).collect()
                    };
                    json!({
                        "addresses": [address], "nodeName": node,
                        "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
                        "hints": { "forZones": named(zones), "forNodes": named(nodes) },
                    })
                })
                .collect();
            let object: discovery::EndpointSlice = serde_json::from_value(json!({
                "metadata": { "namespace": "ns", "name": name, "labels": { "kubernetes.io/service-name": service } },
                "addressType": if is_v4 { "IPv4" } else { "IPv6" },
                "endpoints": endpoints, "ports": ports,
            }))
            .unwrap();
            EndpointSlice::try_from(&object).unwrap()
        },
    )
}

pub(crate) fn node() -> impl Strategy<Value = Node> {
    let addresses = subsequence(vec!["192.168.0.2", "192.168.1.2", "2001:db8::2"], 0..=3);
    let pods = subsequence(vec!["10.0.0.0/16", "fd00:10::/64"], 0..=2);
    (select(NODES.to_vec()), option::of(select(ZONES.to_vec())), addresses, pods).prop_map(
        |(name, zone, addresses, pods)| {
            let addresses: Vec<Value> =
                addresses.into_iter().map(|ip| json!({ "type": "InternalIP", "address": ip })).collect();
            let labels = zone.map_or(json!({}), |zone| json!({ "topology.kubernetes.io/zone": zone }));
            let object: core::Node = serde_json::from_value(json!({
                "metadata": { "name": name, "labels": labels },
                "spec": { "podCIDRs": pods },
                "status": { "addresses": addresses },
            }))
            .unwrap();
            Node::try_from(&object).unwrap()
        },
    )
}
