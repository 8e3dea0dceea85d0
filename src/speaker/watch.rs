//! Where the speaker's observations come from: six kinds of the API, this node's interfaces, membership and the datapath.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::runtime::watcher::Config;
use tokio::sync::{Notify, mpsc, watch};

use super::index::{AnnouncedService, Change, Observation, PoolLabels, SeenNode, UsableEndpoints};
use crate::api;
use crate::membership::Membership;
use crate::model::advertisement::{AdvertisementError, L2Advertisement};
use crate::model::claim::{Claim, ClaimError};
use crate::model::endpoints::{EndpointSlice, SERVICE_LABEL, SliceError, SliceKey};
use crate::model::link::Links;
use crate::model::node::{Node, NodeError};
use crate::model::programmed::Programmed;
use crate::model::service::{Service, ServiceError};
use crate::names::{AdvertisementName, ClaimName, NodeName, PoolName, ServiceKey};
use crate::runtime::watch::{Event, Observed, all, forward};

/// Starts every source. They end when the receiver is dropped.
pub(super) fn start(
    client: &Client,
    links: watch::Receiver<Arc<Links>>,
    membership: &Membership,
    programmed: watch::Receiver<Arc<Programmed>>,
    ended: Arc<Notify>,
    sender: &mpsc::Sender<Observation>,
) {
    follow::<SeenNode>(client, Config::default(), sender, Observation::Node);
    follow::<AnnouncedService>(client, Config::default(), sender, Observation::Service);
    // Slices of headless Services, which nobody announces, never leave the API server.
    let slices = format!("{SERVICE_LABEL},!service.kubernetes.io/headless");
    follow::<UsableEndpoints>(client, Config::default().labels(&slices), sender, Observation::Endpoints);
    follow::<PoolLabels>(client, Config::default(), sender, Observation::Pool);
    follow::<L2Advertisement>(client, Config::default(), sender, Observation::Advertisement);
    follow::<Claim>(client, Config::default(), sender, Observation::Claim);
    tokio::spawn(relay(links, sender.clone(), Observation::Links));
    tokio::spawn(relay(membership.members(), sender.clone(), Observation::Members));
    tokio::spawn(relay(programmed, sender.clone(), Observation::Programmed));
    let sender = sender.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = ended.notified() => {}
            }
            if sender.send(Observation::ResponderEnded).await.is_err() {
                return;
            }
        }
    });
}

fn follow<T: Observed>(
    client: &Client,
    config: Config,
    sender: &mpsc::Sender<Observation>,
    wrap: fn(Change<T::Key, T>) -> Observation,
) {
    let task = forward::<T, Observation>(all::<T>(client.clone()), config, sender.clone(), move |event| {
        wrap(match event {
            Event::Replaced(values) => Change::Replaced(values),
            Event::Applied(value) => Change::Applied(value),
            Event::Removed(key) => Change::Removed(key),
        })
    });
    tokio::spawn(task);
}

/// Sends what the channel holds, and then each newer value, until one of the two ends is gone.
async fn relay<T>(
    mut values: watch::Receiver<Arc<T>>,
    sender: mpsc::Sender<Observation>,
    wrap: fn(Arc<T>) -> Observation,
) where
    T: Send + Sync + 'static,
{
    loop {
        let value = Arc::clone(&values.borrow_and_update());
        if sender.send(wrap(value)).await.is_err() {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            changed = values.changed() => if changed.is_err() { return },
        }
    }
}

fn name(metadata: &ObjectMeta) -> Option<&str> {
    metadata.name.as_deref()
}

impl Observed for SeenNode {
    type Object = core::Node;
    type Key = NodeName;
    type Error = NodeError;

    fn key(metadata: &ObjectMeta) -> Option<NodeName> {
        name(metadata).map(NodeName::new)
    }

    fn read(object: &core::Node) -> Result<Self, NodeError> {
        Ok(Self { node: Node::try_from(object)?, uid: object.metadata.uid.clone().unwrap_or_default() })
    }
}

impl Observed for AnnouncedService {
    type Object = core::Service;
    type Key = ServiceKey;
    type Error = ServiceError;

    fn key(metadata: &ObjectMeta) -> Option<ServiceKey> {
        Some(ServiceKey::new(metadata.namespace.as_deref()?, name(metadata)?))
    }

    fn read(object: &core::Service) -> Result<Self, ServiceError> {
        Service::try_from(object).map(|service| Self::from(&service))
    }
}

impl Observed for UsableEndpoints {
    type Object = discovery::EndpointSlice;
    type Key = SliceKey;
    type Error = SliceError;

    fn key(metadata: &ObjectMeta) -> Option<SliceKey> {
        Some(SliceKey { namespace: metadata.namespace.as_deref()?.into(), name: name(metadata)?.into() })
    }

    fn read(object: &discovery::EndpointSlice) -> Result<Self, SliceError> {
        EndpointSlice::try_from(object).map(|slice| Self::from(&slice))
    }
}

impl Observed for PoolLabels {
    type Object = api::IPAddressPool;
    type Key = PoolName;
    type Error = std::convert::Infallible;

    fn key(metadata: &ObjectMeta) -> Option<PoolName> {
        name(metadata).map(PoolName::new)
    }

    fn read(object: &api::IPAddressPool) -> Result<Self, std::convert::Infallible> {
        let metadata = &object.metadata;
        Ok(Self {
            name: PoolName::new(name(metadata).unwrap_or_default()),
            labels: metadata.labels.clone().unwrap_or_default(),
        })
    }
}

impl Observed for L2Advertisement {
    type Object = api::L2Advertisement;
    type Key = AdvertisementName;
    type Error = AdvertisementError;

    fn key(metadata: &ObjectMeta) -> Option<AdvertisementName> {
        name(metadata).map(AdvertisementName::new)
    }

    fn read(object: &api::L2Advertisement) -> Result<Self, AdvertisementError> {
        Self::try_from(object)
    }
}

impl Observed for Claim {
    type Object = api::AddressClaim;
    type Key = ClaimName;
    type Error = ClaimError;

    fn key(metadata: &ObjectMeta) -> Option<ClaimName> {
        name(metadata).map(ClaimName::new)
    }

    fn read(object: &api::AddressClaim) -> Result<Self, ClaimError> {
        Self::try_from(object)
    }
}
