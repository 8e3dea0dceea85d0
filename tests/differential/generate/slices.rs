//! Random EndpointSlices of a Service.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::{Generator, ZONES};
use crate::cluster::Key;
use crate::flows::objects::without_nulls;
use crate::proxies::NODE;

/// Endpoint addresses and where they run; each in one place, as pods are. The last are in hosts' networks.
const ENDPOINTS_V4: [(&str, Option<&str>); 12] = [
    ("10.244.1.1", Some(NODE)),
    ("10.244.1.2", Some(NODE)),
    ("10.244.1.3", Some(NODE)),
    ("10.244.1.4", Some(NODE)),
    ("10.244.2.1", Some("other-node")),
    ("10.244.2.2", Some("other-node")),
    ("10.244.2.3", Some("other-node")),
    ("10.244.3.1", Some("third-node")),
    ("10.244.3.2", Some("third-node")),
    ("10.244.4.1", None),
    ("192.168.0.2", Some(NODE)),
    ("192.168.7.7", Some("other-node")),
];
const ENDPOINTS_V6: [(&str, Option<&str>); 12] = [
    ("fd00:10:244:1::1", Some(NODE)),
    ("fd00:10:244:1::2", Some(NODE)),
    ("fd00:10:244:1::3", Some(NODE)),
    ("fd00:10:244:1::4", Some(NODE)),
    ("fd00:10:244:2::1", Some("other-node")),
    ("fd00:10:244:2::2", Some("other-node")),
    ("fd00:10:244:2::3", Some("other-node")),
    ("fd00:10:244:3::1", Some("third-node")),
    ("fd00:10:244:3::2", Some("third-node")),
    ("fd00:10:244:4::1", None),
    ("2001:db8::1", Some(NODE)),
    ("2001:db8:7::7", Some("other-node")),
];
/// The first target port; Services have none of these.
const TARGETS: usize = 9_000;
/// Slices of one family.
const MOST_SLICES: usize = 2;
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// How the hints of a Service's endpoints are.
#[derive(Clone, Copy)]
enum Hints {
    None,
    Zones,
    Nodes,
    /// Some have them, some not.
    Some,
}

impl Generator {
    fn slice_key(key: &Key, family: &str, number: usize) -> Key {
        (key.0.clone(), format!("{}-{}-{number}", key.1, family.to_ascii_lowercase()))
    }

    /// Whether a slice is one of a Service's.
    pub(super) fn is_of(slice: &Key, service: &Key) -> bool {
        let is_named = |family: &str| (0..MOST_SLICES).any(|number| Self::slice_key(service, family, number) == *slice);
        FAMILIES.into_iter().any(is_named)
    }

    pub(super) fn delete_slices(&mut self, key: &Key) {
        for family in FAMILIES {
            for number in 0..MOST_SLICES {
                self.objects.slices.remove(&Self::slice_key(key, family, number));
            }
        }
    }

    pub(super) fn write_slices(&mut self, key: &Key) {
        self.delete_slices(key);
        let hints = match self.rng.below(100) {
            0..20 => Hints::Zones,
            20..28 => Hints::Nodes,
            28..34 => Hints::Some,
            _ => Hints::None,
        };
        let are_all_leaving = self.rng.percent(10);
        let families = self.facts.get(key).map(|facts| facts.families.clone()).unwrap_or_default();
        for family in FAMILIES {
            // Slices of a family that the Service has not are nobody's.
            if !families.contains(&family) && self.rng.percent(90) {
                continue;
            }
            let mut before: Vec<Value> = Vec::new();
            for number in 0..1 + self.rng.below(MOST_SLICES) {
                let mut endpoints: Vec<Value> = Vec::new();
                let all = if family == "IPv4" { &ENDPOINTS_V4 } else { &ENDPOINTS_V6 };
                for (address, node) in self.rng.some(all, 4) {
                    let is_known = before.iter().any(|endpoint| endpoint["addresses"][0] == address);
                    if !is_known {
                        endpoints.push(self.endpoint(address, node, hints, are_all_leaving));
                    }
                }
                // One endpoint in two slices, as while it moves; sometimes they tell of it differently.
                if let Some(first) = before.first().filter(|_| self.rng.percent(15)).cloned() {
                    let again = match self.rng.percent(70) {
                        true => first,
                        false => {
                            let address = first["addresses"][0].as_str().unwrap_or_default().to_owned();
                            let node = first["nodeName"].as_str().map(str::to_owned);
                            self.endpoint(&address, node.as_deref(), hints, false)
                        }
                    };
                    endpoints.push(again);
                }
                before.extend(endpoints.iter().cloned());
                self.write_slice(key, family, number, endpoints);
            }
        }
    }

    fn write_slice(&mut self, key: &Key, family: &str, number: usize, endpoints: Vec<Value>) {
        // The Service's ports as they are now; a slice may know of one less, or of one that has another number here.
        let service_ports: Vec<(String, String)> = self
            .objects
            .services
            .get(key)
            .and_then(|service| service.spec.as_ref()?.ports.clone())
            .unwrap_or_default()
            .into_iter()
            .map(|port| (port.name.unwrap_or_default(), port.protocol.unwrap_or_default()))
            .collect();
        let mut ports = Vec::new();
        for (place, (name, protocol)) in service_ports.iter().enumerate() {
            let other = if self.rng.percent(8) { 100 } else { 0 };
            let target = (!self.rng.percent(2)).then_some(TARGETS + place * 10 + other);
            if !self.rng.percent(4) {
                ports.push(json!({ "name": name, "protocol": protocol, "port": target }));
            }
        }
        let slice_key = Self::slice_key(key, family, number);
        let mut labels = json!({ "kubernetes.io/service-name": key.1 });
        if self.rng.percent(3) {
            labels["service.kubernetes.io/headless"] = json!("");
        }
        let slice = without_nulls(json!({
            "metadata": { "namespace": key.0, "name": slice_key.1, "labels": labels },
            "addressType": family,
            "endpoints": endpoints,
            "ports": ports,
        }));
        let slice: EndpointSlice = serde_json::from_value(slice).expect("it is a slice");
        self.objects.slices.insert(slice_key, slice);
    }

    fn endpoint(&mut self, address: &str, node: Option<&str>, hints: Hints, is_leaving: bool) -> Value {
        let leaving = json!({ "ready": false, "serving": true, "terminating": true });
        let conditions = match self.rng.below(100) {
            _ if is_leaving => leaving,
            0..55 => json!({ "ready": true, "serving": true, "terminating": false }),
            55..63 => json!({}),
            63..72 => json!({ "ready": false, "serving": false, "terminating": false }),
            72..82 => leaving,
            82..87 => json!({ "ready": false, "serving": false, "terminating": true }),
            // `publishNotReadyAddresses`
            87..91 => json!({ "ready": true, "serving": true, "terminating": true }),
            91..93 => json!({ "ready": true, "serving": false, "terminating": false }),
            93..96 => json!({ "ready": false, "terminating": true }),
            _ => json!({ "ready": false }),
        };
        let wants = match hints {
            Hints::None => (false, false),
            Hints::Zones => (true, false),
            Hints::Nodes => (true, true),
            Hints::Some => (self.rng.percent(70), self.rng.percent(50)),
        };
        let zones = wants.0.then(|| json!([{ "name": self.rng.pick(&ZONES) }]));
        let nodes = wants.1.then(|| json!([{ "name": self.rng.pick(&[NODE, "other-node"]) }]));
        let hints = (zones.is_some() || nodes.is_some()).then(|| json!({ "forZones": zones, "forNodes": nodes }));
        json!({ "addresses": [address], "nodeName": node, "conditions": conditions, "hints": hints })
    }
}
