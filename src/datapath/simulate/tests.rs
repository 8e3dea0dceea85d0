//! The reasons that a trace gives; the verdicts are held to the fact tables in `tests/cases_simulate`.

use super::*;
use crate::datapath::entry::NodePorts;
use crate::names::{PortName, ServiceKey, ServicePortKey};

fn trace(treatment: Treatment, frontend: Frontend, packet: (&str, &str, u16)) -> (Verdict, Vec<String>) {
    let port =
        ServicePortKey { service: ServiceKey::new("ns", "web"), port: PortName::new("http"), protocol: Protocol::Tcp };
    let entry = ForwardingEntry {
        frontends: BTreeMap::from([(frontend, treatment)]),
        cluster: Target::Endpoints(["10.0.0.1:80", "10.0.1.1:80"].map(|text| text.parse().unwrap()).into()),
        local: Target::Drop,
        affinity: None,
        source_ranges: vec!["203.0.113.0/24".parse().unwrap()],
        local_addresses: BTreeSet::from(["10.0.0.1".parse().unwrap()]),
    };
    let entries = BTreeMap::from([(EntryKey { port, family: Family::V4 }, entry)]);
    let local_addresses: BTreeSet<IpAddr> = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap()).into();
    let node = NodeForwarding {
        pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()],
        node_ports: NodePorts {
            v4: NodePortAddresses::These(BTreeSet::from(["192.0.2.1".parse().unwrap()])),
            ..NodePorts::default()
        },
        service_cidrs: vec!["172.30.0.0/16".parse().unwrap()],
        cluster_ips: BTreeSet::from(["172.30.0.1".parse().unwrap()]),
        ..NodeForwarding::default()
    };
    let (source, destination, port) = packet;
    let packet = Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        port: port.try_into().unwrap(),
        protocol: Protocol::Tcp,
    };
    let trace = simulate(&entries, &node, &local_addresses, packet);
    (trace.verdict, trace.steps.iter().map(ToString::to_string).collect())
}

const LOCAL: Treatment = Treatment::External { policy: TrafficPolicy::Local, is_filtered: false };

fn address(text: &str) -> Frontend {
    Frontend::Address(text.parse().unwrap())
}

#[test]
fn a_pod_that_may_meet_itself_is_told_so() {
    let cluster_ip = address("172.30.0.1:80");
    let (verdict, steps) =
        trace(Treatment::Internal(TrafficPolicy::Cluster), cluster_ip, ("10.0.0.1", "172.30.0.1", 80));
    let Verdict::Dnat { masquerade, masquerade_when, .. } = verdict else { panic!("{verdict:?}") };
    assert!(!masquerade);
    assert_eq!(masquerade_when, BTreeSet::from(["10.0.0.1:80".parse().unwrap()]));
    assert_eq!(
        steps,
        [
            "172.30.0.1:80/TCP is service ns/web:http/TCP, internalTrafficPolicy Cluster",
            "one of 2 endpoints of policy Cluster",
            "masqueraded if sent to 10.0.0.1:80, which is the client itself",
        ]
    );
}

#[test]
fn external_client_of_a_local_policy_without_local_endpoint_is_dropped() {
    let (verdict, steps) = trace(LOCAL, address("198.51.100.1:80"), ("203.0.113.1", "198.51.100.1", 80));
    assert_eq!(verdict, Verdict::Drop);
    assert_eq!(steps.last().map(String::as_str), Some("policy Local and no endpoint on this node"));
}

#[test]
fn a_node_port_at_an_address_where_none_answers_is_named() {
    let node_port = Frontend::NodePort(3001.try_into().unwrap());
    let (verdict, steps) = trace(LOCAL, node_port, ("203.0.113.1", "192.0.2.2", 3001));
    assert_eq!(verdict, Verdict::Passthrough);
    assert_eq!(
        steps,
        [
            "NodePort 3001 of service ns/web:http/TCP does not answer at this address",
            "no service has this address and port"
        ]
    );
}

#[test]
fn cluster_ips_say_which_of_the_two_is_missing() {
    let cluster_ip = address("172.30.0.1:80");
    let internal = Treatment::Internal(TrafficPolicy::Cluster);
    let (verdict, steps) = trace(internal, cluster_ip, ("10.0.0.2", "172.30.0.1", 81));
    assert_eq!(
        (verdict, steps.as_slice()),
        (Verdict::Reject, ["the service at 172.30.0.1 has no port 81/TCP".to_owned()].as_slice())
    );
    let (verdict, steps) = trace(internal, cluster_ip, ("10.0.0.2", "172.30.9.9", 80));
    assert_eq!(
        (verdict, steps.as_slice()),
        (Verdict::Drop, ["no service has 172.30.9.9 of 172.30.0.0/16".to_owned()].as_slice())
    );
}

#[test]
fn a_known_client_goes_back_as_long_as_its_endpoint_may_be_used() {
    let key = EntryKey {
        port: ServicePortKey {
            service: ServiceKey::new("ns", "web"),
            port: PortName::new(""),
            protocol: Protocol::Tcp,
        },
        family: Family::V4,
    };
    let [one, two] = ["10.0.0.1:80", "10.0.1.1:80"].map(|text| text.parse::<SocketAddr>().unwrap());
    let mut entry = ForwardingEntry {
        frontends: BTreeMap::from([(address("172.30.0.1:80"), Treatment::Internal(TrafficPolicy::Cluster))]),
        cluster: Target::Endpoints([one, two].into()),
        local: Target::Drop,
        affinity: Some(std::time::Duration::from_secs(60)),
        source_ranges: Vec::new(),
        local_addresses: BTreeSet::new(),
    };
    let source = "10.0.0.9".parse().unwrap();
    let mut memory = Memory::default();
    memory.remember(&key, TrafficPolicy::Cluster, source, two);
    let packet = Packet {
        source,
        destination: "172.30.0.1".parse().unwrap(),
        port: 80.try_into().unwrap(),
        protocol: Protocol::Tcp,
    };
    let follow = |entry: &ForwardingEntry, memory: &Memory| {
        let entries = BTreeMap::from([(key.clone(), entry.clone())]);
        let trace = simulate_with(&entries, &NodeForwarding::default(), &BTreeSet::new(), memory, packet);
        let Verdict::Dnat { endpoints, .. } = trace.verdict else { panic!("{trace:?}") };
        (endpoints, trace.steps.iter().any(|step| step.to_string() == "10.0.0.9 went to 10.0.1.1:80 last"))
    };
    assert_eq!(follow(&entry, &Memory::default()), ([one, two].into(), false));
    assert_eq!(follow(&entry, &memory), ([two].into(), true));
    entry.cluster = Target::Endpoints([one].into());
    assert_eq!(follow(&entry, &memory), ([one].into(), false));
    entry.affinity = None;
    entry.cluster = Target::Endpoints([one, two].into());
    assert_eq!(follow(&entry, &memory), ([one, two].into(), false));
}
