//! Reads objects from the API.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use kube::api::ListParams;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::objects::Objects;
use crate::api::node_announcement::NodeAnnouncement;
use crate::runtime::pages;
use crate::runtime::telemetry::chain;

/// Why there are no objects to look at.
#[derive(Debug, Error)]
#[error("failed to list {kind}")]
pub struct ListError {
    kind: String,
    source: kube::Error,
}

/// Reads all that a trace needs. What only adds to it may be missing: kinds that this cluster does not have, or that this
/// user may not list.
pub(super) async fn read(client: &Client) -> Result<Objects, ListError> {
    let mut objects = Objects::default();
    let everything = ListParams::default;
    list(client, everything(), |service: core::Service| objects.add_service(&service)).await?;
    list(client, everything(), |slice: discovery::EndpointSlice| objects.add_slice(&slice)).await?;
    list(client, everything(), |node: core::Node| objects.add_node(&node)).await?;
    let agents = everything().labels("app.kubernetes.io/name=steelyard,app.kubernetes.io/component=node");
    let outcomes = [
        list(client, everything(), |cidr: networking::ServiceCIDR| objects.add_service_cidr(&cidr)).await,
        list(client, everything(), |node: NodeAnnouncement| objects.add_announcement(&node)).await,
        list(client, agents, |agents: DaemonSet| objects.add_daemon_set(&agents)).await,
    ];
    let missing = outcomes.into_iter().filter_map(Result::err);
    objects.warnings.extend(missing.map(|error| format!("{}; the trace goes on without", chain(&error))));
    Ok(objects)
}

async fn list<K>(client: &Client, parameters: ListParams, take: impl FnMut(K)) -> Result<(), ListError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let failed = |source| ListError { kind: K::plural(&()).into_owned(), source };
    pages::each(client.clone(), None, parameters, take).await.map_err(failed)
}
