//! A watch of one object by name, for whoever needs only its newest state.

use futures::StreamExt;
use kube::core::ApiResource;
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt, watcher::Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use super::telemetry::chain;
use super::unread::Unread;
use super::watch::{WATCH_SECONDS, pauses};

/// Tells the object, or that there is none, whenever either changes, and first after the first list. One that cannot be read
/// counts as absent. Goes on for ever, whatever becomes of the API server, until `tell` says that nobody listens any more.
pub async fn follow_one<K>(client: Client, namespace: &str, name: &str, mut tell: impl FnMut(Option<K>) -> bool)
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let kind = ApiResource::erase::<K>(&());
    let api: Api<Unread> = Api::namespaced_with(client, namespace, &kind);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    let mut events = std::pin::pin!(watcher(api, config).backoff(pauses()));
    let read = |object: Unread| {
        let unusable = |error| tracing::warn!(kind = kind.kind, name, error = chain(&error), "object cannot be used");
        object.read().0.map_err(unusable).ok()
    };
    let mut listed = None;
    while let Some(event) = events.next().await {
        let listens = match event {
            Ok(Event::Init) => {
                listed = None;
                true
            }
            Ok(Event::InitApply(object)) => {
                listed = read(object);
                true
            }
            Ok(Event::InitDone) => tell(listed.take()),
            Ok(Event::Apply(object)) => tell(read(object)),
            Ok(Event::Delete(_)) => tell(None),
            Err(error) => {
                tracing::warn!(kind = kind.kind, name, error = chain(&error), "watch broke, trying again");
                true
            }
        };
        if !listens {
            return;
        }
    }
}
