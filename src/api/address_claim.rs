//! `AddressClaim`: who holds an address, written by the controller alone.
//!
//! The object is named after its address, and the API server holds names unique: creating one is the atomic step that
//! makes an address ours. Everything that was *decided* stands in the spec, so that each decision is one write; the
//! status holds what was *observed* on the wire.

#![allow(clippy::duplicated_attributes, reason = "every printcolumn has the same keys")]
#![allow(unreachable_pub, reason = "KubeSchema copies each struct, visibility and all, into a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::Address;

/// Who holds an address, or held it until lately.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "steelyard.dev",
    version = "v1alpha1",
    kind = "AddressClaim",
    plural = "addressclaims",
    category = "steelyard",
    status = "AddressClaimStatus",
    derive = "PartialEq",
    doc = "Who holds an address, or held it until lately. Written by the controller; named after the address.",
    validation = Rule::new(
        "self.spec.address.contains(':') \
         ? isIP(self.metadata.name.replace('-', ':')) && ip(self.metadata.name.replace('-', ':')) == ip(self.spec.address) \
         : self.metadata.name.replace('-', '.') == self.spec.address"
    ).message("metadata.name must spell spec.address, with dashes").reason(Reason::FieldValueInvalid),
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.holders[0].namespace"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.holders[0].name"),
    printcolumn(name = "Released", type_ = "date", json_path = ".spec.releasedAt"),
    printcolumn(
        name = "Last-Holder",
        type_ = "string",
        priority = 1,
        json_path = ".spec.lastHolder.name"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AddressClaimSpec {
    /// The address. Never changes.
    #[x_kube(validation = Rule::new("self == oldSelf").message("the address of a claim never changes")
        .reason(Reason::FieldValueForbidden))]
    pub address: Address,

    /// The pool that it was assigned from.
    #[schemars(length(min = 1, max = 253))]
    pub pool: String,

    /// The Services that hold it: one, or several that share it. None while it rests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["namespace".into(), "name".into()]))]
    #[schemars(length(max = 1024))]
    pub holders: Vec<Holder>,

    /// Since when nobody holds it. It rests for the pool's cooldown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Time>,

    /// Who held it last, and gets it back without waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_holder: Option<Holder>,

    /// Until when nodes go on serving it for a holder that has moved to another address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lingers_until: Option<Time>,
}

/// A Service that holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,

    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// Its UID, which tells it from a later Service of the same name.
    #[schemars(length(max = 64))]
    pub uid: String,
}

/// What was seen of an address on the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressClaimStatus {
    /// When it was last probed and nobody answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed_at: Option<Time>,

    /// Somebody else answers for it: it is not handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
}

/// A foreign answer for an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quarantine {
    /// The hardware address that answered.
    pub mac: String,

    /// When it was heard first.
    pub since: Time,

    /// When it will be probed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}
