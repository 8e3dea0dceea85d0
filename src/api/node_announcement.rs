//! `NodeAnnouncement`: what one node announces, written by that node's agent alone.
//!
//! The object has the node's name and no spec. Agents write it when something changes, never on a timer, and so never
//! need the right to write Services; the controller carries what stands here to the Services.

#![allow(clippy::duplicated_attributes, reason = "every printcolumn has the same keys")]
#![allow(unreachable_pub, reason = "KubeSchema copies each struct, visibility and all, into a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The status of a `NodeAnnouncement` is all there is: nobody asks a node for anything by this object.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "steelyard.dev",
    version = "v1alpha1",
    kind = "NodeAnnouncement",
    plural = "nodeannouncements",
    category = "steelyard",
    status = "NodeAnnouncementStatus",
    derive = "PartialEq",
    no_spec,
    doc = "What one node announces. Written by the agent of the node whose name it has.",
    printcolumn(name = "Announced", type_ = "integer", json_path = ".status.announced"),
    printcolumn(name = "Datapath", type_ = "string", json_path = ".status.datapath"),
    printcolumn(name = "Problem", type_ = "string", json_path = ".status.problems[0].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct NodeAnnouncementSpec {}

/// What a node announces and what it cannot do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeAnnouncementStatus {
    /// How many addresses the node announces.
    #[serde(default)]
    pub announced: i32,

    /// The addresses that the node announces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address", "interface"]))]
    pub announcements: Vec<Announcement>,

    /// Whether the agent forwards Service traffic: `On`, `Off`, or `Waiting` for the cluster's decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<String>,

    /// Whether another service proxy, kube-proxy say, runs on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_proxy: Option<ServiceProxy>,

    /// What the node's agent cannot do, and for whom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub problems: Vec<Problem>,
}

/// What an agent knows of another service proxy on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceProxy {
    /// Whether one runs.
    pub detected: bool,

    /// What shows it, for people.
    #[serde(default)]
    pub evidence: String,
}

/// One address that is announced on one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// The address, in its usual short form.
    pub address: String,

    /// The interface.
    pub interface: String,

    /// The hardware address that answers carry.
    pub mac: String,

    /// Since when. To the microsecond: within the second in which a node dies its successor takes over.
    pub since: MicroTime,

    /// Why this node: a CamelCase word such as `Elected` or `PreviousOwnerGone`.
    pub reason: String,
}

/// Something that a node's agent cannot do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The part of the agent: `speaker` or `datapath`.
    pub component: String,

    /// The Service that is concerned, as `namespace/name`; absent for the node as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,

    /// Why, as a CamelCase word.
    pub reason: String,

    /// What happened, for people.
    pub message: String,

    /// Since when.
    pub since: Time,
}
