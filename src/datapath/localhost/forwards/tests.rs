//! Tests of who is forwarded on localhost, and whereto.

use std::num::NonZeroU16;

use super::*;
use crate::model::flat::{FlatMap, FlatSet};
use crate::names::{PortName, ServiceKey, ServicePortKey};

fn key(protocol: Protocol, family: Family) -> EntryKey {
    let port = ServicePortKey { service: ServiceKey::new("ns", "svc"), port: PortName::new("p"), protocol };
    EntryKey { port, family }
}

fn endpoints(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn entry(policy: TrafficPolicy, cluster: Target, local: Target) -> ForwardingEntry {
    let node_port = Frontend::NodePort(NonZeroU16::new(30080).unwrap());
    let cluster_ip = Frontend::Address("172.30.0.1:80".parse().unwrap());
    ForwardingEntry {
        frontends: FlatMap::from([
            (cluster_ip, Treatment::Internal(TrafficPolicy::Cluster)),
            (node_port, Treatment::External { policy, is_filtered: false }),
        ]),
        cluster,
        local,
        affinity: None,
        source_ranges: Vec::new(),
        local_addresses: FlatSet::new(),
    }
}

fn some(texts: &[&str]) -> Target {
    Target::Endpoints(endpoints(texts).into_iter().collect())
}

fn both() -> Loopbacks {
    ["127.0.0.1", "::1"].map(|text| text.parse().unwrap()).into()
}

#[test]
fn each_policy_has_its_endpoints_and_without_any_nobody_listens() {
    let tcp = key(Protocol::Tcp, Family::V4);
    let (all, here) = (some(&["10.0.0.1:80", "10.0.0.2:80"]), some(&["10.0.0.2:80"]));
    let served = |policy, cluster: &Target, local: &Target| {
        forward_of(&tcp, &entry(policy, cluster.clone(), local.clone()), &both()).map(|forward| forward.endpoints.len())
    };
    assert_eq!(served(TrafficPolicy::Cluster, &all, &here), Some(2));
    assert_eq!(served(TrafficPolicy::Local, &all, &here), Some(1));
    assert_eq!(served(TrafficPolicy::Local, &all, &Target::Drop), None);
    assert_eq!(served(TrafficPolicy::Cluster, &Target::Reject, &Target::Reject), None);
}

#[test]
fn only_tcp_and_only_where_loopback_is_listed() {
    let entry = entry(TrafficPolicy::Cluster, some(&["10.0.0.1:80"]), Target::Reject);
    let both = both();
    let v4 = Loopbacks::from(["127.0.0.1".parse().unwrap()]);
    let at =
        |protocol, family, loopbacks| forward_of(&key(protocol, family), &entry, loopbacks).map(|it| it.at.to_string());
    assert_eq!(at(Protocol::Tcp, Family::V4, &v4).as_deref(), Some("127.0.0.1:30080"));
    assert_eq!(at(Protocol::Tcp, Family::V6, &both).as_deref(), Some("[::1]:30080"));
    assert_eq!(at(Protocol::Tcp, Family::V6, &v4), None);
    assert_eq!(at(Protocol::Udp, Family::V4, &v4), None);
    assert_eq!(at(Protocol::Sctp, Family::V4, &v4), None);
    assert_eq!(at(Protocol::Tcp, Family::V4, &Loopbacks::new()), None);
}

fn choice(texts: &[&str], affinity: Option<Duration>) -> Choice {
    Choice::new(forward(texts, affinity), 0)
}

fn forward(texts: &[&str], affinity: Option<Duration>) -> Forward {
    Forward { at: "127.0.0.1:30080".parse().unwrap(), endpoints: endpoints(texts), affinity }
}

const THREE: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];

#[test]
fn every_endpoint_has_its_turn_and_the_others_are_tried_after_it() {
    let mut choice = choice(&THREE, None);
    let now = Instant::now();
    let firsts: Vec<SocketAddr> = (0..6).map(|_| choice.candidates(now)[0]).collect();
    assert_eq!(firsts, endpoints(&[THREE, THREE].concat()));
    assert_eq!(choice.candidates(now), endpoints(&THREE));
    assert_eq!(choice.candidates(now), endpoints(&[THREE[1], THREE[2], THREE[0]]));
}

#[test]
fn with_affinity_all_clients_share_one_endpoint_while_they_keep_coming() {
    let timeout = Duration::from_secs(10);
    let mut choice = choice(&THREE, Some(timeout));
    let start = Instant::now();
    let pinned = choice.candidates(start)[0];
    choice.keep(pinned, start);
    assert_eq!(choice.candidates(start + timeout / 2)[0], pinned);
    choice.keep(pinned, start + timeout / 2);
    assert_eq!(choice.candidates(start + timeout)[0], pinned, "each new connection refreshes the pin");
    let later: BTreeSet<SocketAddr> = (0..3).map(|_| choice.candidates(start + timeout * 3)[0]).collect();
    assert_eq!(later.len(), 3, "nobody came for too long");
}

#[test]
fn a_pin_ends_with_its_endpoint_and_with_affinity() {
    let timeout = Some(Duration::from_secs(10));
    let now = Instant::now();
    let mut choice = choice(&THREE, timeout);
    choice.keep(endpoints(&THREE)[0], now);
    choice.replace(forward(&THREE[1..], timeout));
    assert!(!choice.candidates(now).contains(&endpoints(&THREE)[0]));
    choice.keep(endpoints(&THREE)[1], now);
    choice.replace(forward(&THREE, None));
    let firsts: BTreeSet<SocketAddr> = (0..3).map(|_| choice.candidates(now)[0]).collect();
    assert_eq!(firsts.len(), 3);
}

#[test]
fn a_client_is_not_kept_waiting_for_every_endpoint_of_many() {
    let many: Vec<String> = (1..100).map(|number| format!("10.0.0.{number}:80")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(choice(&many, None).candidates(Instant::now()).len(), MOST_TRIES);
}
