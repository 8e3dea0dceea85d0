//! What should be true in the kernel: from what has been seen, one [`ForwardingEntry`] for each Service port and family,
//! and what holds for all of them. Kept up change by change; over all Services the same code is a resync.

mod entries;
mod node;
mod owners;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use self::entries::{frontends_of, ports_of};
use self::node::{HeldAddresses, addresses_elsewhere, served_addresses};
use self::owners::{Age, Claim, Owners};
use super::entry::{EntryKey, ForwardingEntry, NodeForwarding};
use super::index::{Changes, Index};
use super::service::ForwardedService;
use super::settings::Settings;
use crate::model::flat::{fill, pack, pack_set};
use crate::model::node::Node;
use crate::model::{Family, Protocol};
use crate::names::{PortName, ServiceKey, ServicePortKey};

pub use self::entries::{Standing, entries_of};
pub use self::owners::{Conflict, FrontendKey};

/// What a turn changed: all that `plan` has to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Entries that came, changed or went.
    pub entries: BTreeSet<EntryKey>,
    /// Cluster IPs that came or went.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Load-balancer addresses that came or went, or that are now served by another.
    pub served: BTreeSet<IpAddr>,
    /// Whether anything else of [`NodeForwarding`] changed.
    pub is_node_changed: bool,
}

impl Update {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.cluster_ips.is_empty() && self.served.is_empty() && !self.is_node_changed
    }
}

/// The desired state.
#[derive(Debug, Default)]
pub struct Desired {
    entries: BTreeMap<EntryKey, ForwardingEntry>,
    node: NodeForwarding,
    cluster_ips: HeldAddresses,
    served: HeldAddresses,
    served_elsewhere: HeldAddresses,
    owners: Owners,
}

impl Desired {
    /// Works out all of an index at once.
    pub fn from_index(index: &Index, settings: &Settings) -> Self {
        let mut desired = Self::default();
        desired.update(index, settings, &index.everything());
        desired
    }

    /// Every entry.
    pub const fn entries(&self) -> &BTreeMap<EntryKey, ForwardingEntry> {
        &self.entries
    }

    /// The entries of one Service.
    pub fn entries_of(&self, service: &ServiceKey) -> impl Iterator<Item = (&EntryKey, &ForwardingEntry)> {
        let first = EntryKey {
            port: ServicePortKey { service: service.clone(), port: PortName::new(""), protocol: Protocol::Tcp },
            family: Family::V4,
        };
        self.entries.range(first..).take_while(move |(key, _)| key.port.service == *service)
    }

    /// What holds for all Services.
    pub const fn node(&self) -> &NodeForwarding {
        &self.node
    }

    /// Which Service port has a frontend.
    pub fn owner(&self, frontend: &FrontendKey) -> Option<&EntryKey> {
        self.owners.owner(frontend)
    }

    /// Who goes without a frontend because another Service has it.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> + '_ {
        self.owners.conflicts()
    }

    /// A number that is another one whenever [`Self::conflicts`] may have changed: most turns need not look.
    pub const fn disputes(&self) -> u64 {
        self.owners.disputes()
    }

    /// Gives back memory to spare, after a turn over everything.
    pub fn pack(&mut self) {
        pack(&mut self.entries);
        pack_set(&mut self.node.cluster_ips);
        for held in [&mut self.cluster_ips, &mut self.served, &mut self.served_elsewhere] {
            held.pack();
        }
        self.owners.pack();
    }

    /// Takes in what changed since the last turn. The settings must be the same in every turn.
    ///
    /// Costs as much as the Services named in `changes`, and those that gain or lose a frontend by them. Before this
    /// node's own object has been seen there is nothing to decide, and the index names everything again when it comes.
    pub fn update(&mut self, index: &Index, settings: &Settings, changes: &Changes) -> Update {
        let Some(node) = index.node() else { return Update::default() };
        let mut update = Update::default();
        if changes.is_node_changed {
            update.is_node_changed = self.update_node(index, settings, node);
        }
        // Who owns what is settled first, over all Services that changed; then each gets what it owns.
        let mut concerned = changes.services.clone();
        for key in &changes.services {
            let service = index.service(key);
            let elsewhere = service.map(addresses_elsewhere).unwrap_or_default();
            update.served.extend(self.served_elsewhere.replace(key, &elsewhere, &mut self.node.served_elsewhere));
            let service = service.filter(|service| service.is_proxied);
            concerned.extend(self.claim(key, service, &mut update));
        }
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for key in &concerned {
            let wishes =
                index.service(key).map(|service| entries_of(service, index.slices_of(key), node)).unwrap_or_default();
            self.settle(key, wishes, &mut gone, &mut new);
        }
        for key in &gone {
            self.entries.remove(key);
        }
        update.entries = gone.into_iter().chain(new.iter().map(|(key, _)| key.clone())).collect();
        fill(&mut self.entries, new);
        update
    }

    fn update_node(&mut self, index: &Index, settings: &Settings, node: &Node) -> bool {
        // What follows from Services stays as it is.
        let mut before = std::mem::take(&mut self.node);
        let cluster_ips = std::mem::take(&mut before.cluster_ips);
        let served = std::mem::take(&mut before.served);
        let served_elsewhere = std::mem::take(&mut before.served_elsewhere);
        let wanted = NodeForwarding {
            pod_cidrs: node::pod_prefixes(settings, node),
            masquerade_all: settings.masquerade_all,
            node_ports: node::node_ports(settings, node, index.local_addresses()),
            service_cidrs: index.service_cidrs().collect(),
            node_addresses: index.node_addresses().collect(),
            echo_answers: node::echo_answers(settings, node, index.local_addresses()),
            ..NodeForwarding::default()
        };
        let is_changed = before != wanted;
        self.node = NodeForwarding { cluster_ips, served, served_elsewhere, ..wanted };
        is_changed
    }

    /// Takes a Service's claims and cluster IPs, and names the others to whom that gives a frontend or takes one.
    fn claim(
        &mut self,
        key: &ServiceKey,
        service: Option<&ForwardedService>,
        update: &mut Update,
    ) -> BTreeSet<ServiceKey> {
        let cluster_ips = service.map(|service| &*service.cluster_ips).unwrap_or_default();
        update.cluster_ips.extend(self.cluster_ips.replace(key, cluster_ips, &mut self.node.cluster_ips));
        let served = service.map(served_addresses).unwrap_or_default();
        update.served.extend(self.served.replace(key, &served, &mut self.node.served));
        let mut claims: BTreeMap<FrontendKey, Vec<Claim>> = BTreeMap::new();
        if let Some(service) = service {
            let age = Age::from(service.created);
            for (entry, port) in ports_of(service) {
                for (frontend, wanted) in frontends_of(service, port, entry.family) {
                    let key = FrontendKey { family: entry.family, protocol: entry.port.protocol, frontend };
                    claims.entry(key).or_default().push(Claim { standing: wanted.standing, age, entry: entry.clone() });
                }
            }
        }
        self.owners.replace(key, claims)
    }

    /// Tells which of a Service's entries go and which come or change for it to have those that it wishes, without the
    /// frontends that another owns.
    fn settle(
        &self,
        service: &ServiceKey,
        mut wanted: BTreeMap<EntryKey, ForwardingEntry>,
        gone: &mut Vec<EntryKey>,
        new: &mut Vec<(EntryKey, ForwardingEntry)>,
    ) {
        wanted.retain(|key, entry| {
            entry.frontends.retain(|frontend, _| {
                let frontend = FrontendKey { family: key.family, protocol: key.port.protocol, frontend: *frontend };
                self.owners.owner(&frontend) == Some(key)
            });
            !entry.frontends.is_empty()
        });
        gone.extend(self.entries_of(service).map(|(key, _)| key).filter(|key| !wanted.contains_key(key)).cloned());
        new.extend(wanted.into_iter().filter(|(key, entry)| self.entries.get(key) != Some(entry)));
    }
}

#[cfg(test)]
mod tests;
