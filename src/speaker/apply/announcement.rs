//! The node's `NodeAnnouncement`: written when something has changed, and never on the way of a packet.
//!
//! A task of its own owns the writing. It always writes the newest status and skips those in between; while the API
//! server is away it tries again with growing pauses. Every few minutes it writes though nothing has changed: nobody
//! tells it when the object is deleted.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use siphasher::sip::SipHasher13;
use thiserror::Error;
use tokio::sync::watch;

use super::ApplyError;
use crate::api::node_announcement::{Announcement, NodeAnnouncement, NodeAnnouncementStatus, Problem};
use crate::names::NodeName;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::telemetry::chain;
use crate::speaker::desired::{Decision, Verdict};
use crate::speaker::plan::Stations;
use crate::speaker::silence::Silence;

/// The field manager of what the speaker writes.
const MANAGER: &str = "steelyard-speaker";
/// The part of the agent that reports a problem here.
const COMPONENT: &str = "speaker";
/// Why a node announces: it won the election.
const ELECTED: &str = "Elected";
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the last write may hold up the end of the process.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long any other may take: a connection may be dead without an end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two writes of the same, and up to a quarter more.
const REWRITE: Duration = Duration::from_secs(240);

/// Why nothing was written.
#[derive(Debug, Error)]
enum WriteError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer within {PATIENCE:?}")]
    Silence,
}

/// What is to be written: the status, and the node's UID to own the object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The whole status.
    pub status: NodeAnnouncementStatus,
    /// The UID of the Node object, with which this object goes.
    pub owner: Option<String>,
}

/// The status that says what is announced now and what this node should do and cannot. Times of `previous` are kept for
/// what was so already.
pub fn status<'a>(
    actual: &Stations,
    decisions: &BTreeMap<IpAddr, Decision>,
    errors: impl IntoIterator<Item = &'a ApplyError>,
    previous: &NodeAnnouncementStatus,
    now: Timestamp,
) -> NodeAnnouncementStatus {
    let mut announcements = Vec::new();
    for (interface, station) in actual.values() {
        for address in &station.addresses {
            let new = Announcement {
                address: address.to_string(),
                interface: interface.to_string(),
                mac: station.mac.to_string(),
                since: MicroTime(now),
                reason: ELECTED.to_owned(),
            };
            let is_same = |known: &&Announcement| Announcement { since: new.since.clone(), ..(*known).clone() } == new;
            announcements.push(previous.announcements.iter().find(is_same).cloned().unwrap_or(new));
        }
    }
    announcements.sort_by(|a, b| (&a.address, &a.interface).cmp(&(&b.address, &b.interface)));
    let defects = decisions.iter().flat_map(|(address, decision)| defects(*address, decision, now));
    let failures = errors.into_iter().map(|error| failure(error, now));
    let problems = failures.chain(defects).map(|new| {
        let is_same = |known: &&Problem| Problem { since: new.since.clone(), ..(*known).clone() } == new;
        previous.problems.iter().find(is_same).cloned().unwrap_or(new)
    });
    let addresses: std::collections::BTreeSet<&IpAddr> =
        actual.values().flat_map(|(_, station)| &station.addresses).collect();
    NodeAnnouncementStatus {
        announced: i32::try_from(addresses.len()).unwrap_or(i32::MAX),
        problems: problems.collect(),
        announcements,
    }
}

/// An address that this node was elected for and cannot announce: no other node will.
fn defects(address: IpAddr, decision: &Decision, now: Timestamp) -> Vec<Problem> {
    let Verdict::Silent(silence @ Silence::NoUsableInterface(_)) = &decision.verdict else { return Vec::new() };
    let problem = |service: String| Problem {
        component: COMPONENT.to_owned(),
        service: Some(service),
        reason: silence.reason().to_owned(),
        message: format!("{address} is not announced: {silence}"),
        since: Time(now),
    };
    decision.services.iter().map(|service| problem(service.to_string())).collect()
}

fn failure(error: &ApplyError, now: Timestamp) -> Problem {
    let reason = match error {
        ApplyError::OpenSockets { .. } => "OpenSockets",
        ApplyError::Ended { .. } => "ResponderEnded",
    };
    let message = chain(error);
    Problem { component: COMPONENT.to_owned(), service: None, reason: reason.to_owned(), message, since: Time(now) }
}

/// Writes each report until shutdown, then an empty one, as nothing is announced any more.
pub async fn write(
    client: Client,
    node: NodeName,
    mut reports: watch::Receiver<Option<Report>>,
    mut shutdown: Shutdown,
) {
    let api: Api<NodeAnnouncement> = Api::all(client);
    let mut pause = FIRST_PAUSE;
    let rewrite = rewrite_every(&node);
    loop {
        let report = reports.borrow_and_update().clone();
        let outcome = match &report {
            Some(report) => tokio::select! {
                () = shutdown.requested() => break,
                outcome = tokio::time::timeout(PATIENCE, put(&api, &node, report)) => match outcome {
                    Ok(outcome) => outcome.map_err(WriteError::from),
                    Err(_) => Err(WriteError::Silence),
                },
            },
            None => Ok(()),
        };
        match outcome {
            Ok(()) => {
                pause = FIRST_PAUSE;
                tokio::select! {
                    () = shutdown.requested() => break,
                    changed = reports.changed() => if changed.is_err() { break },
                    () = tokio::time::sleep(rewrite) => {}
                }
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), ?pause, "node announcement could not be written, trying again");
                tokio::select! {
                    () = shutdown.requested() => break,
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                }
            }
        }
    }
    let written = reports.borrow().clone();
    if let Some(Report { owner, .. }) = written {
        let last = Report { owner, status: NodeAnnouncementStatus::default() };
        match tokio::time::timeout(FAREWELL, put(&api, &node, &last)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "node announcement could not be emptied"),
            Err(_) => tracing::warn!("node announcement could not be emptied in time"),
        }
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
async fn put(api: &Api<NodeAnnouncement>, node: &NodeName, report: &Report) -> Result<(), kube::Error> {
    let Some(owner) = &report.owner else {
        return match put_status(api, node, &report.status).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            outcome => outcome,
        };
    };
    let object = owned(node, owner);
    api.patch(node.as_str(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await?;
    put_status(api, node, &report.status).await
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
    use crate::model::link::{InterfaceIndex, Mac};
    use crate::names::ServiceKey;
    use crate::speaker::interfaces::NoInterface;
    use crate::speaker::l2::responder::Station;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn stations(mac: u8, addresses: &[&str]) -> Stations {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let station = Station { mac: Mac::new([2, 0, 0, 0, 0, mac]), addresses };
        [(InterfaceIndex::new(2), ("eth0".into(), station))].into()
    }

    #[test]
    fn what_goes_on_keeps_its_time() {
        let none = NodeAnnouncementStatus::default();
        let first = status(&stations(1, &["192.0.2.1", "2001:db8::1"]), &BTreeMap::new(), &[], &none, at(1));
        assert_eq!(first.announced, 2);
        let again = status(&stations(1, &["192.0.2.1", "2001:db8::1"]), &BTreeMap::new(), &[], &first, at(9));
        assert_eq!(again, first, "so that nothing is written");
        let other_mac = status(&stations(7, &["192.0.2.1"]), &BTreeMap::new(), &[], &first, at(9));
        assert_eq!(other_mac.announcements[0].since, MicroTime(at(9)));
    }

    #[test]
    fn the_object_belongs_to_the_node_and_is_rewritten_every_few_minutes() {
        let object = owned(&"node1".into(), "uid-1");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "uid-1");
        let spans = ["node1", "node2", "node3"].map(|node| rewrite_every(&node.into()));
        assert!(spans.iter().all(|span| (REWRITE..REWRITE * 5 / 4).contains(span)), "{spans:?}");
        assert!(spans[0] != spans[1] && spans[1] != spans[2]);
    }

    #[test]
    fn an_elected_node_without_an_interface_says_so() {
        let silence = Silence::NoUsableInterface(NoInterface::NoneMatches);
        let decision =
            Decision { services: vec![ServiceKey::new("default", "web")], verdict: Verdict::Silent(silence) };
        let other = Decision {
            services: vec![ServiceKey::new("default", "db")],
            verdict: Verdict::Silent(Silence::NotElected { by: "node2".into() }),
        };
        let decisions = [("192.0.2.1".parse().unwrap(), decision), ("192.0.2.2".parse().unwrap(), other)].into();
        let written = status(&Stations::new(), &decisions, &[], &NodeAnnouncementStatus::default(), at(1));
        let [problem] = written.problems.as_slice() else { panic!("{:?}", written.problems) };
        assert_eq!(problem.service.as_deref(), Some("default/web"));
        assert_eq!(problem.message, "192.0.2.1 is not announced: no interface matches");
    }
}
