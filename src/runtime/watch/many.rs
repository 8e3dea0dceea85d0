//! A watch of a kind of which a cluster has many objects: the first list as protobuf from the API server's cache, then the
//! events that follow it. What is out of the ordinary, such as a version that the server has forgotten, is left to kube.

use std::error::Error;
use std::fmt::Debug;
use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt};
use kube::api::{ListParams, VersionMatch, WatchEvent, WatchParams};
use kube::core::{ApiResource, DeserializeGuard, Request, Status};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use prost::Message;
use serde::de::DeserializeOwned;
use thiserror::Error as ThisError;
use tokio::time::{Instant, sleep, timeout};

use super::list::{Incoming, ListError, MAGIC};
use super::wire::{Wire, messages};
use super::{End, FIRST_PAUSE, LONGEST_PAUSE, LONGEST_SILENCE, Sink, WATCH_SECONDS, is_undecodable, pauses, tell};
use crate::runtime::telemetry::chain;
use crate::runtime::unread::Unread;

/// What the API server is asked for.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// How an API server refuses that does not understand what is asked, or speaks no protobuf.
const CANNOT_ANSWER: [u16; 3] = [400, 406, 415];
/// How it refuses a version that it does not understand, or has forgotten.
const CANNOT_GO_ON: [u16; 2] = [400, 410];

/// Why there is no list.
#[derive(Debug, ThisError)]
enum FirstListError {
    #[error("failed to ask for the list")]
    Ask(#[source] kube::Error),
    #[error("failed to read the list")]
    Read(#[source] std::io::Error),
    #[error("failed to understand the list")]
    List(#[from] ListError),
    #[error("failed to make the request")]
    Request(#[source] Box<dyn Error + Send + Sync>),
    #[error("nobody listens")]
    NobodyListens,
}

/// Follows objects until it cannot.
pub(super) async fn follow<K>(client: &Client, config: &watcher::Config, sinks: &mut [Box<dyn Sink<K>>]) -> End
where
    K: Wire + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let kind = K::kind(&());
    let mut pauses = pauses();
    let mut version = loop {
        match first_list(client, config, sinks).await {
            Ok(version) => break version,
            Err(FirstListError::NobodyListens) => return End::NobodyListens,
            Err(error @ (FirstListError::List(_) | FirstListError::Request(_))) => {
                tracing::warn!(%kind, error = chain(&error), "no list as protobuf, asking for JSON");
                return End::Lost;
            }
            Err(FirstListError::Ask(kube::Error::Api(status))) if CANNOT_ANSWER.contains(&status.code) => {
                tracing::info!(%kind, reason = status.message, "the API server gives no protobuf, asking for JSON");
                return End::Lost;
            }
            Err(error) => {
                tracing::warn!(%kind, error = chain(&error), "list broke, trying again");
                sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
            }
        }
    };
    let api: Api<Unread> = Api::all_with(client.clone(), &ApiResource::erase::<K>(&()));
    let params = WatchParams {
        label_selector: config.label_selector.clone(),
        field_selector: config.field_selector.clone(),
        timeout: Some(WATCH_SECONDS),
        bookmarks: true,
        send_initial_events: false,
    };
    loop {
        let began = Instant::now();
        match watch(&api, &params, &mut version, &mut pauses, sinks).await {
            Ok(()) => {}
            Err(WatchEnd::NobodyListens) => return End::NobodyListens,
            Err(WatchEnd::Lost(error)) => {
                tracing::warn!(%kind, version, error = chain(&error), "watch cannot go on, listing all anew");
                return End::Lost;
            }
            Err(WatchEnd::Broken(error)) => {
                tracing::warn!(%kind, error = chain(&error), "watch broke, trying again");
                sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
            }
        }
        // A server that ends each watch at once is not to be asked without end.
        sleep(FIRST_PAUSE.saturating_sub(began.elapsed())).await;
    }
}

async fn first_list<K>(
    client: &Client,
    config: &watcher::Config,
    sinks: &mut [Box<dyn Sink<K>>],
) -> Result<String, FirstListError>
where
    K: Wire + Resource<DynamicType = ()>,
{
    let start = Instant::now();
    let params = ListParams {
        label_selector: config.label_selector.clone(),
        field_selector: config.field_selector.clone(),
        version_match: Some(VersionMatch::NotOlderThan),
        resource_version: Some("0".to_owned()),
        ..ListParams::default()
    };
    let bad_request = |error: Box<dyn Error + Send + Sync>| FirstListError::Request(error);
    let mut request =
        Request::new(K::url_path(&(), None)).list(&params).map_err(|error| bad_request(Box::new(error)))?;
    request.headers_mut().insert("accept", PROTOBUF.parse().map_err(|error| bad_request(Box::new(error)))?);
    let answer = client.request_stream(request).await.map_err(|error| FirstListError::Ask(refused(error)))?;
    let answered = start.elapsed();
    let mut answer = std::pin::pin!(answer);
    if !tell(sinks, &watcher::Event::Init).await {
        return Err(FirstListError::NobodyListens);
    }
    let (mut list, mut objects, mut size) = (Incoming::default(), 0_usize, 0_usize);
    let mut whole: Vec<K> = Vec::new();
    loop {
        let piece = timeout(LONGEST_SILENCE, answer.fill_buf())
            .await
            .map_err(|_| FirstListError::Read(std::io::ErrorKind::TimedOut.into()))?
            .map_err(FirstListError::Read)?;
        if piece.is_empty() {
            break;
        }
        list.feed(piece, |item| {
            whole.push(K::read(item)?);
            Ok(())
        })?;
        let length = piece.len();
        answer.as_mut().consume_unpin(length);
        size += length;
        objects += whole.len();
        for object in whole.drain(..) {
            if !tell(sinks, &watcher::Event::InitApply(DeserializeGuard(Ok(object)))).await {
                return Err(FirstListError::NobodyListens);
            }
        }
    }
    let version = list.finish()?;
    tracing::debug!(kind = %K::kind(&()), objects, bytes = size, ?answered, took = ?start.elapsed(), "listed");
    if !tell(sinks, &watcher::Event::InitDone).await {
        return Err(FirstListError::NobodyListens);
    }
    Ok(version)
}

/// Why a watch is over before its time.
enum WatchEnd {
    /// A sink is gone.
    NobodyListens,
    /// It may go on where it was.
    Broken(kube::Error),
    /// It would come to the same end again, from the same version.
    Lost(WatchError),
}

#[derive(Debug, ThisError)]
enum WatchError {
    #[error("the API server refuses it")]
    Refused(#[source] kube::Error),
    #[error("an event cannot be decoded")]
    Event(#[source] kube::Error),
    #[error("an event has no version")]
    NoVersion,
}

/// One watch from a version on, until the server ends it or nothing comes any more.
async fn watch<K>(
    api: &Api<Unread>,
    params: &WatchParams,
    version: &mut String,
    pauses: &mut impl Backoff,
    sinks: &mut [Box<dyn Sink<K>>],
) -> Result<(), WatchEnd>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let stream = api.watch(params, version).await.map_err(not_begun)?;
    let mut events = std::pin::pin!(stream);
    // The server ends it by then, if it still can.
    let silence = Duration::from_secs(u64::from(WATCH_SECONDS) + 5);
    while let Ok(Some(event)) = timeout(silence, events.next()).await {
        let event = match event.map_err(broken)? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                follow_version(version, object.resource_version())?;
                watcher::Event::Apply(object.read())
            }
            WatchEvent::Deleted(object) => {
                follow_version(version, object.resource_version())?;
                watcher::Event::Delete(object.read())
            }
            WatchEvent::Bookmark(bookmark) => {
                follow_version(version, Some(bookmark.metadata.resource_version))?;
                continue;
            }
            WatchEvent::Error(status) => return Err(WatchEnd::Lost(WatchError::Refused(kube::Error::Api(status)))),
        };
        pauses.reset();
        if !tell(sinks, &event).await {
            return Err(WatchEnd::NobodyListens);
        }
    }
    Ok(())
}

fn follow_version(version: &mut String, newer: Option<String>) -> Result<(), WatchEnd> {
    *version = newer.filter(|version| !version.is_empty()).ok_or(WatchEnd::Lost(WatchError::NoVersion))?;
    Ok(())
}

fn not_begun(error: kube::Error) -> WatchEnd {
    let is_version_refused = matches!(&error, kube::Error::Api(status) if CANNOT_GO_ON.contains(&status.code));
    if is_version_refused { WatchEnd::Lost(WatchError::Refused(error)) } else { WatchEnd::Broken(error) }
}

fn broken(error: kube::Error) -> WatchEnd {
    if is_undecodable(&error) {
        WatchEnd::Lost(WatchError::Event(error))
    } else if let kube::Error::Api(_) = &error {
        WatchEnd::Lost(WatchError::Refused(error))
    } else {
        WatchEnd::Broken(error)
    }
}

/// A refusal comes in the language that was asked for, whose bytes kube takes for text: says what it says.
fn refused(error: kube::Error) -> kube::Error {
    let said = if let kube::Error::FromUtf8(error) = &error {
        error.as_bytes()
    } else if let kube::Error::Api(status) = &error {
        status.message.as_bytes()
    } else {
        return error;
    };
    let status = said
        .strip_prefix(MAGIC)
        .and_then(|said| messages::Unknown::decode(said).ok())
        .and_then(|said| messages::Status::decode(said.raw.as_slice()).ok());
    match status {
        Some(messages::Status { message, reason, code }) => kube::Error::Api(Box::new(
            Status::failure(&message, &reason).with_code(u16::try_from(code).unwrap_or_default()),
        )),
        None => error,
    }
}

#[cfg(test)]
mod tests;
