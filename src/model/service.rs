//! A Service as all three components see it: read once from the API object, then trusted.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, ServiceSpec};
use thiserror::Error;

use super::address::{parse_address, parse_prefix};
use super::selector::Labels;
use super::{Family, Protocol};
use crate::api::annotations::Annotations;
use crate::names::{PortName, ServiceKey};

/// The default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_TIMEOUT: Duration = Duration::from_secs(10_800);

/// The label that gives a Service to another proxy.
pub const PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label that keeps proxies from a Service.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Why an API object is no Service that anybody could serve.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ServiceError {
    /// Without a name or a namespace there is no key.
    #[error("service has no name or no namespace")]
    Unnamed,
}

/// A field of a Service that is left out because it cannot be read; the rest of the Service is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The field's path, as in `spec.externalIPs`.
    pub field: &'static str,
    /// What stands there.
    pub value: String,
    /// Why it is left out.
    pub reason: &'static str,
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// Reachable inside the cluster.
    ClusterIp,
    /// And on a port of every node.
    NodePort,
    /// And at an address of a load balancer.
    LoadBalancer,
    /// A DNS alias; never forwarded.
    ExternalName,
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Endpoints of the whole cluster.
    Cluster,
    /// Endpoints of the node where the packet arrived.
    Local,
}

/// `spec.ipFamilyPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyPolicy {
    /// One family.
    SingleStack,
    /// Two where the cluster and the pools have two.
    PreferDualStack,
    /// Two, or nothing.
    RequireDualStack,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where the Service has one unnamed port.
    pub name: PortName,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the Service's addresses.
    pub port: NonZeroU16,
    /// The port at the nodes' addresses, if any.
    pub node_port: Option<NonZeroU16>,
}

/// An entry of `status.loadBalancer.ingress` that has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// The address.
    pub address: IpAddr,
    /// `ipMode: Proxy`: packets must reach the real load balancer, so nodes install nothing for it (KEP-1860).
    pub is_proxied: bool,
}

/// A Service. Lists keep the order of the API object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.uid`: tells a Service from its successor of the same name.
    pub uid: String,
    /// `metadata.resourceVersion`, carried into writes.
    pub resource_version: String,
    /// `metadata.generation`, for `observedGeneration` of conditions.
    pub generation: i64,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// Whether the Service is being deleted.
    pub is_deleting: bool,
    /// `metadata.labels`, for selectors of pools and advertisements.
    pub labels: Labels,
    /// Our annotations, and MetalLB's spellings of them.
    pub annotations: Annotations,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// `spec.type`.
    pub service_type: ServiceType,
    /// `spec.loadBalancerClass`.
    pub load_balancer_class: Option<String>,
    /// Whether some service proxy is meant to serve it and it is ours: not headless, not an alias, and without the
    /// labels `service.kubernetes.io/service-proxy-name` and `service.kubernetes.io/headless`.
    pub is_proxied: bool,
    /// `spec.ipFamilies` as far as they are known, else the families of the cluster IPs.
    pub families: Vec<Family>,
    /// `spec.ipFamilyPolicy`.
    pub family_policy: FamilyPolicy,
    /// `spec.clusterIPs`; empty when headless.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`, entries with an address.
    pub ingress: Vec<Ingress>,
    /// `spec.loadBalancerIP`, deprecated upstream but in use.
    pub load_balancer_ip: Option<String>,
    /// `spec.loadBalancerSourceRanges`; empty means everybody.
    pub source_ranges: Vec<IpNet>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.selector` in a canonical order, for the sharing rule of `externalTrafficPolicy: Local`.
    pub selector: Labels,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// The timeout of `sessionAffinity: ClientIP`, or no affinity.
    pub affinity: Option<Duration>,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<NonZeroU16>,
    /// What could not be read and is left out.
    pub ignored: Vec<Ignored>,
}

impl Service {
    /// The load-balancer addresses that nodes serve themselves: those without `ipMode: Proxy`.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ingress.iter().filter(|ingress| !ingress.is_proxied).map(|ingress| ingress.address)
    }

    /// The cluster IP of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|address| Family::of(*address) == family)
    }
}

impl TryFrom<&core::Service> for Service {
    type Error = ServiceError;

    fn try_from(object: &core::Service) -> Result<Self, ServiceError> {
        let metadata = &object.metadata;
        let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else {
            return Err(ServiceError::Unnamed);
        };
        let no_spec = ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&no_spec);
        let labels = metadata.labels.clone().unwrap_or_default();
        let mut ignored = Vec::new();
        let service_type = service_type(spec, &mut ignored);
        let cluster_ips = cluster_ips(spec, &mut ignored);
        Ok(Self {
            key: ServiceKey::new(namespace.as_str(), name.as_str()),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            is_deleting: metadata.deletion_timestamp.is_some(),
            annotations: Annotations::read(metadata.annotations.as_ref()),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
            service_type,
            load_balancer_class: spec.load_balancer_class.clone(),
            is_proxied: service_type != ServiceType::ExternalName
                && !cluster_ips.is_empty()
                && !labels.contains_key(PROXY_LABEL)
                && !labels.contains_key(HEADLESS_LABEL),
            families: families(spec, &cluster_ips),
            family_policy: match spec.ip_family_policy.as_deref() {
                Some("RequireDualStack") => FamilyPolicy::RequireDualStack,
                Some("PreferDualStack") => FamilyPolicy::PreferDualStack,
                Some(_) | None => FamilyPolicy::SingleStack,
            },
            cluster_ips,
            external_ips: addresses(spec.external_ips.as_deref(), "spec.externalIPs", &mut ignored),
            ingress: ingress(object, &mut ignored),
            load_balancer_ip: spec.load_balancer_ip.clone().filter(|text| !text.is_empty()),
            source_ranges: source_ranges(spec, &mut ignored),
            ports: ports(spec, &mut ignored),
            selector: spec.selector.clone().unwrap_or_default(),
            internal_policy: traffic_policy(spec.internal_traffic_policy.as_deref()),
            external_policy: traffic_policy(spec.external_traffic_policy.as_deref()),
            affinity: affinity(spec),
            health_check_node_port: spec.health_check_node_port.and_then(port_number),
            labels,
            ignored,
        })
    }
}

fn service_type(spec: &ServiceSpec, ignored: &mut Vec<Ignored>) -> ServiceType {
    match spec.type_.as_deref() {
        None | Some("ClusterIP" | "") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            ignored.push(Ignored { field: "spec.type", value: other.to_owned(), reason: "is no known type" });
            ServiceType::ClusterIp
        }
    }
}

/// The cluster IPs, none for a headless Service.
fn cluster_ips(spec: &ServiceSpec, ignored: &mut Vec<Ignored>) -> Vec<IpAddr> {
    let single: Vec<String>;
    let texts = match spec.cluster_ips.as_deref() {
        Some(list) if !list.is_empty() => list,
        Some(_) | None => {
            single = spec.cluster_ip.iter().cloned().collect();
            &single
        }
    };
    let texts: Vec<String> = texts.iter().filter(|text| !matches!(text.as_str(), "" | "None")).cloned().collect();
    addresses(Some(&texts), "spec.clusterIPs", ignored)
}

fn families(spec: &ServiceSpec, cluster_ips: &[IpAddr]) -> Vec<Family> {
    let declared: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|text| match text.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if declared.is_empty() { cluster_ips.iter().map(|address| Family::of(*address)).collect() } else { declared }
}

fn addresses(texts: Option<&[String]>, field: &'static str, ignored: &mut Vec<Ignored>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for text in texts.unwrap_or_default() {
        match parse_address(text) {
            Some(address) if seen.insert(address) => kept.push(address),
            Some(_) => {}
            None => ignored.push(Ignored { field, value: text.clone(), reason: "is no IP address" }),
        }
    }
    kept
}

fn ingress(object: &core::Service, ignored: &mut Vec<Ignored>) -> Vec<Ingress> {
    let list = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut kept: Vec<Ingress> = Vec::new();
    for entry in list.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default() {
        let Some(text) = &entry.ip else { continue };
        match parse_address(text) {
            Some(address) if kept.iter().any(|known| known.address == address) => {}
            Some(address) => {
                kept.push(Ingress { address, is_proxied: entry.ip_mode.as_deref() == Some("Proxy") });
            }
            None => ignored.push(Ignored {
                field: "status.loadBalancer.ingress",
                value: text.clone(),
                reason: "is no IP address",
            }),
        }
    }
    kept
}

fn source_ranges(spec: &ServiceSpec, ignored: &mut Vec<Ignored>) -> Vec<IpNet> {
    let mut kept = Vec::new();
    for text in spec.load_balancer_source_ranges.iter().flatten() {
        match parse_prefix(text) {
            Some(range) => kept.push(range),
            None => ignored.push(Ignored {
                field: "spec.loadBalancerSourceRanges",
                value: text.clone(),
                reason: "is no address range",
            }),
        }
    }
    kept
}

fn ports(spec: &ServiceSpec, ignored: &mut Vec<Ignored>) -> Vec<ServicePort> {
    let mut kept: Vec<ServicePort> = Vec::new();
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Some(number)) = (Protocol::from_api(port.protocol.as_deref()), port_number(port.port))
        else {
            let value = format!("{}/{}", port.port, port.protocol.as_deref().unwrap_or("TCP"));
            ignored.push(Ignored { field: "spec.ports", value, reason: "is no port and protocol" });
            continue;
        };
        kept.push(ServicePort {
            name: PortName::new(port.name.as_deref().unwrap_or_default()),
            protocol,
            port: number,
            node_port: port.node_port.and_then(port_number),
        });
    }
    kept
}

fn port_number(number: i32) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

fn traffic_policy(text: Option<&str>) -> TrafficPolicy {
    match text {
        Some("Local") => TrafficPolicy::Local,
        Some(_) | None => TrafficPolicy::Cluster,
    }
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client| client.timeout_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0);
    Some(seconds.map_or(DEFAULT_AFFINITY_TIMEOUT, Duration::from_secs))
}

#[cfg(test)]
mod tests;
