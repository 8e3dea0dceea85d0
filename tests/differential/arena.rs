//! Two nodes that are equal in all but their proxy, fed by one API server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use steelyard::datapath::settings::Settings;
use steelyard::datapath::simulate::Packet;
use steelyard::model::Protocol;

use crate::cluster::{Cluster, Key, Objects};
use crate::expected::Views;
use crate::flows::expect::Expect;
use crate::proxies::{Flags, Proxy};
use crate::relay::Relay;
use crate::released;
use crate::stage::namespace::Namespace;
use crate::stage::outcome::{self, Fate};
use crate::stage::{Probe, Stage, Surroundings, nap};

/// How long a proxy may take to program everything.
const LIMIT: Duration = Duration::from_secs(60);
/// Connections after which what the kernels remember is wiped: source ports begin anew after twice as many.
const CONNECTIONS: usize = 25_000;
/// Zones that hints of the runner's own Service name; no test uses the last.
const ZONES: [&str; 4] = ["zone-a", "zone-b", "zone-c", "zone-elsewhere"];

/// What a node is and what its proxies are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub flags: Flags,
    pub node_addresses: Vec<String>,
    pub surroundings: Surroundings,
    /// Those beside the API server's own.
    pub service_cidrs: Vec<Vec<String>>,
}

/// What was seen of a flow on both nodes.
pub struct Both {
    pub ours: Vec<Fate>,
    pub theirs: Vec<Fate>,
}

/// The nodes with their proxies.
pub struct Arena {
    // Dropped first.
    agent: Proxy,
    kube_proxy: Proxy,
    _relays: [Relay; 2],
    pub ours: Stage,
    pub theirs: Stage,
    pub settings: Settings,
    pub site: Site,
    zone: Option<String>,
}

/// Programs that are started anew for each site.
pub struct Programs {
    pub kube_proxy: PathBuf,
    pub steelyard: PathBuf,
}

impl Arena {
    /// Makes both nodes and starts the proxies with what is in the API server, and waits for them.
    pub fn open(
        site: Site,
        cluster: &mut Cluster,
        control: &Arc<Namespace>,
        programs: &Programs,
    ) -> Result<Self, String> {
        cluster.set_node(&site.node_addresses, None)?;
        cluster.set_service_cidrs(&site.service_cidrs)?;
        let ours = Stage::raise("a", site.surroundings.clone())?;
        let theirs = Stage::raise("b", site.surroundings.clone())?;
        let relays = [Relay::start(ours.node(), control)?, Relay::start(theirs.node(), control)?];
        let folder: &Path = cluster.server.folder();
        let kube_proxy = Proxy::kube_proxy(theirs.node(), &programs.kube_proxy, folder, &site.flags)?;
        let agent = Proxy::steelyard(ours.node(), &programs.steelyard, folder, &site.flags)?;
        let settings = site.flags.settings()?;
        let mut arena = Self { agent, kube_proxy, _relays: relays, ours, theirs, settings, site, zone: None };
        arena.settle(cluster)?;
        // kube-proxy looks at ServiceCIDRs in a full synchronisation alone, and of the two ways to have one this is the
        // quick one: its first may have come before it knew them.
        arena.set_zone(cluster, Some(ZONES[3]))?;
        arena.settle(cluster)?;
        arena.set_zone(cluster, None)?;
        arena.settle(cluster)?;
        Ok(arena)
    }

    /// Moves the node to a zone.
    pub fn set_zone(&mut self, cluster: &Cluster, zone: Option<&str>) -> Result<(), String> {
        if self.zone.as_deref() != zone {
            cluster.set_node(&self.site.node_addresses, zone)?;
            self.zone = zone.map(str::to_owned);
        }
        Ok(())
    }

    /// Waits until both have programmed what is in the API server now; what that is, in the agent's own judgement.
    pub fn settle(&mut self, cluster: &mut Cluster) -> Result<Views, String> {
        cluster.mark()?;
        let mut expected = Views::of(&cluster.list()?, &self.settings, &self.site.surroundings.local)?;
        let packets = cluster.mark_packets();
        let wanted: Vec<Expect> =
            packets.iter().map(|packet| Expect::from(&expected.ours.trace(*packet).verdict)).collect();
        let until = Instant::now() + LIMIT;
        loop {
            let look = |stage: &Stage| -> Result<Vec<Result<Expect, String>>, String> {
                stage.forget_connections()?;
                let probe = |packet: &Packet| Probe { packet: *packet, connections: 40, is_visible: false };
                let seen = stage.observe(&packets.iter().map(probe).collect::<Vec<_>>())?;
                let fates = |(packet, seen): (&Packet, &Vec<Vec<_>>)| -> Vec<Fate> {
                    seen.iter().map(|seen| outcome::fate(packet, seen)).collect()
                };
                Ok(packets.iter().zip(&seen).map(fates).map(|fates| outcome::outcome(&fates)).collect())
            };
            let (ours, theirs) = (look(&self.ours)?, look(&self.theirs)?);
            let is_there = |outcomes: &[Result<Expect, String>]| {
                outcomes.iter().zip(&wanted).all(|(outcome, wanted)| outcome.as_ref() == Ok(wanted))
            };
            if is_there(&ours) && is_there(&theirs) {
                expected.ours.released = released::at(&self.ours)?;
                return Ok(expected);
            }
            self.agent.check().map_err(|error| format!("steelyard: {error}"))?;
            self.kube_proxy.check().map_err(|error| format!("kube-proxy: {error}"))?;
            if Instant::now() > until {
                let who = if is_there(&ours) { ("kube-proxy", &self.kube_proxy) } else { ("steelyard", &self.agent) };
                return Err(format!(
                    "{} has not programmed the last change after {} s (wanted {wanted:?}; ours {ours:?}, theirs \
                     {theirs:?}). The end of its log:\n{}",
                    who.0,
                    LIMIT.as_secs(),
                    who.1.last_lines()
                ));
            }
            nap()?;
        }
    }

    /// Sends the same packets into both nodes, while the agent's kernel drops the same addresses for having been released.
    /// Those that it let go before are taken out of what is expected.
    pub fn send(&self, expected: &mut Views, packets: &[Packet]) -> Result<Vec<Both>, String> {
        loop {
            let all = self.send_once(expected, packets)?;
            let released = released::at(&self.ours)?;
            if released == expected.ours.released {
                return Ok(all);
            }
            expected.ours.released = released;
        }
    }

    /// So many connections that every endpoint of the expected outcome is seen.
    fn send_once(&self, expected: &Views, packets: &[Packet]) -> Result<Vec<Both>, String> {
        let mut all = Vec::new();
        let mut batch: Vec<Probe> = Vec::new();
        let mut sum = 0;
        for packet in packets {
            let expect = Expect::from(&expected.ours.trace(*packet).verdict);
            let theirs = expected.of_kube_proxy(*packet);
            let connections = outcome::connections(&expect).max(outcome::connections(&theirs));
            batch.push(Probe { packet: *packet, connections, is_visible: outcome::is_visible(&expect) });
            sum += connections;
            if sum > CONNECTIONS {
                all.extend(self.send_batch(&std::mem::take(&mut batch))?);
                sum = 0;
            }
        }
        all.extend(self.send_batch(&batch)?);
        Ok(all)
    }

    fn send_batch(&self, probes: &[Probe]) -> Result<Vec<Both>, String> {
        let look = |stage: &Stage| -> Result<Vec<Vec<Fate>>, String> {
            stage.forget_connections()?;
            let seen = stage.observe(probes)?;
            let fates = |(probe, seen): (&Probe, Vec<Vec<_>>)| -> Vec<Fate> {
                seen.iter().map(|seen| outcome::fate(&probe.packet, seen)).collect()
            };
            Ok(probes.iter().zip(seen).map(fates).collect())
        };
        let (ours, theirs) = (look(&self.ours)?, look(&self.theirs)?);
        Ok(ours.into_iter().zip(theirs).map(|(ours, theirs)| Both { ours, theirs }).collect())
    }
}

/// The runner's own objects. Both watches, of Services and of slices, tell of changes in their order; so who has
/// programmed the last change of both has programmed all before.
impl Cluster {
    /// Changes the marks.
    pub fn mark(&mut self) -> Result<(), String> {
        self.marks = if self.marks >= 29_999 { 20_000 } else { self.marks.max(20_000) + 1 };
        let objects = mark_objects(self.marks)?;
        self.write_marks(objects)
    }

    /// Packets that show whether the marks are programmed.
    pub fn mark_packets(&self) -> Vec<Packet> {
        let packet = |source: &str, destination: &str, port: u16| Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            port: port.try_into().unwrap(),
            protocol: Protocol::Tcp,
        };
        vec![
            packet("198.18.0.9", "10.96.255.1", self.marks),
            packet("2001:2::9", "fd00:96::ff01", self.marks),
            packet("198.18.0.9", "10.96.255.2", 80),
        ]
    }
}

fn mark_objects(port: u16) -> Result<Objects, String> {
    let key = |name: &str| -> Key { ("default".to_owned(), name.to_owned()) };
    let service = |name: &str, cluster_ips: &[&str], port: u16| -> Result<Service, String> {
        read(json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
                "ipFamilyPolicy": if cluster_ips.len() > 1 { "RequireDualStack" } else { "SingleStack" },
                "ports": [{ "name": "mark", "port": port }],
            },
        }))
    };
    let slice =
        |name: &str, service: &str, family: &str, endpoints: Value, port: u16| -> Result<EndpointSlice, String> {
            read(json!({
                "metadata": {
                    "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": service },
                },
                "addressType": family, "endpoints": endpoints,
                "ports": [{ "name": "mark", "port": port, "protocol": "TCP" }],
            }))
        };
    let in_zones: Vec<Value> = (1..)
        .zip(ZONES)
        .map(|(number, zone)| json!({ "addresses": [format!("10.254.1.{number}")], "hints": { "forZones": [{ "name": zone }] } }))
        .collect();
    let mut objects = Objects::default();
    objects.services.insert(key("mark"), service("mark", &["10.96.255.1", "fd00:96::ff01"], port)?);
    objects.services.insert(key("zone"), service("zone", &["10.96.255.2"], 80)?);
    let v4 = slice("mark-v4", "mark", "IPv4", json!([{ "addresses": ["10.254.0.1"] }]), port)?;
    objects.slices.insert(key("mark-v4"), v4);
    let v6 = slice("mark-v6", "mark", "IPv6", json!([{ "addresses": ["2001:db8:fe::1"] }]), port)?;
    objects.slices.insert(key("mark-v6"), v6);
    objects.slices.insert(key("zone-v4"), slice("zone-v4", "zone", "IPv4", json!(in_zones), 80)?);
    Ok(objects)
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}
