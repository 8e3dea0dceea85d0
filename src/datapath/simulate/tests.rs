//! The reasons that a trace gives; the verdicts are held to the fact tables in `tests/cases_simulate`.

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};

use super::*;
use crate::datapath::index::Index;
use crate::datapath::settings::Settings;
use crate::model::service::Service;

/// One Service, two endpoints, of which the first is here; no endpoint counts for policy `Local` where it is elsewhere.
fn desired(service: &str, local_endpoint: &str) -> Desired {
    let mut index = Index::default();
    let metadata = "metadata: {namespace: ns, name: web, labels: {kubernetes.io/service-name: web}}";
    let service = format!("{metadata}\n{service}");
    index.apply_service(Service::try_from(&serde_saphyr::from_str::<core::Service>(&service).unwrap()).unwrap());
    let slice = format!(
        "{metadata}\naddressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints:\n\
         - {{addresses: [10.0.0.1], nodeName: {local_endpoint}}}\n- {{addresses: [10.0.1.1], nodeName: other}}"
    );
    index.apply_slice((&serde_saphyr::from_str::<discovery::EndpointSlice>(&slice).unwrap()).try_into().unwrap());
    let node = "metadata: {name: n}\nspec: {podCIDRs: [10.0.0.0/24]}\n\
                status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}";
    index.apply_node((&serde_saphyr::from_str::<core::Node>(node).unwrap()).try_into().unwrap());
    index.apply_peer("other".into(), vec!["192.0.2.3".parse().unwrap()]);
    index.set_service_cidrs(["172.30.0.0/16".parse().unwrap()]);
    Desired::from_index(&index, &Settings::default())
}

fn trace(desired: &Desired, (source, destination, port): (&str, &str, u16)) -> (Verdict, Vec<String>) {
    let local_addresses: BTreeSet<IpAddr> = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap()).into();
    let released = BTreeSet::from(["198.51.100.9".parse().unwrap()]);
    let packet = Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        port: port.try_into().unwrap(),
        protocol: Protocol::Tcp,
    };
    let trace = simulate(Place { released: &released, ..Place::new(desired, &local_addresses) }, packet);
    (trace.verdict, trace.steps.iter().map(ToString::to_string).collect())
}

const CLUSTER_IP: &str = "spec: {clusterIP: 172.30.0.1, ports: [{name: http, port: 80}]}";
const LOCAL: &str = "spec: {type: LoadBalancer, clusterIP: 172.30.0.1, externalTrafficPolicy: Local, \
                     ports: [{name: http, port: 80, nodePort: 3001}]}\n\
                     status: {loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: 192.0.2.3}]}}";

#[test]
fn a_pod_that_may_meet_itself_is_told_so() {
    let (verdict, steps) = trace(&desired(CLUSTER_IP, "n"), ("10.0.0.1", "172.30.0.1", 80));
    let Verdict::Dnat { masquerade, masquerade_when, .. } = verdict else { panic!("{verdict:?}") };
    assert!(!masquerade);
    assert_eq!(masquerade_when, BTreeSet::from(["10.0.0.1:80".parse().unwrap()]));
    assert_eq!(
        steps,
        [
            "172.30.0.1:80/TCP is service ns/web:http/TCP, internalTrafficPolicy Cluster",
            "one of 2 endpoints of policy Cluster",
            "not masqueraded, the endpoint sees the client: the client is a pod (10.0.0.0/24)",
            "masqueraded if sent to 10.0.0.1:80, which is the client itself",
        ]
    );
}

#[test]
fn external_client_of_a_local_policy_without_local_endpoint_is_dropped() {
    let (verdict, steps) = trace(&desired(LOCAL, "elsewhere"), ("203.0.113.1", "198.51.100.1", 80));
    assert_eq!(verdict, Verdict::Drop);
    assert_eq!(steps.last().map(String::as_str), Some("policy Local and no endpoint on this node"));
}

#[test]
fn a_node_port_at_an_address_where_none_answers_is_named() {
    let (verdict, steps) = trace(&desired(LOCAL, "n"), ("203.0.113.1", "192.0.2.2", 3001));
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
    let desired = desired(CLUSTER_IP, "n");
    let (verdict, steps) = trace(&desired, ("10.0.0.2", "172.30.0.1", 81));
    assert_eq!(
        (verdict, steps.as_slice()),
        (Verdict::Reject, ["the service at 172.30.0.1 has no port 81/TCP".to_owned()].as_slice())
    );
    let (verdict, steps) = trace(&desired, ("10.0.0.2", "172.30.9.9", 80));
    assert_eq!(
        (verdict, steps.as_slice()),
        (Verdict::Drop, ["no service has 172.30.9.9 of 172.30.0.0/16".to_owned()].as_slice())
    );
}

#[test]
fn ports_of_a_load_balancer_address_that_no_service_has_are_rejected() {
    let desired = desired(LOCAL, "n");
    let (verdict, steps) = trace(&desired, ("203.0.113.1", "198.51.100.1", 81));
    assert_eq!(verdict, Verdict::Reject);
    assert_eq!(steps, ["the service at 198.51.100.1 has no port 81/TCP"]);
    let (verdict, _) = trace(&desired, ("203.0.113.1", "192.0.2.3", 22));
    assert_eq!(verdict, Verdict::Passthrough, "a node that lends its address to a Service keeps its other ports");
}

#[test]
fn an_address_just_released_is_dropped() {
    let (verdict, steps) = trace(&desired(LOCAL, "n"), ("203.0.113.1", "198.51.100.9", 80));
    assert_eq!(verdict, Verdict::Drop);
    assert_eq!(steps, ["198.51.100.9 was a load-balancer address until less than a minute ago"]);
}

#[test]
fn a_released_address_that_another_serves_now_is_let_through() {
    const OTHER: &str = "spec: {type: LoadBalancer, clusterIP: 172.30.0.1, ports: [{name: http, port: 80}]}\n\
                         status: {loadBalancer: {ingress: [{ip: 198.51.100.9, ipMode: Proxy}]}}";
    let (verdict, _) = trace(&desired(OTHER, "n"), ("203.0.113.1", "198.51.100.9", 80));
    assert_eq!(verdict, Verdict::Passthrough);
}

#[test]
fn a_known_client_goes_back_as_long_as_its_endpoint_may_be_used() {
    const STICKY: &str = "spec: {clusterIP: 172.30.0.1, sessionAffinity: ClientIP, ports: [{name: http, port: 80}]}";
    let [one, two] = ["10.0.0.1:80", "10.0.1.1:80"].map(|text| text.parse::<SocketAddr>().unwrap());
    let source = "10.0.0.9".parse().unwrap();
    let packet = Packet {
        source,
        destination: "172.30.0.1".parse().unwrap(),
        port: 80.try_into().unwrap(),
        protocol: Protocol::Tcp,
    };
    let follow = |service: &str, remembered: Option<SocketAddr>| {
        let desired = desired(service, "n");
        let mut memory = Memory::default();
        if let Some(endpoint) = remembered {
            let key = desired.entries().keys().next().unwrap();
            memory.remember(key, TrafficPolicy::Cluster, source, endpoint);
        }
        let nobody = BTreeSet::new();
        let trace = simulate(Place { memory: Some(&memory), ..Place::new(&desired, &nobody) }, packet);
        let Verdict::Dnat { endpoints, .. } = trace.verdict else { panic!("{trace:?}") };
        (endpoints, trace.steps.iter().any(|step| step.to_string() == "10.0.0.9 went to 10.0.1.1:80 last"))
    };
    assert_eq!(follow(STICKY, None), ([one, two].into(), false));
    assert_eq!(follow(STICKY, Some(two)), ([two].into(), true));
    assert_eq!(follow(STICKY, Some("10.0.9.9:80".parse().unwrap())), ([one, two].into(), false));
    assert_eq!(follow(CLUSTER_IP, Some(two)), ([one, two].into(), false));
}
