//! API objects of which a cluster has many, read from protobuf: the fields that the model reads, and no others.
//!
//! Each becomes the type that JSON is read as, and looks as it would from there: what is empty counts as absent, as JSON
//! leaves it out.

pub(super) mod messages;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use prost::Message;
use thiserror::Error;

/// Why bytes are no API object.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// They are not the message that they should be.
    #[error(transparent)]
    Message(#[from] prost::DecodeError),
    /// A time is too far from now to be one.
    #[error("{0} s since 1970 is no time")]
    Time(i64),
}

/// An API object that can be read from protobuf.
pub trait Wire: Sized {
    /// Reads one.
    ///
    /// # Errors
    /// When the bytes are no such object.
    fn read(message: &[u8]) -> Result<Self, WireError>;
}

impl Wire for core::Service {
    fn read(message: &[u8]) -> Result<Self, WireError> {
        let messages::Service { metadata, spec, status } = Message::decode(message)?;
        Ok(Self {
            metadata: metadata.map(object_meta).transpose()?.unwrap_or_default(),
            spec: spec.map(service_spec),
            status: status.map(service_status),
        })
    }
}

impl Wire for discovery::EndpointSlice {
    fn read(message: &[u8]) -> Result<Self, WireError> {
        let messages::EndpointSlice { metadata, endpoints, ports, address_type } = Message::decode(message)?;
        Ok(Self {
            metadata: metadata.map(object_meta).transpose()?.unwrap_or_default(),
            endpoints: endpoints.into_iter().map(endpoint).collect(),
            ports: list(ports, endpoint_port),
            address_type,
        })
    }
}

fn object_meta(meta: messages::ObjectMeta) -> Result<ObjectMeta, WireError> {
    Ok(ObjectMeta {
        name: filled(meta.name),
        namespace: filled(meta.namespace),
        uid: filled(meta.uid),
        resource_version: filled(meta.resource_version),
        generation: filled(meta.generation),
        creation_timestamp: meta.creation_timestamp.map(time).transpose()?.flatten(),
        deletion_timestamp: meta.deletion_timestamp.map(time).transpose()?.flatten(),
        labels: filled(meta.labels),
        annotations: filled(meta.annotations),
        finalizers: filled(meta.finalizers),
        ..ObjectMeta::default()
    })
}

fn time(time: messages::Time) -> Result<Option<Time>, WireError> {
    let read = |seconds| Timestamp::from_second(seconds).map(Time).map_err(|_| WireError::Time(seconds));
    time.seconds.map(read).transpose()
}

fn service_spec(spec: messages::ServiceSpec) -> core::ServiceSpec {
    core::ServiceSpec {
        ports: list(spec.ports, service_port),
        selector: filled(spec.selector),
        cluster_ip: filled(spec.cluster_ip),
        type_: filled(spec.type_),
        external_ips: filled(spec.external_ips),
        session_affinity: filled(spec.session_affinity),
        load_balancer_ip: filled(spec.load_balancer_ip),
        load_balancer_source_ranges: filled(spec.load_balancer_source_ranges),
        external_name: filled(spec.external_name),
        external_traffic_policy: filled(spec.external_traffic_policy),
        health_check_node_port: filled(spec.health_check_node_port),
        publish_not_ready_addresses: filled(spec.publish_not_ready_addresses),
        session_affinity_config: spec.session_affinity_config.map(session_affinity_config),
        ip_family_policy: spec.ip_family_policy,
        cluster_ips: filled(spec.cluster_ips),
        ip_families: filled(spec.ip_families),
        allocate_load_balancer_node_ports: spec.allocate_load_balancer_node_ports,
        load_balancer_class: spec.load_balancer_class,
        internal_traffic_policy: spec.internal_traffic_policy,
        traffic_distribution: spec.traffic_distribution,
    }
}

fn service_port(port: messages::ServicePort) -> core::ServicePort {
    core::ServicePort {
        name: filled(port.name),
        protocol: filled(port.protocol),
        port: port.port,
        node_port: filled(port.node_port),
        app_protocol: port.app_protocol,
        target_port: None,
    }
}

fn session_affinity_config(config: messages::SessionAffinityConfig) -> core::SessionAffinityConfig {
    let client_ip = |config: messages::ClientIpConfig| core::ClientIPConfig { timeout_seconds: config.timeout_seconds };
    core::SessionAffinityConfig { client_ip: config.client_ip.map(client_ip) }
}

fn service_status(status: messages::ServiceStatus) -> core::ServiceStatus {
    let ingress = |ingress: messages::LoadBalancerIngress| core::LoadBalancerIngress {
        ip: filled(ingress.ip),
        hostname: filled(ingress.hostname),
        ip_mode: ingress.ip_mode,
        ports: None,
    };
    let balancer = status.load_balancer.unwrap_or_default();
    let load_balancer = Some(core::LoadBalancerStatus { ingress: list(balancer.ingress, ingress) });
    core::ServiceStatus { load_balancer, conditions: None }
}

fn endpoint(endpoint: messages::Endpoint) -> discovery::Endpoint {
    discovery::Endpoint {
        addresses: endpoint.addresses,
        conditions: endpoint.conditions.map(conditions),
        node_name: endpoint.node_name,
        zone: endpoint.zone,
        hints: endpoint.hints.map(hints),
        ..discovery::Endpoint::default()
    }
}

const fn conditions(conditions: messages::EndpointConditions) -> discovery::EndpointConditions {
    let messages::EndpointConditions { ready, serving, terminating } = conditions;
    discovery::EndpointConditions { ready, serving, terminating }
}

fn hints(hints: messages::EndpointHints) -> discovery::EndpointHints {
    discovery::EndpointHints {
        for_zones: list(hints.for_zones, |zone| discovery::ForZone { name: zone.name }),
        for_nodes: list(hints.for_nodes, |node| discovery::ForNode { name: node.name }),
    }
}

fn endpoint_port(port: messages::EndpointPort) -> discovery::EndpointPort {
    let messages::EndpointPort { name, protocol, port, app_protocol } = port;
    discovery::EndpointPort { name, protocol, port, app_protocol }
}

/// What JSON would have left out is absent.
fn filled<T: Default + PartialEq>(value: T) -> Option<T> {
    Some(value).filter(|value| *value != T::default())
}

fn list<M, T: PartialEq>(messages: Vec<M>, read: impl Fn(M) -> T) -> Option<Vec<T>> {
    filled(messages.into_iter().map(read).collect())
}

#[cfg(test)]
mod tests;
