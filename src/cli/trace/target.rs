//! What `--to` names: an address and port, or a Service.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use thiserror::Error;

use crate::model::Protocol;
use crate::model::address::parse_address;
use crate::model::service::{Service, ServicePort};
use crate::names::ServiceKey;

/// Where a packet is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To an address and port.
    Address(IpAddr, NonZeroU16),
    /// To all addresses of a Service, by the port of this name or number, or by all.
    Service(ServiceKey, Option<String>),
}

/// Why a text names no target.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TargetError {
    /// There is an address alone.
    #[error("the port is missing: write {0}:PORT")]
    NoPort(String),
    /// No number from 1 to 65535.
    #[error("{0:?} is no port: a number from 1 to 65535")]
    Port(String),
    /// An IPv6 address and a port run into each other.
    #[error("write an IPv6 address in brackets: [ADDRESS]:PORT")]
    Brackets,
    /// Nothing that we know.
    #[error("{0:?} is neither ADDRESS:PORT nor service/NAMESPACE/NAME[:PORT]")]
    Unknown(String),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let service = text.strip_prefix("service/").or_else(|| text.strip_prefix("svc/"));
        if let Some(service) = service {
            let (key, port) = match service.split_once(':') {
                Some((key, port)) => (key, Some(port.to_owned())),
                None => (service, None),
            };
            let key = key.parse().map_err(|_| TargetError::Unknown(text.to_owned()))?;
            return Ok(Self::Service(key, port));
        }
        if let Some(address) = parse_address(text.trim_start_matches('[').trim_end_matches(']')) {
            // An address that ends in what may be a port is more often one with a port.
            return Err(match (address, text.starts_with('[')) {
                (IpAddr::V6(_), false) if text.parse::<SocketAddr>().is_err() => TargetError::Brackets,
                (IpAddr::V6(address), _) => TargetError::NoPort(format!("[{address}]")),
                (IpAddr::V4(address), _) => TargetError::NoPort(address.to_string()),
            });
        }
        let (address, port) = text.rsplit_once(':').ok_or_else(|| TargetError::Unknown(text.to_owned()))?;
        let is_bracketed = address.starts_with('[') && address.ends_with(']');
        let address = parse_address(address.trim_start_matches('[').trim_end_matches(']'))
            .ok_or_else(|| TargetError::Unknown(text.to_owned()))?;
        if address.is_ipv6() && !is_bracketed {
            return Err(TargetError::Brackets);
        }
        let port = port.parse().map_err(|_| TargetError::Port(port.to_owned()))?;
        Ok(Self::Address(address, port))
    }
}

/// The addresses and ports at which a Service may be dialled by one protocol or any, NodePorts left out.
pub(super) fn addresses_of(
    service: &Service,
    wanted: Option<&str>,
    protocol: Option<Protocol>,
) -> Vec<(IpAddr, NonZeroU16, Protocol)> {
    let is_wanted = |port: &&ServicePort| {
        let is_named = wanted.is_none_or(|wanted| port.name.as_str() == wanted || port.port.to_string() == wanted);
        is_named && protocol.is_none_or(|protocol| port.protocol == protocol)
    };
    let ports: Vec<&ServicePort> = service.ports.iter().filter(is_wanted).collect();
    let ingress = service.ingress.iter().map(|ingress| ingress.address);
    let addresses = service.cluster_ips.iter().copied().chain(ingress).chain(service.external_ips.iter().copied());
    addresses.flat_map(|address| ports.iter().map(move |port| (address, port.port, port.protocol))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_services_are_told_apart() {
        let target = |text: &str| text.parse::<Target>();
        let port = |number: u16| NonZeroU16::new(number).unwrap();
        assert_eq!(target("192.0.2.1:80"), Ok(Target::Address("192.0.2.1".parse().unwrap(), port(80))));
        assert_eq!(target("[2001:db8::1]:80"), Ok(Target::Address("2001:db8::1".parse().unwrap(), port(80))));
        assert_eq!(target("service/d/web"), Ok(Target::Service(ServiceKey::new("d", "web"), None)));
        assert_eq!(target("svc/d/web:http"), Ok(Target::Service(ServiceKey::new("d", "web"), Some("http".into()))));
        assert_eq!(target("192.0.2.1"), Err(TargetError::NoPort("192.0.2.1".into())));
        assert_eq!(target("[2001:db8::1]"), Err(TargetError::NoPort("[2001:db8::1]".into())));
        assert_eq!(target("2001:db8::1:80"), Err(TargetError::Brackets));
        assert_eq!(target("192.0.2.1:0"), Err(TargetError::Port("0".into())));
        assert_eq!(target("192.0.2.1:http"), Err(TargetError::Port("http".into())));
        for text in ["web", "service/web", "example.org:80", ":80"] {
            assert_eq!(target(text), Err(TargetError::Unknown(text.into())), "{text}");
        }
    }
}
