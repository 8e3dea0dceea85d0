//! EndpointSlices, reduced to what choosing an endpoint needs.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1 as discovery;
use thiserror::Error;

use super::address::parse_address;
use super::flat::{FlatMap, FlatSet};
use super::{Family, Protocol};
use crate::names::{NodeName, PortName, ServiceKey, Text, ZoneName};

/// The label that ties a slice to its Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The annotation that says when the change was set off that last changed a slice.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Why a slice is not used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SliceError {
    /// Without a name or a namespace there is no key.
    #[error("endpoint slice has no name or no namespace")]
    Unnamed,
    /// The slice belongs to no Service.
    #[error("endpoint slice has no label {SERVICE_LABEL}")]
    NoService,
    /// Addresses that no datapath can use, such as `FQDN`.
    #[error("endpoint slice has addresses of type {0}")]
    AddressType(String),
}

/// A slice by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceKey {
    /// The namespace, which is the Service's too.
    pub namespace: Text,
    /// The name.
    pub name: Text,
}

/// The life of an endpoint, as its conditions tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conditions {
    /// May get new connections. An absent value means true.
    pub is_ready: bool,
    /// Still answers. An absent value means true.
    pub is_serving: bool,
    /// Is being taken down. An absent value means false.
    pub is_terminating: bool,
}

/// One endpoint of a slice: an address, for all ports of the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first address; Kubernetes gives no meaning to others.
    pub address: IpAddr,
    /// Its conditions.
    pub conditions: Conditions,
    /// Where it runs; an endpoint without a node counts as remote.
    pub node: Option<NodeName>,
    /// For whom it is meant, if that is said. Most have none, and there are many of them.
    pub hints: Option<Box<Hints>>,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forZones`.
    pub zones: FlatSet<ZoneName>,
    /// `hints.forNodes`.
    pub nodes: FlatSet<NodeName>,
}

/// An EndpointSlice that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: SliceKey,
    /// The Service it belongs to.
    pub service: ServiceKey,
    /// The family of all its addresses.
    pub family: Family,
    /// Ports by name and protocol; target ports are resolved already. Ports without a number are left out.
    pub ports: FlatMap<(PortName, Protocol), NonZeroU16>,
    /// The endpoints; those without a readable address are left out.
    pub endpoints: Box<[SliceEndpoint]>,
    /// When what last changed it was set off, by a pod say, as its controller tells it.
    pub triggered: Option<Timestamp>,
}

/// One endpoint of one Service port: where a packet may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and target port.
    pub address: SocketAddr,
    /// Its conditions.
    pub conditions: Conditions,
    /// Where it runs.
    pub node: Option<NodeName>,
    /// `hints.forZones`.
    pub zone_hints: FlatSet<ZoneName>,
    /// `hints.forNodes`.
    pub node_hints: FlatSet<NodeName>,
}

impl EndpointSlice {
    /// The endpoints of one port, if the slice has that port.
    pub fn endpoints_of(&self, port: &PortName, protocol: Protocol) -> impl Iterator<Item = Endpoint> + '_ {
        let number = self.ports.get(&(port.clone(), protocol)).copied();
        self.endpoints.iter().filter_map(move |endpoint| {
            let hints = endpoint.hints.as_deref().cloned().unwrap_or_default();
            Some(Endpoint {
                address: SocketAddr::new(endpoint.address, number?.get()),
                conditions: endpoint.conditions,
                node: endpoint.node.clone(),
                zone_hints: hints.zones,
                node_hints: hints.nodes,
            })
        })
    }
}

impl TryFrom<&discovery::EndpointSlice> for EndpointSlice {
    type Error = SliceError;

    fn try_from(object: &discovery::EndpointSlice) -> Result<Self, SliceError> {
        let metadata = &object.metadata;
        let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else {
            return Err(SliceError::Unnamed);
        };
        let service = metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_LABEL))
            .filter(|service| !service.is_empty())
            .ok_or(SliceError::NoService)?;
        let family = match object.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            other => return Err(SliceError::AddressType(other.to_owned())),
        };
        Ok(Self {
            key: SliceKey { namespace: namespace.as_str().into(), name: name.as_str().into() },
            service: ServiceKey::new(namespace.as_str(), service.as_str()),
            family,
            ports: object.ports.iter().flatten().filter_map(slice_port).collect(),
            endpoints: object.endpoints.iter().filter_map(|endpoint| slice_endpoint(endpoint, family)).collect(),
            triggered: metadata.annotations.as_ref().and_then(|all| all.get(TRIGGER)?.parse().ok()),
        })
    }
}

fn slice_port(port: &discovery::EndpointPort) -> Option<((PortName, Protocol), NonZeroU16)> {
    let protocol = Protocol::from_api(port.protocol.as_deref())?;
    let number = port.port.and_then(|number| u16::try_from(number).ok()).and_then(NonZeroU16::new)?;
    Some(((PortName::new(port.name.as_deref()?), protocol), number))
}

fn slice_endpoint(endpoint: &discovery::Endpoint, family: Family) -> Option<SliceEndpoint> {
    let address = endpoint.addresses.first().and_then(|text| parse_address(text))?;
    if Family::of(address) != family {
        return None;
    }
    let conditions = endpoint.conditions.as_ref();
    let is_ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    Some(SliceEndpoint {
        address,
        conditions: Conditions {
            is_ready,
            is_serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
            is_terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        },
        node: endpoint.node_name.as_deref().map(NodeName::new),
        hints: endpoint.hints.as_ref().and_then(hints),
    })
}

fn hints(hints: &discovery::EndpointHints) -> Option<Box<Hints>> {
    let zones: FlatSet<_> = hints.for_zones.iter().flatten().map(|zone| ZoneName::new(zone.name.as_str())).collect();
    let nodes: FlatSet<_> = hints.for_nodes.iter().flatten().map(|node| NodeName::new(node.name.as_str())).collect();
    (!zones.is_empty() || !nodes.is_empty()).then(|| Box::new(Hints { zones, nodes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<EndpointSlice, SliceError> {
        EndpointSlice::try_from(&serde_saphyr::from_str::<discovery::EndpointSlice>(yaml).unwrap())
    }

    const META: &str = "metadata: {name: web-x, namespace: default, labels: {kubernetes.io/service-name: web}}\n";

    #[test]
    fn absent_conditions_mean_ready() {
        let slice = read(&format!("{META}addressType: IPv4\nendpoints: [{{addresses: [10.0.0.1]}}]")).unwrap();
        let expected = Conditions { is_ready: true, is_serving: true, is_terminating: false };
        assert_eq!(slice.endpoints[0].conditions, expected);
    }

    #[test]
    fn an_absent_serving_condition_means_true_whatever_ready_says() {
        let slice = read(&format!(
            "{META}addressType: IPv4\nendpoints: [{{addresses: [10.0.0.1], conditions: {{ready: false}}}}]"
        ))
        .unwrap();
        assert!(slice.endpoints[0].conditions.is_serving);
    }

    #[test]
    fn ports_match_by_name_and_protocol() {
        let slice = read(&format!(
            "{META}addressType: IPv6\nports: [{{name: dns, protocol: UDP, port: 5353}}, {{name: dns-tcp, port: 53}}, {{port: 1}}, {{name: zero, port: 0}}]\n\
             endpoints: [{{addresses: ['fd00::1']}}, {{addresses: ['10.0.0.1']}}]"
        ))
        .unwrap();
        let endpoints: Vec<_> = slice.endpoints_of(&"dns".into(), Protocol::Udp).map(|e| e.address).collect();
        assert_eq!(endpoints, ["[fd00::1]:5353".parse().unwrap()]);
        assert_eq!(slice.endpoints_of(&"dns".into(), Protocol::Tcp).count(), 0);
        assert_eq!(slice.ports.len(), 2);
    }

    #[test]
    fn slices_of_names_or_of_nobody_are_refused() {
        assert_eq!(
            read(&format!("{META}addressType: FQDN\nendpoints: []")),
            Err(SliceError::AddressType("FQDN".into()))
        );
        let orphan = "metadata: {name: x, namespace: y}\naddressType: IPv4\nendpoints: []";
        assert_eq!(read(orphan), Err(SliceError::NoService));
    }
}
