//! What the datapath watches: Services, their endpoints, this node, the ranges of cluster IPs, this machine's addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::service::ForwardedService;
use crate::model::endpoints::EndpointSlice;
use crate::model::node::Node;
use crate::model::service::{Service, ServiceError};
use crate::model::service_cidr::{ServiceCidr, ServiceCidrError};
use crate::names::ServiceKey;
use crate::netlink::nf_tables::Foreign;
use crate::runtime::watch::{self, Observed};

/// One observation.
#[derive(Debug)]
pub enum Event {
    /// Of a Service.
    Service(watch::Event<ForwardedService>),
    /// Of an EndpointSlice.
    Slice(watch::Event<EndpointSlice>),
    /// Of a Node; only this node's own matters.
    Node(watch::Event<Node>),
    /// Of a range of cluster IPs.
    ServiceCidr(watch::Event<ServiceCidr>),
    /// Of all addresses of this machine's interfaces.
    LocalAddresses(BTreeSet<IpAddr>),
    /// Of somebody else who changed our tables in the kernel.
    Foreign(Foreign),
}

impl Observed for ForwardedService {
    type Object = core::Service;
    type Key = ServiceKey;
    type Error = ServiceError;

    fn key(metadata: &ObjectMeta) -> Option<ServiceKey> {
        Service::key(metadata)
    }

    fn read(object: &core::Service) -> Result<Self, ServiceError> {
        Service::try_from(object).map(Self::from)
    }
}

impl Observed for ServiceCidr {
    type Object = networking::ServiceCIDR;
    type Key = Box<str>;
    type Error = ServiceCidrError;

    fn key(metadata: &ObjectMeta) -> Option<Box<str>> {
        metadata.name.as_deref().map(Into::into)
    }

    fn read(object: &networking::ServiceCIDR) -> Result<Self, ServiceCidrError> {
        Self::try_from(object)
    }
}
