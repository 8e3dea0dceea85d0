//! Flows against views that the ledger made of real objects.

use std::time::Duration;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde_json::json;
use tokio::time::Instant;

use super::ledger::{Ledger, Turn};
use super::*;
use crate::datapath::desired::Desired;
use crate::datapath::index::Index;
use crate::datapath::settings::Settings;
use crate::model::endpoints::EndpointSlice;
use crate::model::node::Node;
use crate::model::service::Service;
use crate::names::ServiceKey;

const GRACE: Duration = Duration::from_secs(10);

/// A node whose cluster has one Service, `dns`: port 53 of both protocols, NodePort 30053.
struct Cluster {
    index: Index,
    desired: Desired,
    ledger: Ledger,
    start: Instant,
}

impl Cluster {
    fn new() -> Self {
        let mut index = Index::default();
        let node: core::Node = serde_json::from_value(json!({
            "metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        }))
        .unwrap();
        index.apply_node(Node::try_from(&node).unwrap());
        index.set_local_addresses(["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap()).into());
        index.set_service_cidrs(["10.96.0.0/16".parse().unwrap()]);
        let ledger = Ledger::new(Some(GRACE));
        let mut cluster = Self { index, desired: Desired::default(), ledger, start: Instant::now() };
        cluster.service("10.96.0.10");
        cluster
    }

    fn service(&mut self, address: &str) {
        let object: core::Service = serde_json::from_value(json!({
            "metadata": {"name": "dns", "namespace": "ns"},
            "spec": {"clusterIP": address, "type": "NodePort", "ports": [
                {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": 30053},
                {"name": "tcp", "port": 53, "protocol": "TCP", "nodePort": 30053},
            ]},
        }))
        .unwrap();
        self.index.apply_service(Service::try_from(&object).unwrap());
    }

    fn slice(&mut self, of: &str, endpoints: &[(&str, bool)]) {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(address, serving)| json!({"addresses": [address], "conditions": {"ready": false, "serving": serving}}))
            .collect();
        let object: discovery::EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": of, "namespace": "ns", "labels": {"kubernetes.io/service-name": of}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "udp", "port": 5353, "protocol": "UDP"}, {"name": "tcp", "port": 5353, "protocol": "TCP"}],
        }))
        .unwrap();
        self.index.apply_slice(EndpointSlice::try_from(&object).unwrap());
    }

    /// A turn, as the datapath does it, some seconds after the start.
    fn turn(&mut self, seconds: u64, is_whole: bool) -> View {
        let changes = if is_whole { self.index.everything() } else { self.index.take_changes() };
        let before = self.desired.entries().clone();
        let update = self.desired.update(&self.index, &Settings::default(), &changes);
        let now_there = |key: &FrontendKey| self.desired.owner(key).is_some();
        let removed = update
            .entries
            .iter()
            .filter_map(|key| Some((key, before.get(key)?)))
            .flat_map(|(key, entry)| {
                entry.frontends.keys().map(|frontend| FrontendKey {
                    family: key.family,
                    protocol: key.port.protocol,
                    frontend: *frontend,
                })
            })
            .filter(|key| !now_there(key))
            .collect();
        let now = self.start + Duration::from_secs(seconds);
        self.ledger.see_left(self.index.take_left(), now);
        let turn = Turn { services: changes.services, removed, is_whole };
        self.ledger.turn(turn, &self.index, &self.desired, now)
    }
}

fn flow(protocol: Protocol, destination: &str, reply_source: &str) -> Flow {
    let (destination, reply_source) = (destination.parse().unwrap(), reply_source.parse().unwrap());
    Flow { protocol, destination, reply_source, is_answered: true }
}

fn udp(destination: &str, reply_source: &str) -> Flow {
    flow(Protocol::Udp, destination, reply_source)
}

fn tcp(destination: &str, reply_source: &str) -> Flow {
    flow(Protocol::Tcp, destination, reply_source)
}

const A: &str = "10.244.0.1";
const B: &str = "10.244.0.2";

#[test]
fn a_udp_flow_stays_with_whoever_serves_at_the_same_port() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[(A, true), (B, false)]);
    let view = cluster.turn(0, false);
    assert!(!view.is_stale(&udp("10.96.0.10:53", "10.244.0.1:5353")));
    assert!(view.is_stale(&udp("10.96.0.10:53", "10.244.0.1:5354")), "the target port is another one now");
    assert!(view.is_stale(&udp("10.96.0.10:53", "10.244.0.2:5353")), "it serves no more");
    assert!(view.is_stale(&udp("10.96.0.10:53", "10.96.0.10:53")), "it began before the Service");
    assert!(!view.is_stale(&udp("10.96.0.10:54", "10.244.0.2:5353")), "a port that is none of ours");
    assert!(!view.is_stale(&tcp("10.96.0.10:53", "10.244.0.2:5353")));
    assert!(!view.is_stale(&flow(Protocol::Sctp, "10.96.0.10:53", "10.244.0.2:5353")));
}

#[test]
fn node_ports_count_at_every_local_address_but_untranslated_flows_only_where_they_answer() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[(A, true)]);
    let view = cluster.turn(0, false);
    assert!(view.is_stale(&udp("192.0.2.2:30053", "10.244.0.2:5353")), "it answered there before");
    assert!(!view.is_stale(&udp("192.0.2.2:30053", "192.0.2.2:30053")), "a program of the node's own");
    assert!(view.is_stale(&udp("192.0.2.1:30053", "192.0.2.1:30053")));
    assert!(!view.is_stale(&udp("192.0.2.9:30053", "192.0.2.9:30053")), "not this node");
}

#[test]
fn a_service_without_an_endpoint_keeps_no_flow() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[]);
    assert!(cluster.turn(0, false).is_stale(&udp("10.96.0.10:53", "10.244.0.1:5353")));
}

#[test]
fn frontends_that_go_take_their_translated_flows_along() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[(A, true)]);
    cluster.turn(0, false);
    cluster.service("10.96.0.11");
    let view = cluster.turn(1, false);
    assert!(view.is_stale(&udp("10.96.0.10:53", "10.244.0.1:5353")));
    assert!(!view.is_stale(&udp("10.96.0.10:53", "10.96.0.10:53")));
    assert!(!view.is_stale(&udp("10.96.0.11:53", "10.244.0.1:5353")));
    cluster.index.remove_service(&ServiceKey::new("ns", "dns"));
    let view = cluster.turn(2, false);
    assert!(view.is_stale(&udp("10.96.0.11:53", "10.244.0.1:5353")));
    assert!(view.is_stale(&udp("192.0.2.1:30053", "10.244.0.1:5353")));
    assert!(!view.is_stale(&udp("192.0.2.1:30053", "192.0.2.1:30053")));
}

#[test]
fn a_whole_view_knows_what_went_while_nobody_looked() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[(A, true)]);
    let view = cluster.turn(0, true);
    assert!(view.is_stale(&udp("10.96.7.7:53", "10.244.0.9:53")), "a cluster IP that no Service has");
    assert!(!view.is_stale(&udp("10.96.7.7:53", "10.96.7.7:53")));
    assert!(!view.is_stale(&udp("10.96.0.10:99", "10.244.0.9:53")), "another port of a Service");
    assert!(!view.is_stale(&udp("203.0.113.1:53", "10.244.0.9:53")), "somebody else's translation");
}

#[test]
fn a_turn_that_touches_no_udp_port_looks_for_nothing() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[(A, true)]);
    cluster.turn(0, false);
    cluster.slice("other", &[(B, true)]);
    assert!(cluster.turn(1, false).is_empty());
}

#[test]
fn tcp_flows_go_with_an_endpoint_that_stays_away() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[(A, true), (B, true)]);
    cluster.turn(0, false);
    cluster.slice("dns", &[(A, true)]);
    let stale = tcp("10.96.0.10:53", "10.244.0.2:5353");
    assert!(!cluster.turn(1, false).is_stale(&stale));
    assert_eq!(cluster.ledger.due(), Some(cluster.start + Duration::from_secs(11)));
    assert!(!cluster.turn(10, false).is_stale(&stale), "the grace is not over");
    let view = cluster.turn(11, false);
    assert!(view.is_stale(&stale));
    assert!(view.is_stale(&tcp("192.0.2.1:30053", "10.244.0.2:5353")));
    assert!(!view.is_stale(&tcp("10.96.0.10:53", "10.244.0.1:5353")));
    assert_eq!(cluster.ledger.due(), None);
}

#[test]
fn tcp_flows_stay_with_an_endpoint_that_is_in_any_slice() {
    let mut cluster = Cluster::new();
    let flow = tcp("10.96.0.10:53", "10.244.0.2:5353");
    cluster.slice("dns", &[(A, true), (B, true)]);
    cluster.turn(0, false);
    cluster.slice("dns", &[(A, true), (B, false)]);
    cluster.turn(1, false);
    assert_eq!(cluster.ledger.due(), None, "unready is not gone");
    cluster.slice("dns", &[(A, true)]);
    cluster.turn(2, false);
    cluster.slice("dns", &[(A, true), (B, true)]);
    assert!(!cluster.turn(12, false).is_stale(&flow), "it came back");
    cluster.slice("dns", &[(A, true)]);
    cluster.slice("other", &[(B, true)]);
    cluster.turn(20, false);
    assert!(!cluster.turn(30, false).is_stale(&flow), "another Service has it");
}

#[test]
fn tcp_flows_to_endpoints_that_went_before_our_time_are_found_after_a_grace() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[(A, true), (B, true)]);
    cluster.turn(0, true);
    cluster.slice("dns", &[(A, true)]);
    cluster.turn(5, false);
    let view = cluster.turn(10, false);
    assert!(view.is_stale(&tcp("10.96.0.10:53", "10.244.0.9:5353")));
    assert!(!view.is_stale(&tcp("10.96.0.10:53", "10.244.0.1:5353")));
    assert!(!view.is_stale(&tcp("10.96.0.10:53", "10.244.0.2:5353")), "it has 5 s left");
    assert!(!view.is_stale(&tcp("10.96.7.7:53", "10.244.0.9:5353")), "no frontend of ours");
}

#[test]
fn whole_turns_one_after_another_put_nothing_off() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[(A, true)]);
    let stale = tcp("10.96.0.10:53", "10.244.0.9:5353");
    let found: Vec<u64> = (0..40).step_by(4).filter(|second| cluster.turn(*second, true).is_stale(&stale)).collect();
    assert_eq!(found, [12, 28], "10 s after the first whole turn, and after the next one behind that");
}

#[test]
fn an_endpoint_that_leaves_in_a_turn_that_fails_is_not_forgotten() {
    let mut cluster = Cluster::new();
    cluster.slice("dns", &[(A, true), (B, true)]);
    cluster.turn(0, false);
    cluster.slice("dns", &[(A, true)]);
    cluster.ledger.see_left(cluster.index.take_left(), cluster.start + Duration::from_secs(1));
    // The kernel took nothing, and the ledger was told nothing.
    let stale = tcp("10.96.0.10:53", "10.244.0.2:5353");
    assert!(!cluster.turn(2, true).is_stale(&stale));
    assert!(cluster.turn(11, false).is_stale(&stale));
}

#[test]
fn tcp_flows_that_began_before_there_were_rules_go_unless_somebody_answered() {
    let mut cluster = Cluster::new();
    cluster.ledger = Ledger::new(None);
    cluster.slice("dns", &[(A, true)]);
    let view = cluster.turn(0, true);
    for to in ["10.96.0.10:53", "192.0.2.1:30053"] {
        let unanswered = Flow { is_answered: false, ..tcp(to, to) };
        assert!(view.is_stale(&unanswered), "{to}");
        assert!(!view.is_stale(&tcp(to, to)), "somebody answers at {to}");
        let translated = Flow { is_answered: false, ..tcp(to, "10.244.0.1:5353") };
        assert!(!view.is_stale(&translated), "{to} went to an endpoint, which is slow");
    }
    let elsewhere = Flow { is_answered: false, ..tcp("192.0.2.2:30053", "192.0.2.2:30053") };
    assert!(!view.is_stale(&elsewhere), "no NodePort answers there");
    assert!(view.fates.values().all(Fate::may_meet_late_packets), "a SYN may still be on its way");
}

#[test]
fn without_a_grace_tcp_is_left_alone() {
    let mut cluster = Cluster::new();
    cluster.ledger = Ledger::new(None);
    cluster.slice("dns", &[(A, true), (B, true)]);
    cluster.turn(0, true);
    cluster.slice("dns", &[(A, true)]);
    cluster.turn(1, false);
    assert_eq!(cluster.ledger.due(), None);
    assert!(!cluster.turn(100, false).is_stale(&tcp("10.96.0.10:53", "10.244.0.2:5353")));
}
