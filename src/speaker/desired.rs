//! Which addresses this node announces on which interfaces, and why not the others. Pure.
//!
//! Every node makes the same election from the same knowledge, so each knows who announces what; only the last two
//! questions, whether the kernel forwards and which interfaces can announce, are about this node alone.
//!
//! | question, in this order | if not |
//! |---|---|
//! | is the address free of any node? | [`Silence::AddressOfNode`] |
//! | does an advertisement select its pool, its Service and this node? | [`Silence::NoMatchingAdvertisement`] |
//! | has the Service a usable endpoint (of this family; with policy `Local`: here)? | [`Silence::NoUsableEndpoint`], [`Silence::NoLocalEndpoint`] |
//! | is the node admitted? | [`Silence::NodeExcluded`] |
//! | is it alive and ready? | [`Silence::NodeNotReady`] |
//! | is it elected? | [`Silence::NotElected`] |
//! | does its kernel forward? | [`Silence::NotProgrammed`] |
//! | can an interface announce? | [`Silence::NoUsableInterface`] |
//!
//! Differences from MetalLB: endpoints count by family; an advertisement applies if it selects one of the Services that
//! share an address, not only if all do; nodes that are leaving or out of service are no candidates. As there, a Service
//! without any usable endpoint is announced by nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::election::{Ballot, Candidates, elect};
use super::index::{Held, Index};
use super::interfaces::{Usable, choose};
use super::silence::{Exclusion, Silence};
use crate::model::Family;
use crate::model::advertisement::L2Advertisement;
use crate::model::link::InterfaceIndex;
use crate::model::node::Node;
use crate::model::service::TrafficPolicy;
use crate::names::{NodeName, ServiceKey};

/// What this node does about one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The Services that hold it.
    pub services: Vec<ServiceKey>,
    /// What to do.
    pub verdict: Verdict,
}

/// Whether this node announces an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On these interfaces; never none.
    Announce(BTreeMap<InterfaceIndex, Usable>),
    /// Not at all.
    Silent(Silence),
}

/// Decides about every address that is held.
pub fn desired(index: &Index, me: &NodeName, now: Timestamp) -> BTreeMap<IpAddr, Decision> {
    let view = View::new(index);
    let held: BTreeMap<IpAddr, Held<'_>> = index.held(now).map(|held| (held.address, held)).collect();
    let groups = groups(&held);
    let mut memory = Memory::default();
    let mut ballots = BTreeMap::new();
    let mut standings = BTreeMap::new();
    for held in held.values() {
        let standing = view.standing(held, me, &mut memory);
        let group = groups.get(&held.address).copied().unwrap_or(held.address);
        ballots.insert(held.address, Ballot { group, candidates: Arc::clone(&standing.candidates) });
        standings.insert(held.address, standing);
    }
    let owners = elect(&ballots);
    let decide = |held: &Held<'_>| {
        let verdict = match standings.get(&held.address) {
            None => Verdict::Silent(Silence::NoMatchingAdvertisement),
            Some(Standing { against_me: Some(silence), .. }) => Verdict::Silent(silence.clone()),
            Some(Standing { advertisements, .. }) => match owners.get(&held.address) {
                Some(owner) if owner == me => view.announce(held.address, me, advertisements),
                Some(owner) => Verdict::Silent(Silence::NotElected { by: owner.clone() }),
                // With nothing against this node it is a candidate itself.
                None => Verdict::Silent(Silence::NodeNotReady),
            },
        };
        Decision { services: held.services.iter().map(|service| service.key.clone()).collect(), verdict }
    };
    held.iter().map(|(address, held)| (*address, decide(held))).collect()
}

/// When a decision changes though nothing is observed: the next end of a lingering address.
pub fn next_change(index: &Index, now: Timestamp) -> Option<Timestamp> {
    index.held(now).filter_map(|held| held.lingers_until).min()
}

/// The lowest address of each address's group: those that a Service holds belong together, and so do those of Services
/// that share one. An address that lingers for a Service that moved on is by itself, or the move would move it.
fn groups(held: &BTreeMap<IpAddr, Held<'_>>) -> BTreeMap<IpAddr, IpAddr> {
    let mut of_service: BTreeMap<&ServiceKey, IpAddr> = BTreeMap::new();
    let mut parents: BTreeMap<IpAddr, IpAddr> = BTreeMap::new();
    for (address, held) in held.iter().filter(|(_, held)| held.lingers_until.is_none()) {
        for service in &held.services {
            let sibling = *of_service.entry(&service.key).or_insert(*address);
            let (a, b) = (root(&parents, *address), root(&parents, sibling));
            // The lower becomes the root, so that a root is always the lowest of its group.
            if a != b {
                parents.insert(a.max(b), a.min(b));
            }
        }
    }
    held.keys().map(|address| (*address, root(&parents, *address))).collect()
}

fn root(parents: &BTreeMap<IpAddr, IpAddr>, address: IpAddr) -> IpAddr {
    let mut at = address;
    while let Some(parent) = parents.get(&at) {
        at = *parent;
    }
    at
}

/// What is the same for all addresses of a turn, looked up once.
struct View<'a> {
    index: &'a Index,
    nodes: BTreeMap<&'a NodeName, &'a Node>,
    owners_of_addresses: BTreeMap<IpAddr, &'a NodeName>,
    advertisements: Vec<&'a L2Advertisement>,
}

/// Candidates by the advertisements that apply: most addresses have the same.
type Memory = BTreeMap<Vec<usize>, Candidates>;

/// Who may announce an address.
struct Standing<'a> {
    candidates: Candidates,
    advertisements: Vec<&'a L2Advertisement>,
    against_me: Option<Silence>,
}

impl<'a> View<'a> {
    fn new(index: &'a Index) -> Self {
        let addresses = index.nodes().flat_map(|node| node.addresses.iter().map(|address| (*address, &node.name)));
        Self {
            index,
            nodes: index.nodes().map(|node| (&node.name, node)).collect(),
            owners_of_addresses: addresses.collect(),
            advertisements: index.advertisements().collect(),
        }
    }

    fn standing(&self, held: &Held<'_>, me: &NodeName, memory: &mut Memory) -> Standing<'a> {
        let nobody = |silence| Standing {
            candidates: Candidates::default(),
            advertisements: Vec::new(),
            against_me: Some(silence),
        };
        if let Some(node) = self.owners_of_addresses.get(&held.address) {
            return nobody(Silence::AddressOfNode { node: (*node).clone() });
        }
        let applicable = self.applicable(held);
        let advertisements: Vec<&L2Advertisement> =
            applicable.iter().filter_map(|number| self.advertisements.get(*number).copied()).collect();
        let endpoints = Endpoints::of(self.index, held);
        if let Some(silence) = self.against_all(me, &advertisements, &endpoints) {
            return nobody(silence);
        }
        let fit = memory.entry(applicable).or_insert_with(|| Arc::new(self.fit(&advertisements)));
        let candidates = match &endpoints.only_on {
            None => Arc::clone(fit),
            Some(nodes) => {
                let local = fit.iter().filter(|(node, _)| nodes.contains(*node));
                Arc::new(local.map(|(node, preference)| (node.clone(), *preference)).collect())
            }
        };
        let against_me = self.against(me, &advertisements, &endpoints);
        Standing { candidates, advertisements, against_me }
    }

    /// The numbers of the advertisements that select the address.
    fn applicable(&self, held: &Held<'_>) -> Vec<usize> {
        let none = Default::default();
        let labels = self.index.pool_labels(held.pool).unwrap_or(&none);
        let applies = |one: &L2Advertisement| {
            one.selects_pool(held.pool, labels)
                && held.services.iter().any(|service| one.selects_service(&service.labels))
        };
        let numbered = self.advertisements.iter().enumerate();
        numbered.filter(|(_, one)| applies(one)).map(|(number, _)| number).collect()
    }

    /// The nodes that these advertisements select and that are fit to announce, and how much each is preferred.
    fn fit(&self, advertisements: &[&L2Advertisement]) -> BTreeMap<NodeName, i64> {
        let fit = self.nodes.values().filter(|node| self.unfit(node).is_none());
        fit.filter_map(|node| Some((node.name.clone(), preference(node, advertisements)?))).collect()
    }

    fn unfit(&self, node: &Node) -> Option<Silence> {
        if let Some(exclusion) = Exclusion::of(node) {
            return Some(Silence::NodeExcluded(exclusion));
        }
        (!self.index.members().is_candidate(&node.name)).then_some(Silence::NodeNotReady)
    }

    /// What keeps every node from being a candidate.
    fn against_all(
        &self,
        me: &NodeName,
        advertisements: &[&L2Advertisement],
        endpoints: &Endpoints<'_>,
    ) -> Option<Silence> {
        let is_selected = self.nodes.get(me).is_none_or(|node| preference(node, advertisements).is_some());
        match endpoints.exist {
            true => None,
            false if is_selected => Some(Silence::NoUsableEndpoint),
            false => Some(Silence::NoMatchingAdvertisement),
        }
    }

    /// The first thing that keeps this node from being a candidate where others may be.
    fn against(
        &self,
        me: &NodeName,
        advertisements: &[&L2Advertisement],
        endpoints: &Endpoints<'_>,
    ) -> Option<Silence> {
        let Some(node) = self.nodes.get(me) else { return Some(Silence::NodeNotReady) };
        if preference(node, advertisements).is_none() {
            return Some(Silence::NoMatchingAdvertisement);
        }
        if endpoints.only_on.as_ref().is_some_and(|nodes| !nodes.contains(me)) {
            return Some(Silence::NoLocalEndpoint);
        }
        self.unfit(node)
    }

    fn announce(&self, address: IpAddr, me: &NodeName, advertisements: &[&L2Advertisement]) -> Verdict {
        if !self.index.programmed().has(address) {
            return Verdict::Silent(Silence::NotProgrammed);
        }
        let (Some(links), Some(node)) = (self.index.links(), self.nodes.get(me)) else {
            return Verdict::Silent(Silence::NodeNotReady);
        };
        let here = advertisements.iter().filter(|one| one.selects_node(&node.labels));
        match choose(links, address, here.map(|one| one.interfaces.as_slice())) {
            Ok(interfaces) => Verdict::Announce(interfaces),
            Err(why) => Verdict::Silent(Silence::NoUsableInterface(why)),
        }
    }
}

/// The sum of the weights that these advertisements give the node; nothing if none selects it.
fn preference(node: &Node, advertisements: &[&L2Advertisement]) -> Option<i64> {
    let mut here = advertisements.iter().filter(|one| one.selects_node(&node.labels)).peekable();
    here.peek()?;
    Some(here.map(|one| one.preference(&node.labels)).sum())
}

/// Where connections to an address can be taken.
struct Endpoints<'a> {
    exist: bool,
    /// The only nodes that may announce, where every Service at the address has policy `Local`: those with a ready
    /// endpoint, or without any such those whose endpoints terminate.
    only_on: Option<BTreeSet<&'a NodeName>>,
}

impl<'a> Endpoints<'a> {
    fn of(index: &'a Index, held: &Held<'_>) -> Self {
        let family = Family::of(held.address);
        let all = || held.services.iter().flat_map(|service| index.endpoints(&service.key, family));
        // Services that share an address have the same policy; while one of them changes, `Cluster` reaches more.
        let is_local = held.services.iter().all(|service| service.policy == TrafficPolicy::Local);
        // Where the last endpoints terminate the address leaves while they still serve, not when they are gone.
        let only_on = is_local.then(|| {
            let ready: BTreeSet<_> = all().flat_map(|endpoints| &endpoints.ready_nodes).collect();
            if ready.is_empty() { all().flat_map(|endpoints| &endpoints.nodes).collect() } else { ready }
        });
        Self { exist: all().next().is_some(), only_on }
    }
}

#[cfg(test)]
mod tests;
