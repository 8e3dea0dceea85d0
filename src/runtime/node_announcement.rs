//! The node's `NodeAnnouncement`: written when something has changed, and never on the way of a packet.
//!
//! A task of its own owns the writing. It always writes the newest report and skips those in between; while the API
//! server is away it tries again with growing pauses. Every few minutes it writes though nothing has changed: nobody
//! tells it when the object is deleted.

mod status;

use std::hash::Hasher;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::json;
use siphasher::sip::SipHasher13;
use thiserror::Error;
use tokio::sync::watch;

use self::status::status;
use super::node_report::{NodeReport, NodeReports};
use super::shutdown::Shutdown;
use super::telemetry::chain;
use super::watch::Sink;
use crate::api::node_announcement::{NodeAnnouncement, NodeAnnouncementStatus};
use crate::names::NodeName;

/// The field manager of what agents write.
const MANAGER: &str = "steelyard-node";
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the last write may hold up the end of the process.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long any other may take: a connection may be dead without an end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two writes of the same, and up to a quarter more.
const REWRITE: Duration = Duration::from_secs(240);
/// How long problems gather before they are written: many Services may get one in one turn after another. What is
/// announced does not wait.
const GATHER: Duration = Duration::from_millis(500);

/// Why nothing was written.
#[derive(Debug, Error)]
enum WriteError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer within {PATIENCE:?}")]
    Silence,
}

/// Writes each report until shutdown, then an empty one, as nothing is announced any more. Nothing is written before it is
/// known what is announced.
pub async fn write(client: Client, node: NodeName, mut reports: watch::Receiver<NodeReport>, mut shutdown: Shutdown) {
    let api: Api<NodeAnnouncement> = Api::all(client);
    let mut pause = FIRST_PAUSE;
    let rewrite = rewrite_every(&node);
    let mut last: Option<(NodeAnnouncementStatus, Option<String>)> = None;
    let mut is_overdue = false;
    loop {
        let report = reports.borrow_and_update().clone();
        let previous = last.as_ref().map(|(status, _)| status.clone()).unwrap_or_default();
        let next = status(&report, &previous, Timestamp::now()).map(|status| (status, report.owner.clone()));
        let outcome = match &next {
            Some((status, owner)) if is_overdue || last != next => tokio::select! {
                () = shutdown.requested() => break,
                outcome = tokio::time::timeout(PATIENCE, put(&api, &node, status, owner.as_deref())) => match outcome {
                    Ok(outcome) => outcome.map_err(WriteError::from),
                    Err(_) => Err(WriteError::Silence),
                },
            },
            Some(_) | None => Ok(()),
        };
        // Times stay as they were first said, written or not.
        is_overdue = outcome.is_err();
        last = next.or(last);
        let (wait, is_failed) = match outcome {
            Ok(()) => {
                pause = FIRST_PAUSE;
                (rewrite, false)
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), ?pause, "node announcement could not be written, trying again");
                let wait = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                (wait, true)
            }
        };
        tokio::select! {
            () = shutdown.requested() => break,
            changed = reports.changed(), if !is_failed => if changed.is_err() { break },
            () = tokio::time::sleep(wait) => {
                is_overdue = true;
                continue;
            }
        }
        let announced = (report.announcements, report.service_proxy);
        tokio::select! {
            () = shutdown.requested() => break,
            // An end of the reports is seen above.
            _ended = reports.wait_for(|report| {
                report.announcements != announced.0 || report.service_proxy != announced.1
            }) => {}
            () = tokio::time::sleep(GATHER) => {}
        }
    }
    if let Some((_, owner)) = last {
        match tokio::time::timeout(FAREWELL, put(&api, &node, &NodeAnnouncementStatus::default(), owner.as_deref()))
            .await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "node announcement could not be emptied"),
            Err(_) => tracing::warn!("node announcement could not be emptied in time"),
        }
    }
}

/// Takes a watch of Nodes that others take too, for the UID of this node's object.
pub fn owner(node: NodeName, reports: NodeReports) -> Box<dyn Sink<core::Node>> {
    Box::new(Owner { node, reports })
}

struct Owner {
    node: NodeName,
    reports: NodeReports,
}

impl Sink<core::Node> for Owner {
    fn take<'a>(&'a mut self, event: &'a watcher::Event<DeserializeGuard<core::Node>>) -> BoxFuture<'a, bool> {
        if let watcher::Event::Apply(object) | watcher::Event::InitApply(object) = event
            && let Ok(object) = &object.0
            && object.metadata.name.as_deref() == Some(self.node.as_str())
        {
            self.reports.set_owner(object.metadata.uid.clone());
        }
        std::future::ready(true).boxed()
    }
}

/// Nodes that start together do not write together.
fn rewrite_every(node: &NodeName) -> Duration {
    let mut hasher = SipHasher13::new();
    hasher.write(node.as_str().as_bytes());
    REWRITE + (REWRITE / 4).mul_f64((hasher.finish() % 1000) as f64 / 1000.0)
}

/// The object, for it may be gone or have another Node's UID, and then its status. Without a Node no object is made:
/// nobody would delete it.
async fn put(
    api: &Api<NodeAnnouncement>,
    node: &NodeName,
    status: &NodeAnnouncementStatus,
    owner: Option<&str>,
) -> Result<(), kube::Error> {
    let Some(owner) = owner else {
        return match put_status(api, node, status).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            outcome => outcome,
        };
    };
    let object = owned(node, owner);
    api.patch(node.as_str(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await?;
    put_status(api, node, status).await
}

/// Without a status, which is written apart.
fn owned(node: &NodeName, owner: &str) -> serde_json::Value {
    let mut object = identity(node);
    if let Some(metadata) = object.get_mut("metadata").and_then(|value| value.as_object_mut()) {
        let reference = json!({"apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": owner});
        metadata.insert("ownerReferences".to_owned(), json!([reference]));
    }
    object
}

async fn put_status(
    api: &Api<NodeAnnouncement>,
    node: &NodeName,
    status: &NodeAnnouncementStatus,
) -> Result<(), kube::Error> {
    let mut object = identity(node);
    if let Some(object) = object.as_object_mut() {
        object.insert("status".to_owned(), json!(status));
    }
    api.patch_status(node.as_str(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await.map(|_| ())
}

fn identity(node: &NodeName) -> serde_json::Value {
    json!({
        "apiVersion": "steelyard.dev/v1alpha1",
        "kind": "NodeAnnouncement",
        "metadata": {"name": node.as_str()},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_belongs_to_the_node_and_is_rewritten_every_few_minutes() {
        let object = owned(&"node1".into(), "uid-1");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "uid-1");
        let spans = ["node1", "node2", "node3"].map(|node| rewrite_every(&node.into()));
        assert!(spans.iter().all(|span| (REWRITE..REWRITE * 5 / 4).contains(span)), "{spans:?}");
        assert!(spans[0] != spans[1] && spans[1] != spans[2]);
    }
}
