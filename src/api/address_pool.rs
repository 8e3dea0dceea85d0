//! `IPAddressPool`: addresses that Services may get, and which Services.

#![allow(clippy::duplicated_attributes, reason = "every printcolumn has the same keys")]
#![allow(unreachable_pub, reason = "KubeSchema copies each struct, visibility and all, into a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::schema::{Address, AddressRange, Addresses};

/// Addresses that Services of type LoadBalancer may get.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "steelyard.dev",
    version = "v1alpha1",
    kind = "IPAddressPool",
    plural = "ipaddresspools",
    shortname = "pool",
    category = "steelyard",
    status = "IPAddressPoolStatus",
    derive = "PartialEq",
    doc = "Addresses that Services of type LoadBalancer may get, and which Services may get them.",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(name = "Auto-Assign", type_ = "boolean", json_path = ".spec.autoAssign"),
    printcolumn(name = "Assigned", type_ = "integer", json_path = ".status.assigned"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.available"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Avoid-Buggy-IPs", type_ = "boolean", priority = 1, json_path = ".spec.avoidBuggyIPs"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolSpec {
    /// The addresses: CIDRs (192.0.2.0/24, 2001:db8::/120) and ranges with their first and last address
    /// (192.0.2.10-192.0.2.20), of both families as one likes.
    #[schemars(length(min = 1, max = 256))]
    pub addresses: Vec<AddressRange>,

    /// Whether a Service that asks for no particular pool or address may get one from here.
    #[serde(default = "yes")]
    pub auto_assign: bool,

    /// Leave out IPv4 addresses that end in .0 or .255, which some old client networks cannot reach.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,

    /// Addresses of this pool that are never handed out: single ones, CIDRs and ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub exclude: Vec<Addresses>,

    /// Addresses of this pool that are kept for one Service each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub reservations: Vec<Reservation>,

    /// How long an address rests after its release before another Service may get it: a duration such as 60s or 5m.
    /// The Service that had it gets it back at once.
    #[serde(default = "default_cooldown")]
    #[schemars(length(max = 32), regex(pattern = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"))]
    #[x_kube(validation = Rule::new("duration(self) <= duration('720h')")
        .message("must be a duration such as 60s or 5m, at most 720h").reason(Reason::FieldValueInvalid))]
    pub cooldown: Duration,

    /// Which Services may get addresses from here. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,

    /// How many addresses a namespace may hold. Not enforced yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
}

/// Addresses that are kept for one Service.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.address) != has(self.addresses)")
    .message("exactly one of address and addresses must be given").reason(Reason::FieldValueInvalid))]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    /// The one address that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,

    /// The addresses that are kept: single ones, CIDRs and ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub addresses: Option<Vec<Addresses>>,

    /// The namespace of the Service that they are kept for.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,

    /// The name of the Service that they are kept for.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// Which Services may get addresses of a pool, and how early the pool is asked.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// The order among pools that admit a Service: the lower number is asked first; 0 is asked last.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub priority: i32,

    /// Admit Services of these namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    pub namespaces: Vec<String>,

    /// Admit Services of namespaces with these labels, besides those in `namespaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::selectors")]
    pub namespace_selectors: Vec<LabelSelector>,

    /// Admit only Services with these labels; one selector of the list is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::selectors")]
    pub service_selectors: Vec<LabelSelector>,
}

/// How many addresses of a pool may be held.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// The most addresses that Services of one namespace may hold together.
    #[schemars(range(min = 1))]
    pub per_namespace: i64,
}

/// What the controller made of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolStatus {
    /// `Ready`: whether addresses are handed out, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// The spec in force. It differs from `spec` while a change is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "accepted")]
    pub accepted: Option<IPAddressPoolSpec>,

    /// Addresses held by Services.
    #[serde(default)]
    pub assigned: i64,

    /// Addresses that could be handed out now; the largest number where there are more than fit.
    #[serde(default)]
    pub available: i64,

    /// IPv4 addresses held by Services.
    #[serde(default, rename = "assignedIPv4")]
    pub assigned_ipv4: i64,

    /// IPv6 addresses held by Services.
    #[serde(default, rename = "assignedIPv6")]
    pub assigned_ipv6: i64,

    /// IPv4 addresses that could be handed out now.
    #[serde(default, rename = "availableIPv4")]
    pub available_ipv4: i64,

    /// IPv6 addresses that could be handed out now; the largest number where there are more than fit.
    #[serde(default, rename = "availableIPv6")]
    pub available_ipv6: i64,
}

/// The accepted spec was checked when it was written; checking it again could only stop us from reporting it.
fn accepted(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "The spec in force. It differs from `spec` while a change is refused.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

const fn yes() -> bool {
    true
}

/// How long an address rests where a pool says nothing.
pub fn default_cooldown() -> Duration {
    DEFAULT_COOLDOWN.into()
}

/// How long an address rests where a pool says nothing, or is gone.
pub const DEFAULT_COOLDOWN: std::time::Duration = std::time::Duration::from_secs(60);
