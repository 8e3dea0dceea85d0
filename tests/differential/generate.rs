//! Random Services and EndpointSlices, and random changes of them, over the whole of what the API server accepts.

mod slices;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::cluster::{Key, Objects};
use crate::flows::objects::without_nulls;
use crate::rng::Rng;

/// The node's addresses: the primary one of each family, then others.
pub const NODE_ADDRESSES: [&str; 5] = ["192.168.0.2", "2001:db8::1", "192.168.1.2", "192.168.99.11", "2001:db8:1::2"];
/// Pods' prefixes.
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// Zones that nodes and hints name.
pub const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];

/// Load-balancer addresses; some are the node's.
const VIPS: [&str; 12] = [
    "203.0.113.1",
    "203.0.113.2",
    "203.0.113.3",
    "203.0.113.4",
    "192.168.1.2",
    "192.168.0.2",
    "203.0.113.5",
    "2001:db8:99::1",
    "2001:db8:99::2",
    "2001:db8:99::3",
    "2001:db8:1::2",
    "2001:db8::1",
];
/// So many more begin with these, so that some lose their last Service in a round.
const RARE_VIPS: (usize, [&str; 2]) = (40, ["203.0.113.2", "2001:db8:99::2"]);
/// External IPs; some are the node's, some are load-balancer addresses, some have a spelling of their own.
const EXTERNAL_IPS: [&str; 9] = [
    "198.51.100.1",
    "198.51.100.2",
    "198.51.100.003",
    "192.168.99.11",
    "203.0.113.1",
    "2001:db8:98::1",
    "2001:db8:98::2",
    "2001:db8:1::2",
    "2001:DB8:98:0::3",
];
const SOURCE_RANGES: [&str; 13] = [
    "172.16.5.0/24",
    " 172.16.0.0/16 ",
    "172.016.006.000/024",
    "192.168.0.0/24",
    "10.244.1.0/24",
    "10.0.0.0/8",
    "9.9.9.0/24",
    "0.0.0.0/0",
    "2001:db8:c::/64",
    "2001:db8::/64",
    "fd00:10:244::/48",
    "::/0",
    "2001:db8:9::/64",
];
/// Ports of Services; the last ones may be NodePorts too.
const PORTS: [u16; 6] = [80, 443, 53, 8443, 30_010, 30_020];
const FIRST_NODE_PORT: u16 = 30_000;
const NODE_PORTS: u16 = 120;
const NAMESPACES: [&str; 2] = ["ns1", "ns2"];

/// The present objects and what they were made of.
pub struct Generator {
    rng: Rng,
    pub objects: Objects,
    facts: BTreeMap<Key, Facts>,
    number: usize,
}

/// What of a Service outlives a change.
#[derive(Clone)]
struct Facts {
    cluster_ips: Vec<String>,
    families: Vec<&'static str>,
    /// For an alias or a headless Service, which change by being made anew.
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Usual,
    Headless,
    Alias,
}

impl Generator {
    pub fn new(rng: Rng) -> Self {
        Self { rng, objects: Objects::default(), facts: BTreeMap::new(), number: 0 }
    }

    /// Goes on from what the API server took.
    pub fn forget(&mut self, key: &Key) {
        self.objects.services.remove(key);
        self.facts.remove(key);
        self.objects.slices.remove(key);
    }

    /// Deletes some Services, changes some and adds others, so that there are about `count`.
    pub fn change(&mut self, count: usize) {
        let keys: Vec<Key> = self.facts.keys().cloned().collect();
        for key in keys {
            match self.rng.below(100) {
                0..12 => self.delete(&key),
                // Deleted and made anew, with another address perhaps.
                12..18 => {
                    self.delete(&key);
                    self.make(key);
                }
                18..42 => self.write_service(&key),
                42..68 => self.write_slices(&key),
                68..72 => {
                    self.write_service(&key);
                    self.write_slices(&key);
                }
                _ => {}
            }
        }
        let slices: Vec<Key> = self.objects.slices.keys().cloned().collect();
        for key in slices {
            let is_orphan = || !self.facts.keys().any(|service| Self::is_of(&key, service));
            if is_orphan() && self.rng.percent(40) {
                self.objects.slices.remove(&key);
            }
        }
        while self.facts.len() < count {
            self.number += 1;
            let namespace = *self.rng.pick(&NAMESPACES);
            self.make((namespace.to_owned(), format!("svc{}", self.number)));
        }
    }

    fn delete(&mut self, key: &Key) {
        self.objects.services.remove(key);
        self.facts.remove(key);
        // Sometimes the slices stay for a while.
        if self.rng.percent(80) {
            self.delete_slices(key);
        }
    }

    fn make(&mut self, key: Key) {
        self.number += 1;
        let v4 = match self.rng.percent(6) {
            true => format!("10.96.{:03}.{:03}", 1 + self.number / 200, 1 + self.number % 200),
            false => format!("10.96.{}.{}", 1 + self.number / 200, 1 + self.number % 200),
        };
        let v4 = if self.rng.percent(10) { v4.replacen("10.96.", "172.31.", 1) } else { v4 };
        let v6 = format!("fd00:{}::{:x}", if self.rng.percent(10) { 31 } else { 96 }, self.number);
        let (cluster_ips, families) = match self.rng.below(10) {
            0..4 => (vec![v4], vec!["IPv4"]),
            4..6 => (vec![v6], vec!["IPv6"]),
            6..8 => (vec![v4, v6], vec!["IPv4", "IPv6"]),
            _ => (vec![v6, v4], vec!["IPv6", "IPv4"]),
        };
        let kind = match self.rng.below(100) {
            0..4 => Kind::Headless,
            4..7 => Kind::Alias,
            _ => Kind::Usual,
        };
        self.facts.insert(key.clone(), Facts { cluster_ips, families, kind });
        self.write_service(&key);
        self.write_slices(&key);
    }

    fn write_service(&mut self, key: &Key) {
        self.objects.services.remove(key);
        let service = self.service(key);
        let service: Service = serde_json::from_value(service).expect("it is a Service");
        self.objects.services.insert(key.clone(), service);
    }

    fn service(&mut self, key: &Key) -> Value {
        let facts = self.facts[key].clone();
        let type_name = match (facts.kind, self.rng.below(10)) {
            (Kind::Alias, _) => "ExternalName",
            (Kind::Headless, _) | (Kind::Usual, 0..3) => "ClusterIP",
            (Kind::Usual, 3..5) => "NodePort",
            (Kind::Usual, _) => "LoadBalancer",
        };
        let is_exposed = matches!(type_name, "NodePort" | "LoadBalancer");
        let mut external_ips = Vec::new();
        if facts.kind == Kind::Usual && self.rng.percent(30) {
            external_ips = self.rng.some(&EXTERNAL_IPS, 2);
        }
        let mut ingress = Vec::new();
        let mut source_ranges = Vec::new();
        if type_name == "LoadBalancer" {
            ingress = self.ingress();
            if self.rng.percent(35) {
                source_ranges = self.rng.some(&SOURCE_RANGES, 3);
            }
        }
        let internal = if self.rng.percent(25) { "Local" } else { "Cluster" };
        let external = if self.rng.percent(45) { "Local" } else { "Cluster" };
        let has_external = is_exposed || !external_ips.is_empty();
        let affinity = facts.kind == Kind::Usual && self.rng.percent(15);
        let mut labels = json!({});
        if self.rng.percent(4) {
            labels["service.kubernetes.io/service-proxy-name"] = json!("another");
        }
        if self.rng.percent(3) {
            labels["service.kubernetes.io/headless"] = json!("");
        }
        let ports = self.ports(is_exposed);
        let cluster_ips = match facts.kind {
            Kind::Usual => json!(facts.cluster_ips),
            Kind::Headless => json!(["None"]),
            Kind::Alias => Value::Null,
        };
        let is_alias = facts.kind == Kind::Alias;
        without_nulls(json!({
            "metadata": { "namespace": key.0, "name": key.1, "labels": labels },
            "spec": {
                "type": type_name,
                "externalName": is_alias.then_some("example.com"),
                "clusterIP": cluster_ips.get(0),
                "clusterIPs": cluster_ips,
                "ipFamilies": (!is_alias).then_some(&facts.families),
                "ipFamilyPolicy": (!is_alias).then_some(if facts.families.len() > 1 { "RequireDualStack" } else { "SingleStack" }),
                "ports": ports,
                "externalIPs": external_ips,
                "loadBalancerSourceRanges": source_ranges,
                "allocateLoadBalancerNodePorts": (type_name == "LoadBalancer").then_some(false),
                "internalTrafficPolicy": (!is_alias).then_some(internal),
                "externalTrafficPolicy": has_external.then_some(external),
                "sessionAffinity": if affinity { "ClientIP" } else { "None" },
            },
            "status": { "loadBalancer": { "ingress": ingress } },
        }))
    }

    fn ingress(&mut self) -> Vec<Value> {
        let mut list: Vec<Value> = Vec::new();
        for address in self.rng.some(&VIPS, 3) {
            let mode = [Value::Null, json!("VIP"), json!("VIP"), json!("Proxy")];
            list.push(json!({ "ip": address, "ipMode": self.rng.pick(&mode) }));
        }
        if self.rng.percent(25) {
            let (count, beginnings) = RARE_VIPS;
            let address = format!("{}{:02}", self.rng.pick(&beginnings), self.rng.below(count) + 10);
            list.push(json!({ "ip": address, "ipMode": "VIP" }));
        }
        if self.rng.percent(10) {
            list.push(json!({ "hostname": "balancer.example.com" }));
        }
        list
    }

    /// One to three ports; often one number for several protocols.
    fn ports(&mut self, is_exposed: bool) -> Vec<Value> {
        let mut used: BTreeSet<(u16, &str)> = BTreeSet::new();
        let mut ports = Vec::new();
        let mut number = *self.rng.pick(&PORTS);
        for place in 0..1 + self.rng.below(3) {
            if self.rng.percent(50) {
                number = *self.rng.pick(&PORTS);
            }
            let protocol = *self.rng.pick(&["TCP", "TCP", "TCP", "UDP", "UDP", "SCTP"]);
            if !used.insert((number, protocol)) {
                continue;
            }
            let node_port =
                (is_exposed && self.rng.percent(85)).then(|| self.free_node_port(protocol, &ports)).flatten();
            ports.push(
                json!({ "name": format!("p{place}"), "port": number, "protocol": protocol, "nodePort": node_port }),
            );
        }
        ports
    }

    fn free_node_port(&mut self, protocol: &str, own: &[Value]) -> Option<u16> {
        let mut taken: BTreeSet<i64> = own
            .iter()
            .filter(|port| port["protocol"] == protocol)
            .filter_map(|port| port["nodePort"].as_i64())
            .collect();
        // Of Services the API server gives a number to one, for whatever protocols.
        for service in self.objects.services.values() {
            let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            taken.extend(ports.filter_map(|port| port.node_port).map(i64::from));
        }
        let tried: Vec<u16> =
            (0..20).map(|_| FIRST_NODE_PORT + self.rng.below(usize::from(NODE_PORTS)) as u16).collect();
        tried.into_iter().find(|port| !taken.contains(&i64::from(*port)))
    }
}
