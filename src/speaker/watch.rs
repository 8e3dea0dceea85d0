//! Where the speaker's observations come from: six kinds of the API, this node's interfaces, membership and the datapath.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::runtime::watcher::Config;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::index::{AnnouncedService, Change, Observation, PoolLabels, UsableEndpoints};
use crate::api;
use crate::membership::Membership;
use crate::model::advertisement::{AdvertisementError, L2Advertisement};
use crate::model::claim::{Claim, ClaimError};
use crate::model::endpoints::{EndpointSlice, SliceError, SliceKey};
use crate::model::link::Links;
use crate::model::node::Node;
use crate::model::programmed::Programmed;
use crate::model::service::{Service, ServiceError};
use crate::names::{AdvertisementName, ClaimName, PoolName, ServiceKey};
use crate::runtime::watch::{Event, Observed, Sink, forward, sink};

/// The watch selector for EndpointSlices: those of headless Services, which nobody announces or forwards, never leave the
/// API server.
pub const SLICES: &str = "kubernetes.io/service-name,!service.kubernetes.io/headless";

/// How many observations may wait. A turn takes all of them.
const QUEUE: usize = 1024;

/// Where observations wait for the speaker's loop.
#[derive(Debug)]
pub struct Inbox {
    pub(super) sender: mpsc::Sender<Observation>,
    pub(super) observations: mpsc::Receiver<Observation>,
}

impl Default for Inbox {
    fn default() -> Self {
        let (sender, observations) = mpsc::channel(QUEUE);
        Self { sender, observations }
    }
}

impl Inbox {
    /// Takes a watch of Nodes that others take too.
    pub fn nodes(&self) -> Box<dyn Sink<core::Node>> {
        sink::<Node, _>(self.sender.clone(), |event| Observation::Node(event.into()))
    }

    /// Takes a watch of Services that others take too.
    pub fn services(&self) -> Box<dyn Sink<core::Service>> {
        sink::<AnnouncedService, _>(self.sender.clone(), |event| Observation::Service(event.into()))
    }

    /// Takes a watch of EndpointSlices that others take too; see [`SLICES`].
    pub fn slices(&self) -> Box<dyn Sink<discovery::EndpointSlice>> {
        sink::<UsableEndpoints, _>(self.sender.clone(), |event| Observation::Endpoints(event.into()))
    }
}

/// The sources of one speaker; each ends with its name. Dropping them ends them.
pub(super) type Sources = JoinSet<&'static str>;

/// Starts the sources that are the speaker's alone. While the receiver is held, one that ends has failed.
pub(super) fn start(
    client: &Client,
    links: watch::Receiver<Arc<Links>>,
    membership: &Membership,
    programmed: watch::Receiver<Arc<Programmed>>,
    ended: Arc<Notify>,
    sender: &mpsc::Sender<Observation>,
) -> Sources {
    let mut sources = Sources::new();
    let pools = sink::<PoolLabels, _>(sender.clone(), |event| Observation::Pool(event.into()));
    let pools = forward(client.clone(), Config::default(), vec![pools]);
    sources.spawn(named("watch of IPAddressPools", pools));
    let advertisements = sink::<L2Advertisement, _>(sender.clone(), |event| Observation::Advertisement(event.into()));
    let advertisements = forward(client.clone(), Config::default(), vec![advertisements]);
    sources.spawn(named("watch of L2Advertisements", advertisements));
    let claims = sink::<HeldClaim, _>(sender.clone(), |event| Observation::Claim(claims_of(event)));
    let claims = forward(client.clone(), Config::default(), vec![claims]);
    sources.spawn(named("watch of AddressClaims", claims));
    sources.spawn(named("interfaces", relay(links, sender.clone(), Observation::Links)));
    sources.spawn(named("membership", relay(membership.members(), sender.clone(), Observation::Members)));
    sources.spawn(named("datapath", relay(programmed, sender.clone(), Observation::Programmed)));
    sources.spawn(named("responders", relay_ends(ended, sender.clone())));
    sources
}

pub(super) async fn named(name: &'static str, source: impl Future<Output = ()>) -> &'static str {
    // The panic itself is on stderr already; who it was is known only here.
    let _panicked = AssertUnwindSafe(source).catch_unwind().await;
    name
}

/// Tells the loop whenever a responder has ended by itself.
async fn relay_ends(ended: Arc<Notify>, sender: mpsc::Sender<Observation>) {
    loop {
        tokio::select! {
            () = sender.closed() => return,
            () = ended.notified() => {}
        }
        if sender.send(Observation::ResponderEnded).await.is_err() {
            return;
        }
    }
}

impl<T: Observed> From<Event<T>> for Change<T::Key, T> {
    fn from(event: Event<T>) -> Self {
        match event {
            Event::Replaced(values) => Self::Replaced(values),
            Event::Applied(value) => Self::Applied(value),
            Event::Removed(key) => Self::Removed(key),
        }
    }
}

/// A claim, read for the speaker.
struct HeldClaim(Claim);

fn claims_of(event: Event<HeldClaim>) -> Change<ClaimName, Claim> {
    match event {
        Event::Replaced(claims) => Change::Replaced(claims.into_iter().map(|claim| claim.0).collect()),
        Event::Applied(claim) => Change::Applied(claim.0),
        Event::Removed(name) => Change::Removed(name),
    }
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

impl Observed for HeldClaim {
    type Object = api::AddressClaim;
    type Key = ClaimName;
    type Error = ClaimError;

    fn key(metadata: &ObjectMeta) -> Option<ClaimName> {
        name(metadata).map(ClaimName::new)
    }

    fn read(object: &api::AddressClaim) -> Result<Self, ClaimError> {
        Claim::try_from(object).map(Self)
    }
}
