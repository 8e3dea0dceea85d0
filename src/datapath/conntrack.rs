//! Which tracked connections go nowhere useful any more: a pure decision from what has been seen, flow by flow.
//!
//! Only UDP is judged. A client that keeps one socket open refreshes its entry for ever, so that without help it would
//! stay with an endpoint that is gone, or with no endpoint at all from before there was a Service. TCP finds out by
//! itself. Traffic policies and hints do not count here: an established flow may stay with any endpoint that serves.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use super::desired::{Desired, FrontendKey};
use super::entry::{EntryKey, Frontend};
use super::index::Index;
use crate::model::{Family, Protocol};

/// What the kernel remembers of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its protocol.
    pub protocol: Protocol,
    /// Where the client sent it.
    pub destination: SocketAddr,
    /// Who answers: the endpoint, or the destination itself where nothing was translated.
    pub reply_source: IpAddr,
}

/// Whether a flow has to be forgotten, so that its next packet is taken to an endpoint anew.
///
/// Frontends that no Service has any more are not judged here: they are known only to whoever removed them.
pub fn is_stale(flow: &Flow, desired: &Desired, index: &Index) -> bool {
    match flow.protocol {
        Protocol::Udp => owner_of(flow, desired, index).is_some_and(|key| !is_served(flow.reply_source, key, index)),
        Protocol::Tcp | Protocol::Sctp => false,
    }
}

/// The Service port that a flow was sent to. NodePorts count at every local address: where they answer is a setting,
/// which may have been another one when the flow began.
fn owner_of<'a>(flow: &Flow, desired: &'a Desired, index: &Index) -> Option<&'a EntryKey> {
    let family = Family::of(flow.destination.ip());
    let owner = |frontend| desired.owner(&FrontendKey { family, protocol: flow.protocol, frontend });
    owner(Frontend::Address(flow.destination)).or_else(|| {
        let port = NonZeroU16::new(flow.destination.port())?;
        let is_local = index.local_addresses().contains(&flow.destination.ip());
        owner(Frontend::NodePort(port)).filter(|_| is_local)
    })
}

/// Whether an address is that of an endpoint which still answers, ready for new connections or not.
fn is_served(address: IpAddr, key: &EntryKey, index: &Index) -> bool {
    index
        .slices_of(&key.port.service)
        .filter(|slice| slice.family == key.family)
        .filter(|slice| slice.ports.contains_key(&(key.port.port.clone(), key.port.protocol)))
        .flat_map(|slice| &slice.endpoints)
        .any(|endpoint| endpoint.address == address && endpoint.conditions.is_serving)
}
