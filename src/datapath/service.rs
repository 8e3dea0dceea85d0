//! A Service as the datapath remembers it: what decides how its packets are forwarded, and nothing else.
//!
//! Each node's agent holds tens of thousands of these. And what is not here is no change: a Service of which only labels
//! or annotations are others, or that a controller signed for, costs no turn.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::model::Family;
use crate::model::selector::Labels;
use crate::model::service::{HEADLESS_LABEL, Ignored, Ingress, PROXY_LABEL};
use crate::model::service::{Service, ServicePort, ServiceType, TrafficPolicy};
use crate::names::ServiceKey;

/// A Service, as far as it decides how packets are forwarded. See [`Service`] for what the fields mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedService {
    /// Namespace and name.
    pub key: ServiceKey,
    /// When it was created: of two that want one frontend the older has it.
    pub created: Option<Timestamp>,
    /// Those labels alone that give a Service to another proxy or to none.
    pub labels: Labels,
    /// Its type.
    pub service_type: ServiceType,
    /// Whether it is ours to serve.
    pub is_proxied: bool,
    /// Its cluster IPs.
    pub cluster_ips: Box<[IpAddr]>,
    /// Its external IPs.
    pub external_ips: Box<[IpAddr]>,
    /// Its load-balancer addresses.
    pub ingress: Box<[Ingress]>,
    /// Who may dial its load-balancer addresses.
    pub source_ranges: Box<[IpNet]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// For clients inside the cluster.
    pub internal_policy: TrafficPolicy,
    /// For clients outside.
    pub external_policy: TrafficPolicy,
    /// How long clients keep their endpoint.
    pub affinity: Option<Duration>,
    /// Where load balancers ask for endpoints on this node.
    pub health_check_node_port: Option<NonZeroU16>,
    /// What could not be read.
    pub ignored: Box<[Ignored]>,
}

impl ForwardedService {
    /// See [`Service::virtual_addresses`].
    pub fn virtual_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ingress.iter().filter(|ingress| !ingress.is_proxied).map(|ingress| ingress.address)
    }

    /// The cluster IP of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|address| Family::of(*address) == family)
    }
}

impl From<Service> for ForwardedService {
    fn from(service: Service) -> Self {
        let mut labels = service.labels;
        labels.retain(|label, _| matches!(label.as_str(), PROXY_LABEL | HEADLESS_LABEL));
        Self {
            key: service.key,
            created: service.created,
            labels,
            service_type: service.service_type,
            is_proxied: service.is_proxied,
            cluster_ips: service.cluster_ips.into(),
            external_ips: service.external_ips.into(),
            ingress: service.ingress.into(),
            source_ranges: service.source_ranges.into(),
            ports: service.ports.into(),
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            affinity: service.affinity,
            health_check_node_port: service.health_check_node_port,
            ignored: service.ignored.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;

    use super::*;

    fn read(more: &str) -> ForwardedService {
        let text = format!(
            "metadata: {{name: a, namespace: b, {more}}}\nspec: {{clusterIP: 172.30.0.1, ports: [{{port: 80}}]}}"
        );
        let object: core::Service = serde_saphyr::from_str(&text).unwrap();
        Service::try_from(&object).unwrap().into()
    }

    #[test]
    fn what_does_not_concern_forwarding_is_no_change() {
        let plain = read("resourceVersion: '1'");
        assert_eq!(read("resourceVersion: '2', labels: {app: a}, annotations: {steelyard.dev/address-pool: a}"), plain);
        assert_ne!(read("labels: {service.kubernetes.io/service-proxy-name: other}"), plain);
    }
}
