//! Watches of the API: turns kube's stream into three plain events, of values that the model has read already.
//!
//! One object that cannot be read never stops a watch: it counts as absent, and the log says why.

use std::fmt::{Debug, Display};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// The first pause after a watch broke; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause: how stale a component may be once the API server is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A watch that held this long starts again from [`FIRST_PAUSE`].
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// A value that is read from API objects of one kind.
pub trait Observed: Sized + Send + 'static {
    /// The API object.
    type Object: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static;
    /// What tells two of them apart.
    type Key: Clone + Debug + Send + 'static;
    /// Why one is not used.
    type Error: Display;

    /// The key, if the object has the names that it needs.
    fn key(metadata: &ObjectMeta) -> Option<Self::Key>;

    /// Reads one object.
    ///
    /// # Errors
    /// When the object is not one that the component can use; it then counts as absent.
    fn read(object: &Self::Object) -> Result<Self, Self::Error>;
}

/// What a watch has seen.
#[derive(Clone, Debug)]
pub enum Event<T: Observed> {
    /// The whole set, after the first list and after each re-list: what is not in it is gone.
    Replaced(Vec<T>),
    /// One is new or has changed.
    Applied(T),
    /// One is gone, or can no longer be read.
    Removed(T::Key),
}

/// Where the events of a watch go. `false` says that nobody takes them any more.
pub type Sink<T> = Box<dyn Fn(Event<T>) -> BoxFuture<'static, bool> + Send + Sync>;

/// A sink that hands events to a component's loop, as its own kind of event.
pub fn sink<T: Observed, E: Send + 'static>(sender: mpsc::Sender<E>, wrap: fn(Event<T>) -> E) -> Sink<T> {
    Box::new(move |event| {
        let sender = sender.clone();
        async move { sender.send(wrap(event)).await.is_ok() }.boxed()
    })
}

/// Watches all objects of one kind that `config` selects, in all namespaces, and sends what it sees to every sink, until
/// one of them is gone: several components take one watch.
///
/// Broken connections are taken up again with pauses from 0.2 s to 5 s, for ever: a node agent outlives any outage of the
/// API server.
pub async fn forward<T>(client: Client, config: watcher::Config, sinks: Vec<Sink<T>>)
where
    T: Observed + Clone,
{
    let mut events = std::pin::pin!(events::<T>(Api::all(client), config));
    while let Some(event) = events.next().await {
        for sink in &sinks {
            if !sink(event.clone()).await {
                return;
            }
        }
    }
}

fn events<T: Observed>(
    api: Api<DeserializeGuard<T::Object>>,
    config: watcher::Config,
) -> impl Stream<Item = Event<T>> + Send {
    let kind = T::Object::kind(&()).into_owned();
    let mut relist: Option<Vec<T>> = None;
    watcher(api, config).backoff(pauses()).filter_map(move |result| {
        let event = match result {
            Err(error) => {
                tracing::warn!(kind, %error, "watch broke, trying again");
                None
            }
            Ok(watcher::Event::Init) => {
                relist = Some(Vec::new());
                None
            }
            Ok(watcher::Event::InitApply(object)) => {
                let read = read::<T>(&kind, object);
                relist.get_or_insert_default().extend(read.ok());
                None
            }
            Ok(watcher::Event::InitDone) => Some(Event::Replaced(relist.take().unwrap_or_default())),
            Ok(watcher::Event::Apply(object)) => match read::<T>(&kind, object) {
                Ok(value) => Some(Event::Applied(value)),
                Err(key) => key.map(Event::Removed),
            },
            Ok(watcher::Event::Delete(object)) => T::key(object.meta()).map(Event::Removed),
        };
        std::future::ready(event)
    })
}

/// Reads one object, or says which key it would have had.
fn read<T: Observed>(kind: &str, object: DeserializeGuard<T::Object>) -> Result<T, Option<T::Key>> {
    let key = T::key(object.meta());
    let reason = match &object.0 {
        Ok(object) => match T::read(object) {
            Ok(value) => return Ok(value),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    tracing::warn!(kind, ?key, reason, "object cannot be used and counts as absent");
    Err(key)
}

fn pauses() -> impl Backoff {
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
