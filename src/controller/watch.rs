//! The controller's watches: Services, pools, claims, namespaces and the nodes' announcements.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::runtime::watcher;
use thiserror::Error;
use tokio::sync::mpsc;

use super::index::{Index, NamespaceObject, NodeObject, PoolObject, ServiceObject, Trouble};
use super::seen::{Gone, Seen, Versioned};
use crate::api::annotations::DECIDED_ON;
use crate::api::{AddressClaim, IPAddressPool, NodeAnnouncement};
use crate::model::address::parse_address;
use crate::model::claim::{Claim, ClaimError};
use crate::model::service::{Service, ServiceError};
use crate::names::{ClaimName, InterfaceName, NodeName, PoolName, ServiceKey};
use crate::runtime::watch::{Event as WatchEvent, Observed, forward, sink};

/// The part of an agent whose problems with a Service are the Service's.
const DATAPATH: &str = "datapath";

/// Why an object is not used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// Without a name there is no key.
    #[error("object has no name")]
    Unnamed,
}

/// Something that the controller has seen.
#[derive(Debug)]
pub enum Event {
    /// Of the Services.
    Services(WatchEvent<ServiceObject>),
    /// Of the pools.
    Pools(WatchEvent<PoolObject>),
    /// Of the claims.
    Claims(WatchEvent<Claim>),
    /// Of the namespaces.
    Namespaces(WatchEvent<NamespaceObject>),
    /// Of the nodes' announcements.
    Nodes(WatchEvent<NodeObject>),
    /// This replica has begun or ceased to lead.
    Leadership,
}

impl Index {
    /// Takes one observation in.
    pub fn observe(&mut self, event: Event) {
        match event {
            Event::Services(event) => take(&mut self.services, event),
            Event::Pools(event) => take(&mut self.pools, event),
            Event::Claims(event) => take(&mut self.claims, event),
            Event::Namespaces(event) => take(&mut self.namespaces, event),
            Event::Nodes(event) => take(&mut self.nodes, event),
            Event::Leadership => {}
        }
    }
}

fn take<V>(seen: &mut Seen<V>, event: WatchEvent<V>)
where
    V: Versioned + Observed<Key = Gone<<V as Versioned>::Key>>,
{
    match event {
        WatchEvent::Replaced(values) => seen.replaced(values),
        WatchEvent::Applied(value) => seen.applied(value),
        WatchEvent::Removed(gone) => seen.removed(&gone),
    }
}

/// Watches everything until one watch ends, which it does when nobody listens any more; gives its name.
pub async fn watch(client: Client, sender: mpsc::Sender<Event>) -> &'static str {
    // The first list of Services is long: pages keep the API server's and our own peak small.
    let config = || watcher::Config::default().page_size(500);
    tokio::select! {
        () = forward(client.clone(), config(), vec![sink(sender.clone(), Event::Services)]) => "watch of Services",
        () = forward(client.clone(), config(), vec![sink(sender.clone(), Event::Pools)]) => "watch of IPAddressPools",
        () = forward(client.clone(), config(), vec![sink(sender.clone(), Event::Claims)]) => "watch of AddressClaims",
        () = forward(client.clone(), config(), vec![sink(sender.clone(), Event::Namespaces)]) => "watch of Namespaces",
        () = forward(client.clone(), config(), vec![sink(sender.clone(), Event::Nodes)]) => "watch of NodeAnnouncements",
    }
}

fn gone<K>(metadata: &ObjectMeta, key: K) -> Gone<K> {
    Gone { key, resource_version: metadata.resource_version.clone().unwrap_or_default() }
}

impl Observed for ServiceObject {
    type Object = core::Service;
    type Key = Gone<ServiceKey>;
    type Error = ServiceError;

    fn key(metadata: &ObjectMeta) -> Option<Self::Key> {
        let key = ServiceKey::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
        Some(gone(metadata, key))
    }

    fn read(object: &core::Service) -> Result<Self, ServiceError> {
        let status = object.status.as_ref();
        let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref()).unwrap_or_default();
        Ok(Self {
            service: Service::try_from(object)?,
            conditions: status.and_then(|status| status.conditions.clone()).unwrap_or_default(),
            decided_on: object.metadata.annotations.as_ref().and_then(|all| all.get(DECIDED_ON).cloned()),
            has_hostname: ingress.iter().any(|ingress| ingress.hostname.is_some()),
        })
    }
}

impl Observed for PoolObject {
    type Object = IPAddressPool;
    type Key = Gone<PoolName>;
    type Error = ReadError;

    fn key(metadata: &ObjectMeta) -> Option<Self::Key> {
        Some(gone(metadata, PoolName::new(metadata.name.as_deref()?)))
    }

    fn read(object: &IPAddressPool) -> Result<Self, ReadError> {
        let metadata = &object.metadata;
        Ok(Self {
            name: PoolName::new(metadata.name.as_deref().ok_or(ReadError::Unnamed)?),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            spec: object.spec.clone(),
            status: object.status.clone().unwrap_or_default(),
        })
    }
}

impl Observed for Claim {
    type Object = AddressClaim;
    type Key = Gone<ClaimName>;
    type Error = ClaimError;

    fn key(metadata: &ObjectMeta) -> Option<Self::Key> {
        Some(gone(metadata, ClaimName::new(metadata.name.as_deref()?)))
    }

    fn read(object: &AddressClaim) -> Result<Self, ClaimError> {
        Self::try_from(object)
    }
}

impl Observed for NamespaceObject {
    type Object = core::Namespace;
    type Key = Gone<Box<str>>;
    type Error = ReadError;

    fn key(metadata: &ObjectMeta) -> Option<Self::Key> {
        Some(gone(metadata, metadata.name.as_deref()?.into()))
    }

    fn read(object: &core::Namespace) -> Result<Self, ReadError> {
        Ok(Self {
            name: object.metadata.name.as_deref().ok_or(ReadError::Unnamed)?.into(),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            labels: object.metadata.labels.clone().unwrap_or_default(),
        })
    }
}

impl Observed for NodeObject {
    type Object = NodeAnnouncement;
    type Key = Gone<NodeName>;
    type Error = ReadError;

    fn key(metadata: &ObjectMeta) -> Option<Self::Key> {
        Some(gone(metadata, NodeName::new(metadata.name.as_deref()?)))
    }

    fn read(object: &NodeAnnouncement) -> Result<Self, ReadError> {
        let announcements = object.status.iter().flat_map(|status| &status.announcements);
        let problems = object.status.iter().flat_map(|status| &status.problems);
        Ok(Self {
            node: NodeName::new(object.metadata.name.as_deref().ok_or(ReadError::Unnamed)?),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            announcements: announcements
                .filter_map(|announcement| {
                    let address = parse_address(&announcement.address)?;
                    Some((address, InterfaceName::new(announcement.interface.as_str()), announcement.since.0))
                })
                .collect(),
            troubles: problems
                .filter(|problem| problem.component == DATAPATH)
                .filter_map(|problem| {
                    let service = problem.service.as_deref()?.parse().ok()?;
                    Some(Trouble { service, reason: problem.reason.clone(), message: problem.message.clone() })
                })
                .collect(),
        })
    }
}
