//! Services as users and old API servers write them.

use super::*;

fn read(yaml: &str) -> Service {
    let object: core::Service = serde_saphyr::from_str(yaml).unwrap();
    Service::try_from(&object).unwrap()
}

#[test]
fn a_service_without_a_name_is_refused() {
    assert_eq!(Service::try_from(&core::Service::default()), Err(ServiceError::Unnamed));
}

#[test]
fn defaults_are_those_of_the_api() {
    let service = read(
        "metadata: {name: web, namespace: default}\n\
         spec: {clusterIP: 172.30.0.41, ports: [{port: 80}], sessionAffinity: ClientIP}",
    );
    assert_eq!(service.service_type, ServiceType::ClusterIp);
    assert_eq!(service.ports[0].protocol, Protocol::Tcp);
    assert_eq!((service.internal_policy, service.external_policy), (TrafficPolicy::Cluster, TrafficPolicy::Cluster));
    assert_eq!(service.affinity, Some(Duration::from_secs(10_800)));
    assert_eq!(service.families, [Family::V4]);
    assert!(service.is_proxied);
    assert!(service.ignored.is_empty());
}

#[test]
fn headless_aliased_and_foreign_services_are_not_proxied() {
    for spec in [
        "{metadata: {name: a, namespace: b}, spec: {clusterIP: None}}",
        "{metadata: {name: a, namespace: b}, spec: {type: ExternalName, externalName: c.example}}",
        "{metadata: {name: a, namespace: b, labels: {service.kubernetes.io/service-proxy-name: x}}, spec: {clusterIP: 10.0.0.1}}",
        "{metadata: {name: a, namespace: b, labels: {service.kubernetes.io/headless: ''}}, spec: {clusterIP: 10.0.0.1}}",
    ] {
        assert!(!read(spec).is_proxied, "{spec}");
    }
}

#[test]
fn one_bad_field_leaves_the_rest_in_place() {
    let service = read(
        "metadata: {name: web, namespace: default}\n\
         spec:\n  type: LoadBalancer\n  clusterIPs: [172.30.0.041, 'fd00::1']\n  externalIPs: [nonsense, 192.0.2.7]\n  \
         loadBalancerSourceRanges: [' 10.0.0.0/8 ', bad]\n  ports: [{port: 0}, {port: 80, nodePort: 30080}]\n\
         status: {loadBalancer: {ingress: [{ip: 1.2.3.4, ipMode: Proxy}, {ip: 1.2.3.5}, {hostname: x.example}]}}",
    );
    assert_eq!(service.cluster_ips, ["172.30.0.41", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    assert_eq!(service.external_ips, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    assert_eq!(service.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(service.ports.len(), 1);
    assert_eq!(service.virtual_addresses().collect::<Vec<_>>(), ["1.2.3.5".parse::<IpAddr>().unwrap()]);
    let fields: Vec<_> = service.ignored.iter().map(|ignored| ignored.field).collect();
    assert_eq!(fields, ["spec.externalIPs", "spec.loadBalancerSourceRanges", "spec.ports"]);
}
