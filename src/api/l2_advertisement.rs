//! `L2Advertisement`: which nodes answer ARP and NDP for which addresses, on which interfaces.

#![allow(clippy::duplicated_attributes, reason = "every printcolumn has the same keys")]
#![allow(unreachable_pub, reason = "KubeSchema copies each struct, visibility and all, into a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Announces addresses on the local network by ARP and NDP. Absent or empty lists admit everything.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "steelyard.dev",
    version = "v1alpha1",
    kind = "L2Advertisement",
    plural = "l2advertisements",
    category = "steelyard",
    status = "L2AdvertisementStatus",
    derive = "PartialEq",
    doc = "Announces addresses on the local network by ARP and NDP. Absent or empty lists admit everything.",
    printcolumn(name = "Pools", type_ = "string", json_path = ".spec.ipAddressPools"),
    printcolumn(name = "Interfaces", type_ = "string", json_path = ".spec.interfaces"),
    printcolumn(name = "Node-Selectors", type_ = "string", priority = 1, json_path = ".spec.nodeSelectors"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct L2AdvertisementSpec {
    /// Announce addresses of these pools. With `ipAddressPoolSelectors` too, a pool that either names is announced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    pub ip_address_pools: Vec<String>,

    /// Announce addresses of pools with these labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::selectors")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,

    /// Announce from nodes with these labels; one selector of the list is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::selectors")]
    pub node_selectors: Vec<LabelSelector>,

    /// Announce on these interfaces: names (eth0) and globs (eth*, bond?).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63), regex(pattern = r"^[^\s/]+$")))]
    pub interfaces: Vec<String>,

    /// Announce only addresses of Services with these labels; one selector of the list is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::selectors")]
    pub service_selectors: Vec<LabelSelector>,

    /// Nodes that are preferred among those admitted; the highest sum of weights wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub preferred_node_selectors: Vec<PreferredNodes>,
}

/// Nodes that are preferred, and how much.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreferredNodes {
    /// How much: 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,

    /// Labels of the nodes.
    #[schemars(schema_with = "super::schema::selector")]
    pub preference: LabelSelector,
}

/// What was made of an advertisement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L2AdvertisementStatus {
    /// `Ready`: whether the advertisement is in use, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,
}
