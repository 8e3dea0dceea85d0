//! The objects that a trace looks at: as the API or files have them, read by the model like the agents read them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde_json::Value;

use crate::api::node_announcement::NodeAnnouncement;
use crate::model::address::parse_address;
use crate::model::endpoints::EndpointSlice;
use crate::model::node::Node;
use crate::model::service::Service;
use crate::model::service_cidr::ServiceCidr;
use crate::names::NodeName;
use crate::runtime::telemetry::chain;

/// What the agent of a node that forwards says of itself.
const FORWARDS: &str = "On";

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) services: Vec<Service>,
    pub(super) slices: Vec<EndpointSlice>,
    pub(super) nodes: Vec<Node>,
    pub(super) service_cidrs: BTreeSet<IpNet>,
    /// Who announces what.
    pub(super) announcements: Vec<(NodeName, IpAddr)>,
    /// Nodes whose agents do not forward: in which mode they are instead.
    pub(super) idle: BTreeMap<NodeName, String>,
    /// The arguments of our agents' container.
    pub(super) agent_arguments: Option<Vec<String>>,
    /// What was left out, and why.
    pub(super) warnings: Vec<String>,
}

impl Objects {
    /// Takes an object of any kind; those of other kinds say nothing about packets.
    ///
    /// # Errors
    /// When it is not what its kind says.
    pub(super) fn add(&mut self, kind: &str, object: Value) -> Result<(), serde_json::Error> {
        match kind {
            "Service" => self.add_service(&serde_json::from_value(in_some_namespace(object))?),
            "EndpointSlice" => self.add_slice(&serde_json::from_value(in_some_namespace(object))?),
            "Node" => self.add_node(&serde_json::from_value(object)?),
            "ServiceCIDR" => self.add_service_cidr(&serde_json::from_value(object)?),
            "NodeAnnouncement" => self.add_announcement(&serde_json::from_value(object)?),
            "DaemonSet" => self.add_daemon_set(&serde_json::from_value(object)?),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn add_service(&mut self, object: &core::Service) {
        match Service::try_from(object) {
            Ok(service) => self.services.push(service),
            Err(error) => self.warn("Service", object.metadata.name.as_deref(), &error),
        }
    }

    pub(super) fn add_slice(&mut self, object: &discovery::EndpointSlice) {
        match EndpointSlice::try_from(object) {
            Ok(slice) => self.slices.push(slice),
            Err(error) => self.warn("EndpointSlice", object.metadata.name.as_deref(), &error),
        }
    }

    pub(super) fn add_node(&mut self, object: &core::Node) {
        match Node::try_from(object) {
            Ok(node) => self.nodes.push(node),
            Err(error) => self.warn("Node", object.metadata.name.as_deref(), &error),
        }
    }

    pub(super) fn add_service_cidr(&mut self, object: &networking::ServiceCIDR) {
        match ServiceCidr::try_from(object) {
            Ok(cidr) => self.service_cidrs.extend(cidr.ranges),
            Err(error) => self.warn("ServiceCIDR", object.metadata.name.as_deref(), &error),
        }
    }

    pub(super) fn add_announcement(&mut self, object: &NodeAnnouncement) {
        let node = object.metadata.name.as_deref().map(NodeName::new);
        let mode = object.status.as_ref().and_then(|status| status.datapath.clone());
        self.idle.extend(node.clone().zip(mode.filter(|mode| mode != FORWARDS)));
        let announced = object.status.iter().flat_map(|status| &status.announcements);
        self.announcements
            .extend(announced.filter_map(|announced| Some((node.clone()?, parse_address(&announced.address)?))));
    }

    /// Those of our agents are known by the labels that the chart gives them.
    pub(super) fn add_daemon_set(&mut self, object: &DaemonSet) {
        let labels = object.metadata.labels.as_ref();
        let has =
            |key: &str, value: &str| labels.and_then(|labels| labels.get(key)).is_some_and(|found| found == value);
        if !has("app.kubernetes.io/name", "steelyard") || !has("app.kubernetes.io/component", "node") {
            return;
        }
        let spec = object.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        let container = spec.into_iter().flat_map(|spec| &spec.containers).find(|container| container.name == "node");
        self.agent_arguments = container.and_then(|container| container.args.clone()).or(self.agent_arguments.take());
    }

    fn warn(&mut self, kind: &str, name: Option<&str>, error: &dyn std::error::Error) {
        let name = name.unwrap_or("without a name");
        self.warnings.push(format!("{kind} {name} counts as absent: {}", chain(error)));
    }
}

/// Manifests that people write may leave the namespace to `kubectl`.
fn in_some_namespace(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.entry("namespace").or_insert_with(|| "default".into());
    }
    object
}
