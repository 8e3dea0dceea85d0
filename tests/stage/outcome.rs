//! From what was seen of a flow's packets to its verdict.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use steelyard::datapath::simulate::{Packet, Verdict};

use super::wire::Seen;
use crate::flows::expect::Expect;
use crate::flows::form::Flow;

/// What became of one packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Translated {
        to: SocketAddr,
        is_masqueraded: bool,
    },
    Untouched,
    Rejected,
    Gone,
    /// A port of the packet or the answer to it that nobody should see.
    Odd(String),
}

/// How many connections show all of a flow's endpoints, and one that it should not have: the chance to miss one is one
/// in ten million.
pub fn connections(expect: &Expect) -> usize {
    match expect {
        Expect::Dnat { endpoints, .. } => connections_to_see(endpoints.len()),
        Expect::Drop | Expect::Reject | Expect::Passthrough => 3,
    }
}

/// The same for so many endpoints.
pub fn connections_to_see(endpoints: usize) -> usize {
    let count = endpoints.max(2) as f64;
    ((count * 1e7).ln() / -(1.0 - 1.0 / count).ln()).ceil().min(4_000.0) as usize
}

/// Whether anything is to be seen of a flow's packets.
pub const fn is_visible(expect: &Expect) -> bool {
    match expect {
        Expect::Dnat { .. } | Expect::Reject | Expect::Passthrough => true,
        Expect::Drop => false,
    }
}

/// Holds what was seen of each packet of a flow to what should be.
pub fn check(flow: &Flow, packets: &[Vec<Seen>]) -> Result<(), String> {
    let fates: BTreeSet<Fate> = packets.iter().map(|seen| fate(&flow.packet, seen)).collect();
    flow.expect.check(&verdict(&fates)?)
}

/// What became of the packets of all connections of a flow; an error where some fared otherwise than others.
pub fn outcome<'a>(fates: impl IntoIterator<Item = &'a Fate>) -> Result<Expect, String> {
    Ok(Expect::from(&verdict(&fates.into_iter().cloned().collect())?))
}

/// What became of a packet, from what was seen of it.
pub fn fate(packet: &Packet, seen: &[Seen]) -> Fate {
    let dialled = SocketAddr::new(packet.destination, packet.port.get());
    let mut arrivals = seen.iter().filter_map(|seen| match *seen {
        Seen::Packet { source, destination, .. } => Some((source, destination)),
        Seen::Error { .. } => None,
    });
    let mut errors = seen.iter().filter_map(|seen| match *seen {
        Seen::Error { to, is_port_unreachable, .. } => Some((to, is_port_unreachable)),
        Seen::Packet { .. } => None,
    });
    match (arrivals.next(), arrivals.next(), errors.next()) {
        (Some(first), Some(second), _) => Fate::Odd(format!("arrived twice: {first:?}, {second:?}")),
        // A port without a listener is answered by the node's own stack: the packet arrived, that is what counts.
        (Some((source, to)), None, _) if to == dialled => {
            if source == packet.source {
                Fate::Untouched
            } else {
                Fate::Odd(format!("came from {source}"))
            }
        }
        (Some((source, to)), None, _) => Fate::Translated { to, is_masqueraded: source != packet.source },
        (None, _, Some((to, true))) if to == packet.source => Fate::Rejected,
        (None, _, Some(error)) => Fate::Odd(format!("another error: {error:?}")),
        (None, _, None) => Fate::Gone,
    }
}

fn verdict(fates: &BTreeSet<Fate>) -> Result<Verdict, String> {
    let mut endpoints = BTreeSet::new();
    let mut masquerade_when = BTreeSet::new();
    let mut plain = BTreeSet::new();
    let mut others = Vec::new();
    for fate in fates {
        match fate {
            Fate::Translated { to, is_masqueraded } => {
                endpoints.insert(*to);
                let set = if *is_masqueraded { &mut masquerade_when } else { &mut plain };
                set.insert(*to);
            }
            other @ (Fate::Untouched | Fate::Rejected | Fate::Gone | Fate::Odd(_)) => others.push(other),
        }
    }
    match (endpoints.is_empty(), others.as_slice()) {
        (false, []) if plain.is_disjoint(&masquerade_when) => {
            Ok(Verdict::Dnat { endpoints, masquerade: false, masquerade_when })
        }
        (true, [Fate::Untouched]) => Ok(Verdict::Passthrough),
        (true, [Fate::Rejected]) => Ok(Verdict::Reject),
        (true, [Fate::Gone]) => Ok(Verdict::Drop),
        _ => Err(format!("not all packets fared alike: {fates:?}")),
    }
}
