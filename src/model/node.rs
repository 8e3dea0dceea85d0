//! A Node as election, endpoint choice and the datapath see it.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use thiserror::Error;

use super::Family;
use super::address::{parse_address, parse_prefix};
use super::selector::Labels;
use crate::names::{NodeName, ZoneName};

/// The label that takes a node out of load balancing (KEP-1143).
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The label that names a node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Why an API object is no node.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NodeError {
    /// Without a name there is no key.
    #[error("node has no name")]
    Unnamed,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: NodeName,
    /// `metadata.labels`, for selectors of advertisements.
    pub labels: Labels,
    /// `topology.kubernetes.io/zone`; an empty label is no zone.
    pub zone: Option<ZoneName>,
    /// `InternalIP` addresses in the object's order: the first of a family is the primary one.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Condition `Ready`.
    pub is_ready: bool,
    /// Condition `NetworkUnavailable`.
    pub is_network_unavailable: bool,
    /// Whether [`EXCLUDE_LABEL`] is set.
    pub is_excluded: bool,
    /// Taint `node.kubernetes.io/out-of-service`: an administrator vouches that the machine is off (KEP-2268).
    pub is_out_of_service: bool,
    /// Taint `ToBeDeletedByClusterAutoscaler`, or a deletion timestamp.
    pub is_leaving: bool,
}

impl Node {
    /// The primary address of a family: the one that the node's NodePorts answer on.
    pub fn primary_address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

impl TryFrom<&core::Node> for Node {
    type Error = NodeError;

    fn try_from(object: &core::Node) -> Result<Self, NodeError> {
        let name = object.metadata.name.as_deref().ok_or(NodeError::Unnamed)?;
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let condition = |kind: &str| {
            let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
            conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
        };
        let tainted = |key: &str| {
            let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
            taints.iter().any(|taint| taint.key == key)
        };
        let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        let pod_cidrs = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
        Ok(Self {
            name: NodeName::new(name),
            zone: labels.get(ZONE_LABEL).filter(|zone| !zone.is_empty()).map(|zone| ZoneName::new(zone.as_str())),
            addresses: addresses
                .iter()
                .filter(|address| address.type_ == "InternalIP")
                .filter_map(|address| parse_address(&address.address))
                .collect(),
            pod_cidrs: pod_cidrs.iter().filter_map(|text| parse_prefix(text)).collect(),
            is_ready: condition("Ready"),
            is_network_unavailable: condition("NetworkUnavailable"),
            is_excluded: labels.contains_key(EXCLUDE_LABEL),
            is_out_of_service: tainted("node.kubernetes.io/out-of-service"),
            is_leaving: tainted("ToBeDeletedByClusterAutoscaler") || object.metadata.deletion_timestamp.is_some(),
            labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_zone_conditions_and_taints() {
        let object: core::Node = serde_saphyr::from_str(
            "metadata: {name: node1, labels: {topology.kubernetes.io/zone: a}}\n\
             spec: {podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64'], taints: [{key: node.kubernetes.io/out-of-service, effect: NoExecute}]}\n\
             status:\n  conditions: [{type: Ready, status: 'True'}, {type: NetworkUnavailable, status: 'False'}]\n  \
             addresses: [{type: Hostname, address: node1}, {type: InternalIP, address: 192.0.2.11}, {type: InternalIP, address: '2001:db8::11'}]",
        )
        .unwrap();
        let node = Node::try_from(&object).unwrap();
        assert_eq!(node.zone, Some(ZoneName::new("a")));
        assert_eq!(node.primary_address(Family::V6), Some("2001:db8::11".parse().unwrap()));
        assert_eq!(node.pod_cidrs.len(), 2);
        assert!(node.is_ready && node.is_out_of_service);
        assert!(!node.is_network_unavailable && !node.is_excluded && !node.is_leaving);
    }

    #[test]
    fn an_empty_zone_is_no_zone() {
        let object: core::Node =
            serde_saphyr::from_str("metadata: {name: n, labels: {topology.kubernetes.io/zone: ''}}").unwrap();
        assert_eq!(Node::try_from(&object).unwrap().zone, None);
    }
}
