//! A watch of one object by name, for whoever needs only its newest state.

use futures::StreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt, watcher::Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use super::telemetry::chain;
use super::watch::{WATCH_SECONDS, pauses};

/// Tells the object, or that there is none, whenever either changes, and first after the first list. Goes on for ever,
/// whatever becomes of the API server, until `tell` says that nobody listens any more.
pub async fn follow_one<K>(api: Api<K>, name: &str, mut tell: impl FnMut(Option<K>) -> bool)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    let mut events = std::pin::pin!(watcher(api, config).backoff(pauses()));
    let mut listed = None;
    while let Some(event) = events.next().await {
        let listens = match event {
            Ok(Event::Init) => {
                listed = None;
                true
            }
            Ok(Event::InitApply(object)) => {
                listed = Some(object);
                true
            }
            Ok(Event::InitDone) => tell(listed.take()),
            Ok(Event::Apply(object)) => tell(Some(object)),
            Ok(Event::Delete(_)) => tell(None),
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), name, error = chain(&error), "watch broke, trying again");
                true
            }
        };
        if !listens {
            return;
        }
    }
}
