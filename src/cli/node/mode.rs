//! The decision that agents started with `--datapath auto` wait for and follow.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, Client};
use tokio::sync::watch;

use super::beside::{in_words, see};
use crate::model::datapath_mode::{Decision, Mode};
use crate::names::NodeName;
use crate::runtime::node_report::NodeReports;
use crate::runtime::shutdown::{Shutdown, ShutdownTrigger};
use crate::runtime::watch_one::follow_one;

/// Between two looks at the node while it waits.
const PAUSE: Duration = Duration::from_secs(1);

/// What is known of the decision; nothing before the ConfigMap was asked for.
pub(super) type Known = Option<Option<Decision>>;

/// Follows the ConfigMap for as long as anybody listens.
pub(super) async fn follow(client: Client, namespace: String, name: String, known: watch::Sender<Known>) {
    let tell = |object: Option<ConfigMap>| {
        let decision = object.and_then(|object| Decision::read(&object.data.unwrap_or_default()));
        known.send_if_modified(|known| {
            let is_new = known.as_ref() != Some(&decision);
            *known = Some(decision);
            is_new
        });
        !known.is_closed()
    };
    follow_one(client, &namespace, &name, tell).await;
}

/// Waits for a decision; nothing if shutdown comes first. While there is none this agent tells what it sees on its node,
/// for the decision rests on that.
pub(super) async fn wait(
    client: &Client,
    node: &NodeName,
    health_port: u16,
    reports: &NodeReports,
    known: &mut watch::Receiver<Known>,
    stop: &mut Shutdown,
) -> Option<Mode> {
    let mut has_said = false;
    let mut has_owner = false;
    loop {
        let now = known.borrow_and_update().clone();
        match now {
            Some(Some(decision)) => {
                tracing::info!(mode = decision.mode.word(), reason = decision.reason, "the datapath's mode is decided");
                return Some(decision.mode);
            }
            Some(None) => {
                if !std::mem::replace(&mut has_said, true) {
                    tracing::info!(
                        "waiting for the controller to decide the datapath's mode; the kernel is left as it is"
                    );
                }
                // Without a look nothing is said: the controller would take it that nobody else forwards here.
                if let Some(seen) = see(health_port, false).await {
                    reports.set_service_proxy(in_words(seen.running()));
                }
                reports.set_datapath("Waiting");
                reports.set_announcements(Vec::new());
                if !has_owner {
                    let nodes: Api<Node> = Api::all(client.clone());
                    if let Ok(Ok(object)) = tokio::time::timeout(PAUSE, nodes.get_metadata(node.as_str())).await {
                        reports.set_owner(object.metadata.uid);
                        has_owner = true;
                    }
                }
            }
            None => {}
        }
        tokio::select! {
            () = stop.requested() => return None,
            changed = known.changed() => if changed.is_err() { return None },
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Ends this process in order when another mode is decided: it is started again, and then has that.
pub(super) async fn end_on_another(
    mode: Mode,
    mut known: watch::Receiver<Known>,
    trigger: Arc<ShutdownTrigger>,
    mut stop: Shutdown,
) {
    let is_another = |known: &Known| matches!(known, Some(Some(decision)) if decision.mode != mode);
    let another = tokio::select! {
        () = stop.requested() => return,
        another = known.wait_for(is_another) => another.is_ok(),
    };
    if another {
        tracing::warn!(from = mode.word(), "another mode of the datapath is decided: ending, to start again with it");
        trigger.request();
    }
    stop.requested().await;
}
