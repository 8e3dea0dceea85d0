//! The objects of the cluster: Services with five endpoints each, and some that get traffic.

use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use steelyard_lab::api::Api as Lab;
use steelyard_lab::wait;

use crate::etcd::Stored;
use crate::world::{ENDPOINTS, NODE_ADDRESS};

/// The node that all proxies serve.
pub const NODE: &str = "node-1";
/// Of the Services that get traffic: one for each thing that the server does.
pub const PORTS: [(&str, u16, u16); 3] = [("greet", 80, 8080), ("echo", 81, 8081), ("sink", 82, 8082)];
/// Its address inside, and outside.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 254, 1);
pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Services with session affinity: how many endpoints each has.
pub const STICKY: [u8; 3] = [1, 10, 100];
/// Those that others are programmed for: no traffic.
const PER_SERVICE: u32 = 5;
const CREATED: &str = "2026-01-01T00:00:00Z";

/// Everything, in an order in which nothing is missing to the API server's own repairs.
pub fn all(size: u32) -> Vec<Stored> {
    let mut all = vec![node()];
    let mut services = vec![traffic_service("vip", CLUSTER_IP, Some(VIP), false)];
    let mut slices = vec![traffic_slice("vip", 5)];
    for count in STICKY {
        let name = format!("sticky-{count}");
        services.push(traffic_service(&name, sticky_ip(count), None, true));
        slices.push(traffic_slice(&name, count));
    }
    for number in 0..size {
        services.push(scale_service(number));
        slices.push(scale_slice(number));
    }
    let slices = slices.into_iter().map(|object| stored("endpointslices/default", object));
    for service in services {
        all.push(address_of(&service));
        all.push(stored("services/specs/default", service));
    }
    all.extend(slices);
    all
}

/// Waits until the API server shows them.
pub fn wait_until_listed(api: &Lab, size: u32) {
    wait("the API server to know all objects", Duration::from_secs(180), || {
        let client = api.client();
        let (services, slices) = api.block_on(async move {
            // From its cache, as the proxies' lists are.
            let any = kube::api::ListParams::default().match_any();
            let services = kube::Api::<Service>::all(client.clone()).list_metadata(&any).await?.items.len();
            let slices = kube::Api::<EndpointSlice>::all(client).list_metadata(&any).await?.items.len();
            Ok::<_, kube::Error>((services, slices))
        })??;
        Ok((services.min(slices) >= size as usize).then_some(()))
    })
    .unwrap();
}

/// Where the Service with so many sticky endpoints is.
pub fn sticky_ip(count: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 253, count)
}

/// A Service that gets no traffic.
pub fn scale_service(number: u32) -> Value {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number);
    let spec = json!({
        "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
        "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080 }],
    });
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(&format!("scale-{number}"), json!({})),
        "spec": spec, "status": { "loadBalancer": {} },
    })
}

/// Its endpoints.
pub fn scale_slice(number: u32) -> Value {
    let first = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number * 8;
    let addresses = (0..PER_SERVICE).map(|endpoint| Ipv4Addr::from(first + endpoint));
    slice(&format!("scale-{number}"), addresses, &[("http", 8080)])
}

fn traffic_service(name: &str, ip: Ipv4Addr, vip: Option<Ipv4Addr>, is_sticky: bool) -> Value {
    let ports = PORTS
        .map(|(name, port, target)| json!({ "name": name, "protocol": "TCP", "port": port, "targetPort": target }));
    let mut spec = json!({
        "type": if vip.is_some() { "LoadBalancer" } else { "ClusterIP" },
        "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
        "sessionAffinity": if is_sticky { "ClientIP" } else { "None" },
        "ports": ports,
    });
    if is_sticky {
        spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 10800 } });
    }
    let mut balancer = json!({});
    if let Some(vip) = vip {
        spec["externalTrafficPolicy"] = "Cluster".into();
        spec["allocateLoadBalancerNodePorts"] = false.into();
        balancer = json!({ "ingress": [{ "ip": vip, "ipMode": "VIP" }] });
    }
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(name, json!({})),
        "spec": spec, "status": { "loadBalancer": balancer },
    })
}

fn traffic_slice(service: &str, count: u8) -> Value {
    let [a, b, c] = ENDPOINTS;
    let ports = PORTS.map(|(name, _, target)| (name, target));
    slice(service, (1..=count).map(|number| Ipv4Addr::new(a, b, c, number)), &ports)
}

fn slice(service: &str, addresses: impl Iterator<Item = Ipv4Addr>, ports: &[(&str, u16)]) -> Value {
    let endpoint = |address: Ipv4Addr| {
        json!({
            "addresses": [address], "nodeName": "node-2",
            "conditions": { "ready": true, "serving": true, "terminating": false },
        })
    };
    let port = |(name, port): &(&str, u16)| json!({ "name": name, "protocol": "TCP", "port": port });
    let labels = json!({
        "kubernetes.io/service-name": service,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata(&format!("{service}-slice"), labels),
        "addressType": "IPv4",
        "endpoints": addresses.map(endpoint).collect::<Vec<_>>(),
        "ports": ports.iter().map(port).collect::<Vec<_>>(),
    })
}

fn node() -> Stored {
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": NODE, "uid": uid(NODE), "creationTimestamp": CREATED },
        "spec": {},
        "status": { "addresses": [{ "type": "InternalIP", "address": NODE_ADDRESS }] },
    });
    Stored { key: format!("minions/{NODE}"), object }
}

/// What the API server keeps of an address that it has given out; it makes those that are missing, at its leisure.
fn address_of(service: &Value) -> Stored {
    let ip = service["spec"]["clusterIP"].as_str().unwrap();
    let labels = json!({
        "ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
    });
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": { "name": ip, "uid": uid(ip), "creationTimestamp": CREATED, "labels": labels },
        "spec": { "parentRef": {
            "group": "", "resource": "services", "namespace": "default", "name": service["metadata"]["name"],
        } },
    });
    Stored { key: format!("ipaddresses/{ip}"), object }
}

fn stored(below: &str, object: Value) -> Stored {
    Stored { key: format!("{below}/{}", object["metadata"]["name"].as_str().unwrap()), object }
}

fn metadata(name: &str, labels: Value) -> Value {
    json!({
        "name": name, "namespace": "default", "uid": uid(name), "creationTimestamp": CREATED, "labels": labels,
    })
}

/// The same for the same name.
fn uid(name: &str) -> String {
    let sum =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{:08x}-0000-4000-8000-{:012x}", sum >> 32, sum & 0xffff_ffff_ffff)
}
