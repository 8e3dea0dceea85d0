//! What the speaker has seen, reduced to what election and announcing need. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::membership::Members;
use crate::model::Family;
use crate::model::advertisement::L2Advertisement;
use crate::model::claim::{Claim, Holder};
use crate::model::endpoints::{EndpointSlice, SliceKey};
use crate::model::link::Links;
use crate::model::node::Node;
use crate::model::programmed::Programmed;
use crate::model::selector::Labels;
use crate::model::service::{Service, ServiceType, TrafficPolicy};
use crate::names::{AdvertisementName, ClaimName, NodeName, PoolName, ServiceKey};

/// A Service, as far as it decides who announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedService {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Whether its type is LoadBalancer.
    pub is_load_balancer: bool,
    /// `spec.externalTrafficPolicy`.
    pub policy: TrafficPolicy,
}

impl From<&Service> for AnnouncedService {
    fn from(service: &Service) -> Self {
        Self {
            key: service.key.clone(),
            uid: service.uid.clone(),
            labels: service.labels.clone(),
            is_load_balancer: service.service_type == ServiceType::LoadBalancer,
            policy: service.external_policy,
        }
    }
}

/// Where the endpoints of one slice are that can take a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsableEndpoints {
    /// Namespace and name of the slice.
    pub slice: SliceKey,
    /// The Service.
    pub service: ServiceKey,
    /// The family of all its endpoints.
    pub family: Family,
    /// Whether there is one at all: some name no node.
    pub exist: bool,
    /// The nodes that have one.
    pub nodes: BTreeSet<NodeName>,
    /// Those of them that have a ready one, not only such as terminate.
    pub ready_nodes: BTreeSet<NodeName>,
}

impl From<&EndpointSlice> for UsableEndpoints {
    fn from(slice: &EndpointSlice) -> Self {
        // What the datapath falls back to counts too: nobody announces what cannot be forwarded, and whatever can be is
        // announced. An endpoint that is neither ready nor terminating is not used even if it says that it serves.
        let usable = || {
            slice.endpoints.iter().filter(|endpoint| {
                let conditions = endpoint.conditions;
                conditions.is_ready || (conditions.is_serving && conditions.is_terminating)
            })
        };
        Self {
            slice: slice.key.clone(),
            service: slice.service.clone(),
            family: slice.family,
            exist: usable().next().is_some(),
            nodes: usable().filter_map(|endpoint| endpoint.node.clone()).collect(),
            ready_nodes: usable()
                .filter(|endpoint| endpoint.conditions.is_ready)
                .filter_map(|endpoint| endpoint.node.clone())
                .collect(),
        }
    }
}

/// The labels of a pool, by which advertisements select it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLabels {
    /// The pool.
    pub name: PoolName,
    /// `metadata.labels`.
    pub labels: Labels,
}

/// A change of one set of things. The same three as a watch has.
#[derive(Debug)]
pub enum Change<K, V> {
    /// This is all there is.
    Replaced(Vec<V>),
    /// One is new or has changed.
    Applied(V),
    /// One is gone.
    Removed(K),
}

/// One observation.
#[derive(Debug)]
pub enum Observation {
    /// Of nodes.
    Node(Change<NodeName, Node>),
    /// Of Services.
    Service(Change<ServiceKey, AnnouncedService>),
    /// Of endpoint slices.
    Endpoints(Change<SliceKey, UsableEndpoints>),
    /// Of pools.
    Pool(Change<PoolName, PoolLabels>),
    /// Of advertisements.
    Advertisement(Change<AdvertisementName, L2Advertisement>),
    /// Of claims.
    Claim(Change<ClaimName, Claim>),
    /// Of this node's interfaces.
    Links(Arc<Links>),
    /// Of who is alive.
    Members(Arc<Members>),
    /// Of what this node's kernel forwards.
    Programmed(Arc<Programmed>),
    /// An interface's responder has ended by itself.
    ResponderEnded,
}

/// A set of things by key, and whether its first list is in.
#[derive(Clone, Debug)]
struct Set<K, V> {
    is_listed: bool,
    by_key: BTreeMap<K, V>,
}

impl<K, V> Default for Set<K, V> {
    fn default() -> Self {
        Self { is_listed: false, by_key: BTreeMap::new() }
    }
}

impl<K: Ord, V: PartialEq> Set<K, V> {
    /// Takes a change; whether anything is new.
    fn take(&mut self, change: Change<K, V>, key: impl Fn(&V) -> K) -> bool {
        match change {
            Change::Replaced(values) => {
                let all: BTreeMap<K, V> = values.into_iter().map(|value| (key(&value), value)).collect();
                let is_new = !self.is_listed || all != self.by_key;
                *self = Self { is_listed: true, by_key: all };
                is_new
            }
            Change::Applied(value) => {
                let key = key(&value);
                let is_new = self.by_key.get(&key) != Some(&value);
                self.by_key.insert(key, value);
                is_new
            }
            Change::Removed(key) => self.by_key.remove(&key).is_some(),
        }
    }
}

/// Everything that the speaker knows.
#[derive(Clone, Debug, Default)]
pub struct Index {
    nodes: Set<NodeName, Node>,
    services: Set<ServiceKey, AnnouncedService>,
    endpoints: Set<SliceKey, UsableEndpoints>,
    slices_of: BTreeMap<ServiceKey, BTreeSet<SliceKey>>,
    pools: Set<PoolName, PoolLabels>,
    advertisements: Set<AdvertisementName, L2Advertisement>,
    claims: Set<ClaimName, Claim>,
    links: Option<Arc<Links>>,
    members: Arc<Members>,
    programmed: Arc<Programmed>,
}

/// An address that Services hold, or that is still served for one that moved on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held<'a> {
    /// The address.
    pub address: IpAddr,
    /// The pool that it came from.
    pub pool: &'a PoolName,
    /// The Services; never empty.
    pub services: Vec<&'a AnnouncedService>,
    /// Until when it is served for a former holder; nothing for a present one.
    pub lingers_until: Option<Timestamp>,
}

impl Index {
    /// Takes an observation; whether anything is new.
    pub fn observe(&mut self, observation: Observation) -> bool {
        match observation {
            Observation::Node(change) => self.nodes.take(change, |node| node.name.clone()),
            Observation::Service(change) => self.services.take(change, |service| service.key.clone()),
            Observation::Endpoints(change) => {
                self.group(&change);
                self.endpoints.take(change, |endpoints| endpoints.slice.clone())
            }
            Observation::Pool(change) => self.pools.take(change, |pool| pool.name.clone()),
            Observation::Advertisement(change) => self.advertisements.take(change, |one| one.name.clone()),
            Observation::Claim(change) => self.claims.take(change, |claim| claim.name.clone()),
            Observation::Links(links) => {
                let is_new = self.links.as_ref() != Some(&links);
                self.links = Some(links);
                is_new
            }
            Observation::Members(members) => {
                let is_new = self.members != members;
                self.members = members;
                is_new
            }
            Observation::Programmed(programmed) => {
                let is_new = self.programmed != programmed;
                self.programmed = programmed;
                is_new
            }
            Observation::ResponderEnded => true,
        }
    }

    /// Keeps `slices_of` in step with a change that is about to be taken.
    fn group(&mut self, change: &Change<SliceKey, UsableEndpoints>) {
        let (gone, new) = match change {
            Change::Replaced(all) => {
                self.slices_of.clear();
                (None, all.as_slice())
            }
            Change::Applied(one) => (self.endpoints.by_key.get(&one.slice), std::slice::from_ref(one)),
            Change::Removed(slice) => (self.endpoints.by_key.get(slice), [].as_slice()),
        };
        if let Some(gone) = gone
            && let Some(slices) = self.slices_of.get_mut(&gone.service)
        {
            slices.remove(&gone.slice);
            if slices.is_empty() {
                self.slices_of.remove(&gone.service);
            }
        }
        for endpoints in new {
            self.slices_of.entry(endpoints.service.clone()).or_default().insert(endpoints.slice.clone());
        }
    }

    /// Whether every source has delivered its first list. Membership counts once it knows the nodes of the API.
    pub fn is_complete(&self) -> bool {
        self.nodes.is_listed
            && self.services.is_listed
            && self.endpoints.is_listed
            && self.pools.is_listed
            && self.advertisements.is_listed
            && self.claims.is_listed
            && self.links.is_some()
            && self.members.is_informed
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.by_key.values()
    }

    /// Every advertisement, by name.
    pub fn advertisements(&self) -> impl Iterator<Item = &L2Advertisement> {
        self.advertisements.by_key.values()
    }

    /// The labels of a pool; none if there is no such pool.
    pub fn pool_labels(&self, pool: &PoolName) -> Option<&Labels> {
        self.pools.by_key.get(pool).map(|pool| &pool.labels)
    }

    /// The usable endpoints of a Service in a family.
    pub fn endpoints(&self, service: &ServiceKey, family: Family) -> impl Iterator<Item = &UsableEndpoints> {
        let slices = self.slices_of.get(service).into_iter().flatten();
        slices
            .filter_map(|slice| self.endpoints.by_key.get(slice))
            .filter(move |endpoints| endpoints.family == family && endpoints.exist)
    }

    /// This node's interfaces.
    pub fn links(&self) -> Option<&Links> {
        self.links.as_deref()
    }

    /// Who is alive.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// What this node's kernel forwards.
    pub fn programmed(&self) -> &Programmed {
        &self.programmed
    }

    /// The addresses that somebody holds at this moment. A claim whose holder is gone or has become another Service is
    /// nobody's, whatever the controller has yet to write.
    pub fn held(&self, now: Timestamp) -> impl Iterator<Item = Held<'_>> {
        self.claims.by_key.values().filter_map(move |claim| {
            let tenure = &claim.tenure;
            let holders: Vec<_> = tenure.holders.iter().filter_map(|holder| self.holder(holder)).collect();
            let lingers_until = tenure.lingers_until.filter(|until| holders.is_empty() && now < *until);
            let services = match lingers_until {
                Some(_) => tenure.last_holder.iter().filter_map(|holder| self.holder(holder)).collect(),
                None => holders,
            };
            let is_held = !services.is_empty() && !claim.is_deleting;
            is_held.then_some(Held { address: claim.address, pool: &tenure.pool, services, lingers_until })
        })
    }

    fn holder(&self, holder: &Holder) -> Option<&AnnouncedService> {
        let service = self.services.by_key.get(&holder.service)?;
        (service.uid == holder.uid && service.is_load_balancer).then_some(service)
    }
}
