//! A `ServiceCIDR`: ranges that cluster IPs come from.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;
use thiserror::Error;

use super::address::parse_prefix;

/// Why an API object is no ServiceCIDR.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ServiceCidrError {
    /// Without a name there is no key.
    #[error("service CIDR has no name")]
    Unnamed,
}

/// A ServiceCIDR (KEP-1880).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Box<str>,
    /// `spec.cidrs`, at most one of each family.
    pub ranges: Vec<IpNet>,
}

impl TryFrom<&networking::ServiceCIDR> for ServiceCidr {
    type Error = ServiceCidrError;

    fn try_from(object: &networking::ServiceCIDR) -> Result<Self, ServiceCidrError> {
        let name = object.metadata.name.as_deref().ok_or(ServiceCidrError::Unnamed)?;
        let ranges = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
        Ok(Self { name: name.into(), ranges: ranges.iter().filter_map(|text| parse_prefix(text)).collect() })
    }
}
