//! An address claim, read once: who holds an address, or held it until lately.

use std::net::IpAddr;

use jiff::Timestamp;
use thiserror::Error;

use super::address::parse_address;
use crate::api::address_claim::{AddressClaim, Holder as ApiHolder};
use crate::api::claim_name::claimed_address;
use crate::names::{ClaimName, PoolName, ServiceKey};

/// Why an object is no claim.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ClaimError {
    /// Without a name there is no key.
    #[error("claim has no name")]
    Unnamed,
    /// The name does not spell the address, so that uniqueness of names would not be uniqueness of addresses.
    #[error("claim is not named after its address {address:?}")]
    Misnamed {
        /// The address as written.
        address: String,
    },
}

/// A Service that holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Namespace and name.
    pub service: ServiceKey,
    /// Its UID.
    pub uid: String,
}

impl From<&ApiHolder> for Holder {
    fn from(holder: &ApiHolder) -> Self {
        Self { service: ServiceKey::new(holder.namespace.as_str(), holder.name.as_str()), uid: holder.uid.clone() }
    }
}

impl From<&Holder> for ApiHolder {
    fn from(holder: &Holder) -> Self {
        Self {
            namespace: holder.service.namespace.to_string(),
            name: holder.service.name.to_string(),
            uid: holder.uid.clone(),
        }
    }
}

/// What the controller has decided about an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The pool that it was assigned from.
    pub pool: PoolName,
    /// Who holds it; nobody while it rests.
    pub holders: Vec<Holder>,
    /// Since when nobody holds it.
    pub released_at: Option<Timestamp>,
    /// Who held it last.
    pub last_holder: Option<Holder>,
    /// Until when nodes serve it for a holder that has moved on.
    pub lingers_until: Option<Timestamp>,
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// `metadata.name`.
    pub name: ClaimName,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`, carried into writes.
    pub resource_version: String,
    /// The address.
    pub address: IpAddr,
    /// What has been decided about it.
    pub tenure: Tenure,
    /// Whether somebody else answers for it.
    pub is_quarantined: bool,
    /// Whether the object is being deleted.
    pub is_deleting: bool,
}

impl Claim {
    /// Whether a Service of this name holds the address, be it this Service or its predecessor.
    pub fn is_held_by(&self, service: &ServiceKey) -> bool {
        self.tenure.holders.iter().any(|holder| holder.service == *service)
    }

    /// The holders besides a Service and its predecessors.
    pub fn others(&self, service: &ServiceKey) -> Vec<Holder> {
        self.tenure.holders.iter().filter(|holder| holder.service != *service).cloned().collect()
    }
}

impl TryFrom<&AddressClaim> for Claim {
    type Error = ClaimError;

    fn try_from(object: &AddressClaim) -> Result<Self, ClaimError> {
        let name = ClaimName::new(object.metadata.name.as_deref().ok_or(ClaimError::Unnamed)?);
        let spec = &object.spec;
        let address = parse_address(&spec.address.0)
            .filter(|address| claimed_address(&name) == Some(*address))
            .ok_or_else(|| ClaimError::Misnamed { address: spec.address.0.clone() })?;
        Ok(Self {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            address,
            tenure: Tenure {
                pool: PoolName::new(spec.pool.as_str()),
                holders: spec.holders.iter().map(Holder::from).collect(),
                released_at: spec.released_at.as_ref().map(|time| time.0),
                last_holder: spec.last_holder.as_ref().map(Holder::from),
                lingers_until: spec.lingers_until.as_ref().map(|time| time.0),
            },
            is_quarantined: object.status.as_ref().is_some_and(|status| status.quarantine.is_some()),
            is_deleting: object.metadata.deletion_timestamp.is_some(),
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_must_be_named_after_its_address() {
        let read = |yaml: &str| Claim::try_from(&serde_saphyr::from_str::<AddressClaim>(yaml).unwrap());
        let head = "apiVersion: steelyard.dev/v1alpha1\nkind: AddressClaim\n";
        let claim = read(&format!(
            "{head}metadata: {{name: 192-0-2-1}}\nspec: {{address: 192.0.2.1, pool: p, holders: [{{namespace: a, name: b, uid: c}}]}}"
        ))
        .unwrap();
        assert!(claim.is_held_by(&ServiceKey::new("a", "b")));
        let misnamed = read(&format!("{head}metadata: {{name: 192-0-2-1}}\nspec: {{address: 192.0.2.2, pool: p}}"));
        assert_eq!(misnamed, Err(ClaimError::Misnamed { address: "192.0.2.2".into() }));
    }
}
