//! API objects of which a cluster has many, read from protobuf: the fields that the model reads, and no others. What an API
//! server keeps of who changed which field, the larger part of many objects, is passed over.
//!
//! A text that Go has as a plain value is there even if it is empty, which JSON leaves out: it counts as absent.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::protobuf::{Value, WireError, fields};

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
        let mut service = Self::default();
        for field in fields(message) {
            match field? {
                (1, value) => service.metadata = metadata(value.bytes()?)?,
                (2, value) => service.spec = Some(service_spec(value.bytes()?)?),
                (3, value) => service.status = Some(service_status(value.bytes()?)?),
                _ => {}
            }
        }
        Ok(service)
    }
}

impl Wire for discovery::EndpointSlice {
    fn read(message: &[u8]) -> Result<Self, WireError> {
        let mut slice = Self::default();
        let mut ports = Vec::new();
        for field in fields(message) {
            match field? {
                (1, value) => slice.metadata = metadata(value.bytes()?)?,
                (2, value) => slice.endpoints.push(endpoint(value.bytes()?)?),
                (3, value) => ports.push(endpoint_port(value.bytes()?)?),
                (4, value) => slice.address_type = value.text()?,
                _ => {}
            }
        }
        slice.ports = list(ports);
        Ok(slice)
    }
}

fn metadata(message: &[u8]) -> Result<ObjectMeta, WireError> {
    let mut meta = ObjectMeta::default();
    let (mut labels, mut annotations, mut finalizers) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for field in fields(message) {
        match field? {
            (1, value) => meta.name = plain(value)?,
            (3, value) => meta.namespace = plain(value)?,
            (5, value) => meta.uid = plain(value)?,
            (6, value) => meta.resource_version = plain(value)?,
            (7, value) => meta.generation = Some(value.number()?).filter(|number| *number != 0),
            (8, value) => meta.creation_timestamp = time(value.bytes()?)?,
            (9, value) => meta.deletion_timestamp = time(value.bytes()?)?,
            (11, value) => labels.extend([pair(value.bytes()?)?]),
            (12, value) => annotations.extend([pair(value.bytes()?)?]),
            (14, value) => finalizers.push(value.text()?),
            _ => {}
        }
    }
    meta.labels = Some(labels).filter(|labels| !labels.is_empty());
    meta.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    meta.finalizers = list(finalizers);
    Ok(meta)
}

fn service_spec(message: &[u8]) -> Result<ServiceSpec, WireError> {
    let mut spec = ServiceSpec::default();
    let (mut ports, mut selector) = (Vec::new(), BTreeMap::new());
    let (mut cluster_ips, mut external_ips, mut families, mut sources) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for field in fields(message) {
        match field? {
            (1, value) => ports.push(service_port(value.bytes()?)?),
            (2, value) => selector.extend([pair(value.bytes()?)?]),
            (3, value) => spec.cluster_ip = plain(value)?,
            (4, value) => spec.type_ = plain(value)?,
            (5, value) => external_ips.push(value.text()?),
            (7, value) => spec.session_affinity = plain(value)?,
            (8, value) => spec.load_balancer_ip = plain(value)?,
            (9, value) => sources.push(value.text()?),
            (10, value) => spec.external_name = plain(value)?,
            (11, value) => spec.external_traffic_policy = plain(value)?,
            (12, value) => spec.health_check_node_port = port(value)?,
            (13, value) => spec.publish_not_ready_addresses = Some(truth(value)?).filter(|is_published| *is_published),
            (14, value) => spec.session_affinity_config = Some(affinity(value.bytes()?)?),
            (17, value) => spec.ip_family_policy = Some(value.text()?),
            (18, value) => cluster_ips.push(value.text()?),
            (19, value) => families.push(value.text()?),
            (20, value) => spec.allocate_load_balancer_node_ports = Some(truth(value)?),
            (21, value) => spec.load_balancer_class = Some(value.text()?),
            (22, value) => spec.internal_traffic_policy = Some(value.text()?),
            (23, value) => spec.traffic_distribution = Some(value.text()?),
            _ => {}
        }
    }
    spec.ports = list(ports);
    spec.selector = Some(selector).filter(|selector| !selector.is_empty());
    spec.cluster_ips = list(cluster_ips);
    spec.external_ips = list(external_ips);
    spec.ip_families = list(families);
    spec.load_balancer_source_ranges = list(sources);
    Ok(spec)
}

fn service_port(message: &[u8]) -> Result<ServicePort, WireError> {
    let mut read = ServicePort::default();
    for field in fields(message) {
        match field? {
            (1, value) => read.name = plain(value)?,
            (2, value) => read.protocol = plain(value)?,
            (3, value) => read.port = port(value)?.unwrap_or_default(),
            (5, value) => read.node_port = port(value)?,
            (6, value) => read.app_protocol = Some(value.text()?),
            _ => {}
        }
    }
    Ok(read)
}

fn affinity(message: &[u8]) -> Result<core::SessionAffinityConfig, WireError> {
    let mut config = core::SessionAffinityConfig::default();
    for field in fields(message) {
        if let (1, value) = field? {
            let mut client_ip = core::ClientIPConfig::default();
            for field in fields(value.bytes()?) {
                if let (1, value) = field? {
                    client_ip.timeout_seconds = Some(small(value)?);
                }
            }
            config.client_ip = Some(client_ip);
        }
    }
    Ok(config)
}

fn service_status(message: &[u8]) -> Result<core::ServiceStatus, WireError> {
    let mut ingress = Vec::new();
    for field in fields(message) {
        let (1, balancer) = field? else { continue };
        for field in fields(balancer.bytes()?) {
            let (1, entry) = field? else { continue };
            let mut read = core::LoadBalancerIngress::default();
            for field in fields(entry.bytes()?) {
                match field? {
                    (1, value) => read.ip = plain(value)?,
                    (2, value) => read.hostname = plain(value)?,
                    (3, value) => read.ip_mode = Some(value.text()?),
                    _ => {}
                }
            }
            ingress.push(read);
        }
    }
    let load_balancer = Some(core::LoadBalancerStatus { ingress: list(ingress) });
    Ok(core::ServiceStatus { load_balancer, ..core::ServiceStatus::default() })
}

fn endpoint(message: &[u8]) -> Result<discovery::Endpoint, WireError> {
    let mut read = discovery::Endpoint::default();
    for field in fields(message) {
        match field? {
            (1, value) => read.addresses.push(value.text()?),
            (2, value) => read.conditions = Some(conditions(value.bytes()?)?),
            (6, value) => read.node_name = Some(value.text()?),
            (7, value) => read.zone = Some(value.text()?),
            (8, value) => read.hints = Some(hints(value.bytes()?)?),
            _ => {}
        }
    }
    Ok(read)
}

fn conditions(message: &[u8]) -> Result<discovery::EndpointConditions, WireError> {
    let mut read = discovery::EndpointConditions::default();
    for field in fields(message) {
        match field? {
            (1, value) => read.ready = Some(truth(value)?),
            (2, value) => read.serving = Some(truth(value)?),
            (3, value) => read.terminating = Some(truth(value)?),
            _ => {}
        }
    }
    Ok(read)
}

fn hints(message: &[u8]) -> Result<discovery::EndpointHints, WireError> {
    let (mut zones, mut nodes) = (Vec::new(), Vec::new());
    for field in fields(message) {
        match field? {
            (1, value) => zones.push(discovery::ForZone { name: name_in(value.bytes()?)? }),
            (2, value) => nodes.push(discovery::ForNode { name: name_in(value.bytes()?)? }),
            _ => {}
        }
    }
    Ok(discovery::EndpointHints { for_zones: list(zones), for_nodes: list(nodes) })
}

fn name_in(message: &[u8]) -> Result<String, WireError> {
    let mut name = String::new();
    for field in fields(message) {
        if let (1, value) = field? {
            name = value.text()?;
        }
    }
    Ok(name)
}

fn endpoint_port(message: &[u8]) -> Result<discovery::EndpointPort, WireError> {
    let mut read = discovery::EndpointPort::default();
    for field in fields(message) {
        match field? {
            (1, value) => read.name = Some(value.text()?),
            (2, value) => read.protocol = Some(value.text()?),
            (3, value) => read.port = Some(small(value)?),
            (4, value) => read.app_protocol = Some(value.text()?),
            _ => {}
        }
    }
    Ok(read)
}

/// One of a map.
fn pair(message: &[u8]) -> Result<(String, String), WireError> {
    let mut pair = (String::new(), String::new());
    for field in fields(message) {
        match field? {
            (1, value) => pair.0 = value.text()?,
            (2, value) => pair.1 = value.text()?,
            _ => {}
        }
    }
    Ok(pair)
}

/// A time; one that never was is empty.
fn time(message: &[u8]) -> Result<Option<Time>, WireError> {
    let mut seconds = None;
    for field in fields(message) {
        if let (1, value) = field? {
            seconds = Some(value.number()?);
        }
    }
    seconds.map(|seconds| Timestamp::from_second(seconds).map(Time).map_err(|_| WireError::Number)).transpose()
}

/// A text that counts as absent when it is empty.
fn plain(value: Value<'_>) -> Result<Option<String>, WireError> {
    value.text().map(|text| Some(text).filter(|text| !text.is_empty()))
}

fn small(value: Value<'_>) -> Result<i32, WireError> {
    i32::try_from(value.number()?).map_err(|_| WireError::Number)
}

/// A number that counts as absent when it is 0.
fn port(value: Value<'_>) -> Result<Option<i32>, WireError> {
    small(value).map(|number| Some(number).filter(|number| *number != 0))
}

fn truth(value: Value<'_>) -> Result<bool, WireError> {
    value.number().map(|number| number != 0)
}

/// A list that counts as absent when it is empty.
fn list<T>(items: Vec<T>) -> Option<Vec<T>> {
    Some(items).filter(|items| !items.is_empty())
}

#[cfg(test)]
mod tests;
