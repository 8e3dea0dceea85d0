//! Tests of which Services have a health check, and of what it says.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::*;
use crate::model::service::Service;

fn service(spec: &str) -> ForwardedService {
    let yaml = format!("metadata: {{namespace: ns, name: svc}}\nspec: {{{spec}}}");
    Service::try_from(&serde_saphyr::from_str::<core::Service>(&yaml).unwrap()).unwrap().into()
}

fn slice(family: &str, endpoints: &str) -> EndpointSlice {
    let yaml = format!(
        "metadata: {{namespace: ns, name: x-{family}, labels: {{kubernetes.io/service-name: svc}}}}\n\
         addressType: {family}\nports: [{{name: a, port: 80}}, {{name: b, port: 81}}, {{name: foreign, port: 82}}]\n\
         endpoints: [{endpoints}]"
    );
    EndpointSlice::try_from(&serde_saphyr::from_str::<discovery::EndpointSlice>(&yaml).unwrap()).unwrap()
}

fn check(service: &ForwardedService, slices: &[EndpointSlice]) -> Option<Check> {
    check_of(service, slices.iter(), &NodeName::new("here"))
}

const LOCAL: &str = "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 32000, \
                     ports: [{name: a, port: 80}, {name: b, port: 81}]";

#[test]
fn only_load_balancers_with_policy_local_have_one() {
    let with = |from, to| check(&service(&format!("clusterIP: 172.30.0.1, {}", LOCAL.replace(from, to))), &[]);
    assert_eq!(with("", "").map(|check| check.port.get()), Some(32000));
    assert_eq!(with("LoadBalancer", "NodePort"), None);
    assert_eq!(with("Policy: Local", "Policy: Cluster"), None);
    assert_eq!(with("healthCheckNodePort: 32000, ", ""), None);
    assert_eq!(check(&service(&format!("clusterIP: None, {LOCAL}")), &[]), None);
}

#[test]
fn addresses_count_once_and_only_ready_ones_of_this_node() {
    let single = service(&format!("clusterIP: 172.30.0.1, {LOCAL}"));
    let slices = [slice(
        "IPv4",
        "{addresses: [10.0.0.1], nodeName: here}, {addresses: [10.0.0.2], nodeName: here}, \
         {addresses: [10.0.0.3], nodeName: there}, {addresses: [10.0.0.4]}, \
         {addresses: [10.0.0.5], nodeName: here, conditions: {ready: false, serving: true, terminating: true}}, \
         {addresses: [10.0.0.6], nodeName: here, conditions: {ready: false}}",
    )];
    let endpoints = check(&single, &slices).unwrap().endpoints;
    assert_eq!(endpoints, LocalEndpoints { v4: Some(2), v6: None });
    assert_eq!((endpoints.seen_by(Family::V4), endpoints.seen_by(Family::V6)), (2, 2));
}

#[test]
fn each_family_of_a_dual_stack_service_is_told_its_own() {
    let dual = service(&format!("clusterIPs: [172.30.0.1, 'fd00::1'], {LOCAL}"));
    let slices = [
        slice("IPv4", "{addresses: [10.0.0.1], nodeName: here}"),
        slice("IPv6", "{addresses: ['fd00::9'], nodeName: there}"),
    ];
    let endpoints = check(&dual, &slices).unwrap().endpoints;
    assert_eq!((endpoints.seen_by(Family::V4), endpoints.seen_by(Family::V6)), (1, 0));
}

#[test]
fn no_endpoint_and_a_datapath_behind_are_unwelcome() {
    let key = ServiceKey::new("ns", "svc");
    for (endpoints, is_healthy, status) in [(1, true, 200), (0, true, 503), (1, false, 503), (0, false, 503)] {
        let answer = answer(&key, endpoints, is_healthy);
        assert_eq!(answer.status, status);
        assert!(answer.headers.contains(&(WEIGHT, endpoints.to_string())));
    }
}
