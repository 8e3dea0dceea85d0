//! Watches of the API: turns kube's stream into three plain events, of values that the model has read already.
//!
//! One object that cannot be read never stops a watch: it counts as absent, and the log says why.

mod list;
mod many;
mod wire;

use std::error::Error;
use std::fmt::Debug;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DeserializeGuard};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

pub use self::wire::{Wire, WireError};
use super::telemetry::chain;
use super::unread::Unread;

/// The first pause after a watch broke; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause: how stale a component may be once the API server is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A watch that held this long starts again from [`FIRST_PAUSE`].
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// After how many seconds the API server ends a watch, which goes on at once where it was. A connection that has died in
/// silence is given up 5 s later: how stale a component may be while nothing tells it so. Short before the end the server
/// sends a bookmark, so that even a kind that never changes is not listed anew.
pub(super) const WATCH_SECONDS: u32 = 60;
/// How long an answer, or its next part, may take before the connection counts as dead: longer than the silence of a
/// watch on which nothing happens.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 15);

/// A value that is read from API objects of one kind.
pub trait Observed: Sized + Send + 'static {
    /// The API object.
    type Object: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static;
    /// What tells two of them apart.
    type Key: Debug + Send + 'static;
    /// Why one is not used.
    type Error: Error;

    /// The key, if the object has the names that it needs.
    fn key(metadata: &ObjectMeta) -> Option<Self::Key>;

    /// Reads one object.
    ///
    /// # Errors
    /// When the object is not one that the component can use; it then counts as absent.
    fn read(object: &Self::Object) -> Result<Self, Self::Error>;
}

/// What a watch has seen.
#[derive(Debug)]
pub enum Event<T: Observed> {
    /// The whole set, after the first list and after each re-list: what is not in it is gone.
    Replaced(Vec<T>),
    /// One is new or has changed.
    Applied(T),
    /// One is gone, or can no longer be read.
    Removed(T::Key),
}

/// What kube's stream carries: objects that could be decoded, or not.
type RawEvent<K> = watcher::Event<DeserializeGuard<K>>;

/// Where the events of a watch go: to one component, read as that component needs them.
pub trait Sink<K>: Send {
    /// Takes one event; `false` says that nobody listens any more.
    fn take<'a>(&'a mut self, event: &'a RawEvent<K>) -> BoxFuture<'a, bool>;
}

/// A sink that reads objects as `T` and hands them to a component's loop, as its own kind of event.
pub fn sink<T: Observed, E: Send + 'static>(
    sender: mpsc::Sender<E>,
    wrap: impl Fn(Event<T>) -> E + Send + 'static,
) -> Box<dyn Sink<T::Object>> {
    Box::new(Reader { sender, wrap, relist: None })
}

/// Watches all objects of one kind that `config` selects, in all namespaces, and sends what it sees to every sink, until
/// one of them is gone: several components take one watch, each reading what it needs.
///
/// Broken connections are taken up again with pauses from 0.2 s to 5 s, for ever: a node agent outlives any outage of the
/// API server.
pub async fn forward<K>(client: Client, config: watcher::Config, mut sinks: Vec<Box<dyn Sink<K>>>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let kind = ApiResource::erase::<K>(&());
    let api: Api<Unread> = Api::all_with(client, &kind);
    let mut events = std::pin::pin!(watcher(api, config.timeout(WATCH_SECONDS)).backoff(pauses()));
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if !tell(&mut sinks, &read_event(event)).await {
                    return;
                }
            }
            Err(error) => tracing::warn!(kind = kind.kind, error = chain(&error), "watch broke, trying again"),
        }
    }
}

/// As [`forward`], of a kind of which there are many: the first list comes as protobuf from the API server's cache, which
/// costs it, and us, a small part of the same as JSON from etcd. That cache may lag behind, as it may for any informer that
/// starts; what comes later never goes back in time.
pub async fn forward_many<K>(client: Client, config: watcher::Config, mut sinks: Vec<Box<dyn Sink<K>>>)
where
    K: Wire + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    if many::follow(&client, &config, &mut sinks).await != End::NobodyListens {
        forward(client, config, sinks).await;
    }
}

/// Why events are followed no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A sink is gone.
    NobodyListens,
    /// Everything has to be listed again.
    Lost,
}

/// Whether an answer, or an event of a watch, could not be decoded. What kube cannot read as an event it takes for a refusal
/// of the server, of which every field may be missing: one without a code is none.
fn is_undecodable(error: &kube::Error) -> bool {
    matches!(error, kube::Error::SerdeError(_)) || matches!(error, kube::Error::Api(status) if status.code == 0)
}

fn read_event<K>(event: watcher::Event<Unread>) -> RawEvent<K>
where
    K: Resource + DeserializeOwned,
{
    match event {
        watcher::Event::Apply(object) => watcher::Event::Apply(object.read()),
        watcher::Event::Delete(object) => watcher::Event::Delete(object.read()),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitApply(object) => watcher::Event::InitApply(object.read()),
        watcher::Event::InitDone => watcher::Event::InitDone,
    }
}

/// Gives an event to all; `false` says that one listens no more.
async fn tell<K>(sinks: &mut [Box<dyn Sink<K>>], event: &RawEvent<K>) -> bool {
    for sink in sinks {
        if !sink.take(event).await {
            return false;
        }
    }
    true
}

/// Reads objects as `T`.
struct Reader<T, E, W> {
    sender: mpsc::Sender<E>,
    wrap: W,
    /// What a list that is under way has brought so far.
    relist: Option<Vec<T>>,
}

impl<T, E, W> Sink<T::Object> for Reader<T, E, W>
where
    T: Observed,
    E: Send + 'static,
    W: Fn(Event<T>) -> E + Send + 'static,
{
    fn take<'a>(&'a mut self, event: &'a RawEvent<T::Object>) -> BoxFuture<'a, bool> {
        let event = self.read(event).map(&self.wrap);
        let sender = &self.sender;
        async move {
            match event {
                Some(event) => sender.send(event).await.is_ok(),
                None => !sender.is_closed(),
            }
        }
        .boxed()
    }
}

impl<T: Observed, E, W> Reader<T, E, W> {
    fn read(&mut self, event: &RawEvent<T::Object>) -> Option<Event<T>> {
        match event {
            watcher::Event::Init => {
                self.relist = Some(Vec::new());
                None
            }
            watcher::Event::InitApply(object) => {
                self.relist.get_or_insert_default().extend(read(object).ok());
                None
            }
            watcher::Event::InitDone => Some(Event::Replaced(self.relist.take().unwrap_or_default())),
            watcher::Event::Apply(object) => match read(object) {
                Ok(value) => Some(Event::Applied(value)),
                Err(key) => key.map(Event::Removed),
            },
            watcher::Event::Delete(object) => T::key(object.meta()).map(Event::Removed),
        }
    }
}

/// Reads one object, or says which key it would have had.
fn read<T: Observed>(object: &DeserializeGuard<T::Object>) -> Result<T, Option<T::Key>> {
    let key = T::key(object.meta());
    let reason = match &object.0 {
        Ok(object) => match T::read(object) {
            Ok(value) => return Ok(value),
            Err(error) => chain(&error),
        },
        Err(error) => chain(&error),
    };
    tracing::warn!(kind = %T::Object::kind(&()), ?key, reason, "object cannot be used and counts as absent");
    Err(key)
}

pub(super) fn pauses() -> impl Backoff {
    ResetTimerBackoff::new(Pauses { next: FIRST_PAUSE }, HEALTHY_AFTER)
}

/// Pauses that double, for ever.
struct Pauses {
    next: Duration,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.next = FIRST_PAUSE;
    }
}
