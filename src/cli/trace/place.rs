//! On which node a packet meets the rules: where it is sent from, if that is known, else where it arrives.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::objects::Objects;
use crate::model::node::Node;
use crate::names::NodeName;

/// Why no node can be chosen.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlaceError {
    /// There are no nodes at all.
    #[error("there are no nodes among the objects")]
    NoNodes,
    /// None has the name.
    #[error("there is no node {name}; there are {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// Nothing tells where the packet meets the rules.
    #[error(
        "{from} may arrive at any of {known}: say --node NAME or --all-nodes (it is no address of a node or pod that is \
         known, and no node is known to announce the destination)"
    )]
    Ambiguous {
        /// The source.
        from: IpAddr,
        /// The nodes.
        known: String,
    },
}

/// A node, and why it.
pub(super) type Chosen<'a> = (&'a Node, String);

/// The node of that name.
pub(super) fn named<'a>(objects: &'a Objects, name: &str) -> Result<Chosen<'a>, PlaceError> {
    let known = || PlaceError::Unknown { name: name.to_owned(), known: names(objects) };
    let node = objects.nodes.iter().find(|node| node.name.as_str() == name).ok_or_else(known)?;
    Ok((node, "named by --node".to_owned()))
}

/// Every node.
pub(super) fn all(objects: &Objects) -> Result<Vec<Chosen<'_>>, PlaceError> {
    if objects.nodes.is_empty() {
        return Err(PlaceError::NoNodes);
    }
    Ok(objects.nodes.iter().map(|node| (node, "named by --all-nodes".to_owned())).collect())
}

/// The node that the packet itself leads to.
pub(super) fn choose(objects: &Objects, from: IpAddr, to: SocketAddr) -> Result<Chosen<'_>, PlaceError> {
    if objects.nodes.is_empty() {
        return Err(PlaceError::NoNodes);
    }
    let of = |name: &NodeName| objects.nodes.iter().find(|node| node.name == *name);
    let with = |address: IpAddr| objects.nodes.iter().find(move |node| node.addresses.contains(&address));
    let endpoint = || {
        let mut endpoints = objects.slices.iter().flat_map(|slice| &slice.endpoints);
        endpoints.find(|endpoint| endpoint.address == from).and_then(|endpoint| of(endpoint.node.as_ref()?))
    };
    let pod_node = || objects.nodes.iter().find(|node| node.pod_cidrs.iter().any(|prefix| prefix.contains(&from)));
    let announcer = || {
        let announced = objects.announcements.iter().find(|(_, address)| *address == to.ip());
        announced.and_then(|(node, _)| of(node))
    };
    if let Some(node) = with(from) {
        return Ok((node, format!("{from} is its address")));
    }
    if let Some(node) = endpoint() {
        return Ok((node, format!("{from} is an endpoint that runs there")));
    }
    if let Some(node) = pod_node() {
        return Ok((node, format!("{from} is in its pod CIDR")));
    }
    if let Some(node) = with(to.ip()) {
        return Ok((node, format!("{} is its address", to.ip())));
    }
    if let Some(node) = announcer() {
        return Ok((node, format!("it announces {}", to.ip())));
    }
    match objects.nodes.as_slice() {
        [node] => Ok((node, "the only node".to_owned())),
        _ => Err(PlaceError::Ambiguous { from, known: names(objects) }),
    }
}

/// Where a packet goes on to that nobody serves on the node: the node whose address it is sent to.
pub(super) fn next<'a>(objects: &'a Objects, after: &Node, to: IpAddr) -> Option<Chosen<'a>> {
    let next = objects.nodes.iter().find(|node| node.addresses.contains(&to))?;
    (next.name != after.name)
        .then(|| (next, format!("{to} is its address, and the packet comes there from {}", after.name)))
}

fn names(objects: &Objects) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<&str> = objects.nodes.iter().take(SHOWN).map(|node| node.name.as_str()).collect();
    if objects.nodes.len() > SHOWN {
        names.push("…");
    }
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
