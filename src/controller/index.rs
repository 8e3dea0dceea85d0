//! What the controller has seen: Services, pools, claims, namespaces and the nodes' announcements.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::seen::{Seen, Versioned};
use crate::api::address_pool::{IPAddressPoolSpec, IPAddressPoolStatus};
use crate::model::claim::Claim;
use crate::model::selector::Labels;
use crate::model::service::Service;
use crate::names::{ClaimName, InterfaceName, NodeName, PoolName, ServiceKey};

/// A Service with what only the controller asks of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceObject {
    /// The Service.
    pub service: Service,
    /// `status.conditions`, everybody's.
    pub conditions: Vec<Condition>,
    /// Whether an entry of `status.loadBalancer.ingress` has a host name, as only other load balancers write.
    pub has_hostname: bool,
    /// The annotation `decided-on`, which stands only between two of our writes.
    pub decided_on: Option<String>,
}

/// A pool as it stands in the API.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolObject {
    /// `metadata.name`.
    pub name: PoolName,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`, carried into writes.
    pub resource_version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// `spec`, unchecked.
    pub spec: IPAddressPoolSpec,
    /// `status`.
    pub status: IPAddressPoolStatus,
}

/// A namespace's labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceObject {
    /// `metadata.name`.
    pub name: Box<str>,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.labels`.
    pub labels: Labels,
}

/// What a node says that it announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeObject {
    /// The node.
    pub node: NodeName,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// Its addresses, interface and time.
    pub announcements: Vec<(IpAddr, InterfaceName, Timestamp)>,
    /// What its datapath cannot do for which Service.
    pub troubles: BTreeSet<Trouble>,
}

/// What a node's datapath cannot do for a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    /// The Service.
    pub service: ServiceKey,
    /// Why, as a CamelCase word.
    pub reason: String,
    /// What happened.
    pub message: String,
}

impl Versioned for ServiceObject {
    type Key = ServiceKey;
    fn key(&self) -> ServiceKey {
        self.service.key.clone()
    }
    fn resource_version(&self) -> &str {
        &self.service.resource_version
    }
}

impl Versioned for PoolObject {
    type Key = PoolName;
    fn key(&self) -> PoolName {
        self.name.clone()
    }
    fn resource_version(&self) -> &str {
        &self.resource_version
    }
}

impl Versioned for Claim {
    type Key = ClaimName;
    fn key(&self) -> ClaimName {
        self.name.clone()
    }
    fn resource_version(&self) -> &str {
        &self.resource_version
    }
}

impl Versioned for NamespaceObject {
    type Key = Box<str>;
    fn key(&self) -> Box<str> {
        self.name.clone()
    }
    fn resource_version(&self) -> &str {
        &self.resource_version
    }
}

impl Versioned for NodeObject {
    type Key = NodeName;
    fn key(&self) -> NodeName {
        self.node.clone()
    }
    fn resource_version(&self) -> &str {
        &self.resource_version
    }
}

/// Everything seen.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// All Services of the cluster.
    pub services: Seen<ServiceObject>,
    /// All pools.
    pub pools: Seen<PoolObject>,
    /// All claims.
    pub claims: Seen<Claim>,
    /// All namespaces.
    pub namespaces: Seen<NamespaceObject>,
    /// All nodes' announcements.
    pub nodes: Seen<NodeObject>,
}

impl Index {
    /// Whether every first list is in.
    pub fn is_synced(&self) -> bool {
        self.services.is_listed()
            && self.pools.is_listed()
            && self.claims.is_listed()
            && self.namespaces.is_listed()
            && self.nodes.is_listed()
    }

    /// The claims of each Service, by the name under which it holds them.
    pub fn claims_by_holder(&self) -> BTreeMap<&ServiceKey, Vec<&Claim>> {
        let mut held: BTreeMap<&ServiceKey, Vec<&Claim>> = BTreeMap::new();
        for claim in self.claims.values().filter(|claim| !claim.is_deleting) {
            for holder in &claim.tenure.holders {
                held.entry(&holder.service).or_default().push(claim);
            }
        }
        held
    }
}

#[cfg(test)]
pub(in crate::controller) mod testing {
    //! Objects for tests, from the few words that matter.

    use k8s_openapi::api::core::v1 as core;

    use super::*;

    /// A pool that was created at `age` seconds of the epoch.
    pub(in crate::controller) fn pool(name: &str, age: i64, spec: &str) -> PoolObject {
        PoolObject {
            name: name.into(),
            uid: format!("pool-{name}"),
            resource_version: "1".into(),
            generation: 1,
            created: Some(Timestamp::from_second(age).unwrap()),
            spec: serde_saphyr::from_str(spec).unwrap(),
            status: IPAddressPoolStatus::default(),
        }
    }

    /// A LoadBalancer Service in namespace `default`, created at `age` seconds of the epoch.
    pub(in crate::controller) fn service(name: &str, age: i64, spec: &str, annotations: &str) -> ServiceObject {
        let text = format!(
            "metadata: {{name: {name}, namespace: default, uid: uid-{name}, resourceVersion: '1', annotations: {annotations}}}\nspec: {spec}"
        );
        let object: core::Service = serde_saphyr::from_str(&text).unwrap();
        let mut service = Service::try_from(&object).unwrap();
        service.created = Some(Timestamp::from_second(age).unwrap());
        ServiceObject { service, conditions: Vec::new(), has_hostname: false, decided_on: None }
    }
}
