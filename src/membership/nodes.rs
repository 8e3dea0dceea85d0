//! Which nodes there are and where they are heard: a watch of the API, kept to names and addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::{mpsc, watch};

use super::NodeAddresses;
use crate::model::node::{Node, NodeError};
use crate::names::NodeName;
use crate::runtime::watch::{Event, Observed, Sink, sink};

/// How many events may wait; each is taken at once.
const QUEUE: usize = 64;

/// A node, as far as heartbeats need it.
#[derive(Clone, Debug)]
struct Addresses {
    node: NodeName,
    addresses: Vec<IpAddr>,
}

impl Observed for Addresses {
    type Object = core::Node;
    type Key = NodeName;
    type Error = NodeError;

    fn key(metadata: &ObjectMeta) -> Option<NodeName> {
        metadata.name.as_deref().map(NodeName::new)
    }

    fn read(object: &core::Node) -> Result<Self, NodeError> {
        let node = Node::try_from(object)?;
        Ok(Self { node: node.name, addresses: node.addresses })
    }
}

/// Takes a watch of Nodes that others take too; the receiver always holds the newest addresses, none until the first list
/// is in.
pub fn addresses() -> (Box<dyn Sink<core::Node>>, watch::Receiver<Arc<NodeAddresses>>) {
    let (sender, receiver) = watch::channel(Arc::new(BTreeMap::new()));
    let (events, mut queue) = mpsc::channel::<Event<Addresses>>(QUEUE);
    tokio::spawn(async move {
        while let Some(event) = queue.recv().await {
            sender.send_if_modified(|known| apply(Arc::make_mut(known), event));
        }
    });
    (sink(events, |event| event), receiver)
}

/// Whether anything is new.
fn apply(known: &mut NodeAddresses, event: Event<Addresses>) -> bool {
    match event {
        Event::Replaced(nodes) => {
            let new = nodes.into_iter().map(|node| (node.node, node.addresses)).collect();
            let is_new = *known != new;
            *known = new;
            is_new
        }
        Event::Applied(node) => known.insert(node.node, node.addresses.clone()) != Some(node.addresses),
        Event::Removed(node) => known.remove(&node).is_some(),
    }
}
