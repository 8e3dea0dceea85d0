//! How the objects that several components watch are read from the API.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::watch::Observed;
use crate::model::endpoints::{EndpointSlice, SliceError, SliceKey};
use crate::model::node::{Node, NodeError};
use crate::model::service::{Service, ServiceError};
use crate::names::{NodeName, ServiceKey};

impl Observed for Service {
    type Object = core::Service;
    type Key = ServiceKey;
    type Error = ServiceError;

    fn key(metadata: &ObjectMeta) -> Option<ServiceKey> {
        Some(ServiceKey::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?))
    }

    fn read(object: &core::Service) -> Result<Self, ServiceError> {
        Self::try_from(object)
    }
}

impl Observed for EndpointSlice {
    type Object = discovery::EndpointSlice;
    type Key = SliceKey;
    type Error = SliceError;

    fn key(metadata: &ObjectMeta) -> Option<SliceKey> {
        Some(SliceKey { namespace: metadata.namespace.as_deref()?.into(), name: metadata.name.as_deref()?.into() })
    }

    fn read(object: &discovery::EndpointSlice) -> Result<Self, SliceError> {
        Self::try_from(object)
    }
}

impl Observed for Node {
    type Object = core::Node;
    type Key = NodeName;
    type Error = NodeError;

    fn key(metadata: &ObjectMeta) -> Option<NodeName> {
        metadata.name.as_deref().map(NodeName::new)
    }

    fn read(object: &core::Node) -> Result<Self, NodeError> {
        Self::try_from(object)
    }
}
