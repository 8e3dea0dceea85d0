//! What comes near a packet that no frontend is for: the same address by another port, the same port elsewhere, Services
//! that others serve.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Packet, Place};
use crate::datapath::entry::NodePortAddresses;
use crate::datapath::index::Index;
use crate::datapath::service::ForwardedService;
use crate::model::Family;
use crate::model::Protocol;
use crate::model::service::{HEADLESS_LABEL, PROXY_LABEL, ServiceType};
use crate::names::ServiceKey;

/// Something that the sender may have meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Near {
    /// A Service has the address, with these ports.
    Ports {
        /// Whose it is.
        service: ServiceKey,
        /// As `80/TCP`.
        ports: Vec<String>,
    },
    /// A Service has the address and port for another protocol.
    Protocol {
        /// Whose it is.
        service: ServiceKey,
        /// Those that it has there.
        protocols: Vec<Protocol>,
    },
    /// The load balancer itself must get the packet.
    ProxyMode {
        /// Whose the address is.
        service: ServiceKey,
    },
    /// Another proxy serves the Service, or none.
    NotProxied {
        /// The Service.
        service: ServiceKey,
        /// Why.
        reason: &'static str,
    },
    /// The Service has no cluster IP of the address's family.
    NoFamily {
        /// The Service.
        service: ServiceKey,
        /// The family.
        family: Family,
    },
    /// The NodePort answers at other addresses of the node.
    NodePortAt {
        /// Whose it is.
        service: ServiceKey,
        /// Where; absent: at all but loopback.
        addresses: Option<BTreeSet<IpAddr>>,
    },
    /// The NodePort is one of another protocol.
    NodePortProtocol {
        /// Whose it is.
        service: ServiceKey,
        /// Its protocol.
        protocol: Protocol,
    },
    /// It is an endpoint: packets to it need no Service.
    Endpoint {
        /// Whose.
        service: ServiceKey,
    },
    /// It is a node's address.
    Node,
}

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports { service, ports } if ports.is_empty() => {
                write!(f, "service {service} has this address and no port at all")
            }
            Self::Ports { service, ports } => {
                write!(f, "service {service} has this address, with port {}", ports.join(", "))
            }
            Self::Protocol { service, protocols } => {
                let protocols: Vec<String> = protocols.iter().map(ToString::to_string).collect();
                write!(f, "service {service} has this address and port for {} only", protocols.join(" and "))
            }
            Self::ProxyMode { service } => write!(
                f,
                "it is a load-balancer address of service {service} with ipMode Proxy: nodes leave its packets to the load \
                 balancer"
            ),
            Self::NotProxied { service, reason } => write!(f, "service {service} has this address, but {reason}"),
            Self::NoFamily { service, family } => {
                write!(
                    f,
                    "service {service} names this address, but has no cluster IP of {family}, and so is not served in it"
                )
            }
            Self::NodePortAt { service, addresses: None } => {
                write!(f, "it is a NodePort of service {service}, which answers at addresses of the node itself")
            }
            Self::NodePortAt { service, addresses: Some(addresses) } if addresses.is_empty() => {
                write!(
                    f,
                    "it is a NodePort of service {service}, which by the settings answers at no address of this node"
                )
            }
            Self::NodePortAt { service, addresses: Some(addresses) } => {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                write!(f, "it is a NodePort of service {service}, which answers at {}", addresses.join(", "))
            }
            Self::NodePortProtocol { service, protocol } => {
                write!(f, "it is a NodePort of service {service} for {protocol} only")
            }
            Self::Endpoint { service } => {
                write!(f, "it is an endpoint of service {service}: packets go there directly, and need no Service")
            }
            Self::Node => f.write_str("it is an address of a node, which answers it like any host"),
        }
    }
}

/// Looks for what may have been meant. Costs as much as there are Services.
pub fn nearby(index: &Index, place: Place<'_>, packet: Packet) -> Vec<Near> {
    let mut found: Vec<Near> = index.services().flat_map(|service| near_service(service, place, packet)).collect();
    let wanted = SocketAddr::new(packet.destination, packet.port.get());
    for service in index.services() {
        let is_endpoint = index.slices_of(&service.key).any(|slice| {
            let has_port = |port: &(&(_, Protocol), &std::num::NonZeroU16)| {
                port.0.1 == packet.protocol && port.1.get() == wanted.port()
            };
            slice.endpoints.iter().any(|endpoint| endpoint.address == wanted.ip())
                && slice.ports.iter().any(|port| has_port(&port))
        });
        if is_endpoint {
            found.push(Near::Endpoint { service: service.key.clone() });
        }
    }
    if place.desired.node().node_addresses.contains(&packet.destination) {
        found.push(Near::Node);
    }
    found
}

fn near_service(service: &ForwardedService, place: Place<'_>, packet: Packet) -> Vec<Near> {
    let Packet { destination, port, protocol, .. } = packet;
    let key = || service.key.clone();
    let mut found = Vec::new();
    let is_proxy_mode = service.ingress.iter().any(|ingress| ingress.address == destination && ingress.is_proxied);
    let has_address = service.cluster_ips.contains(&destination)
        || service.external_ips.contains(&destination)
        || service.ingress.iter().any(|ingress| ingress.address == destination);
    if has_address {
        found.push(if let Some(reason) = not_proxied(service) {
            Near::NotProxied { service: key(), reason }
        } else if is_proxy_mode {
            Near::ProxyMode { service: key() }
        } else if service.cluster_ip(Family::of(destination)).is_none() {
            Near::NoFamily { service: key(), family: Family::of(destination) }
        } else {
            let same = service.ports.iter().filter(|known| known.port == port);
            let protocols: Vec<Protocol> = same.map(|known| known.protocol).collect();
            if protocols.is_empty() {
                let ports = service.ports.iter().map(|known| format!("{}/{}", known.port, known.protocol)).collect();
                Near::Ports { service: key(), ports }
            } else {
                Near::Protocol { service: key(), protocols }
            }
        });
    }
    for known in service.ports.iter().filter(|known| known.node_port == Some(port) && service.is_proxied) {
        found.push(if known.protocol == protocol {
            let addresses = match place.desired.node().node_ports.of(Family::of(destination)) {
                NodePortAddresses::These(addresses) => Some(addresses.clone()),
                NodePortAddresses::All => None,
            };
            Near::NodePortAt { service: key(), addresses }
        } else {
            Near::NodePortProtocol { service: key(), protocol: known.protocol }
        });
    }
    found
}

/// Why no frontend of a Service is programmed, if none is.
pub fn not_proxied(service: &ForwardedService) -> Option<&'static str> {
    if service.is_proxied {
        return None;
    }
    Some(match service.service_type {
        ServiceType::ExternalName => "it is an ExternalName, which only DNS knows",
        ServiceType::ClusterIp | ServiceType::NodePort | ServiceType::LoadBalancer => {
            if service.labels.contains_key(PROXY_LABEL) {
                "its label service.kubernetes.io/service-proxy-name gives it to another proxy"
            } else if service.labels.contains_key(HEADLESS_LABEL) {
                "its label service.kubernetes.io/headless keeps proxies from it"
            } else {
                "it is headless, so that clients find its endpoints by DNS"
            }
        }
    })
}
