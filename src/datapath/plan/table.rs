//! What is believed to be in one table, and how a turn changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::claims::Claims;
use super::difference::{Change, Difference, compare};
use super::undo::Undo;
use super::{Found, Growth, TableChange};
use crate::datapath::desired::Update;
use crate::datapath::entry::{EntryKey, ForwardingEntry, NodeForwarding};
use crate::datapath::nft::classes::{Classes, Purpose};
use crate::datapath::nft::compose::{elements_of, node_elements, policies, policy_of};
use crate::datapath::nft::elements::{Element, SharedKey};
use crate::datapath::nft::ids::{Class, Exhausted, Ids};
use crate::datapath::nft::sizes::Rooms;
use crate::model::Family;
use crate::model::flat::{fill, pack, pack_set};
use crate::model::service::TrafficPolicy;

/// What is believed to be in a table.
#[derive(Clone, Debug, Default)]
pub(super) struct TableBelief {
    pub(super) exists: bool,
    pub(super) ids: Ids,
    pub(super) classes: Classes,
    /// The elements that each entry wants, in order.
    pub(super) entries: BTreeMap<EntryKey, Box<[Element]>>,
    /// Who wants an element that others may want too. The kernel has that of the first.
    pub(super) claims: BTreeMap<SharedKey, Claims>,
    pub(super) node: BTreeSet<Element>,
    pub(super) rooms: Rooms,
    /// Addresses that nobody has since we served them. The kernel forgets them one by one; here they stay until somebody has
    /// them again, or until the kernel is looked at.
    pub(super) released: BTreeSet<IpAddr>,
    /// What the kernel was found to have, until the next turn.
    pub(super) found: Option<Found>,
    /// What the last turn changed, if it was not over everything.
    pub(super) undo: Option<Undo>,
}

/// What of the node a turn looks at: all of it, or certain addresses that Services have.
#[derive(Clone, Copy)]
pub(super) struct NodeScope<'a> {
    pub(super) node: &'a NodeForwarding,
    pub(super) addresses: Option<&'a Update>,
}

impl TableBelief {
    pub(super) fn adopt<'a>(
        &mut self,
        mut found: Found,
        entries: impl Iterator<Item = (&'a EntryKey, &'a ForwardingEntry)>,
    ) {
        let released = |element: &Element| if let Element::Released(address) = element { Some(*address) } else { None };
        let addresses = found.elements.iter().filter_map(released).collect();
        // Nobody wants these, and they are not to be deleted for that.
        found.elements.retain(|element| released(element).is_none());
        found.elements.sort_unstable();
        let ids = if self.ids.is_empty() { Self::ids_in(&found, entries) } else { std::mem::take(&mut self.ids) };
        *self =
            Self { exists: true, ids, classes: Classes::adopt(&found.classes), released: addresses, ..Self::default() };
        self.rooms = Rooms::with(found.sizes, &found.elements);
        self.found = Some(found);
    }

    /// The ids that the kernel has for these entries.
    fn ids_in<'a>(found: &Found, entries: impl Iterator<Item = (&'a EntryKey, &'a ForwardingEntry)>) -> Ids {
        let mut values = BTreeMap::new();
        let mut inside = BTreeMap::new();
        for element in &found.elements {
            if let Element::Inside { local, cluster } = *element {
                inside.insert(local, cluster);
            } else if let (Some(key), Some(value)) = (element.shared_key(), element.frontend_value()) {
                values.insert(key, value);
            }
        }
        let (mut ids, mut adopted) = (Ids::default(), BTreeSet::new());
        for (key, entry) in entries {
            for (frontend, treatment) in &entry.frontends {
                let shared = SharedKey::of(*frontend, key.port.protocol);
                let Some(value) = values.get(&shared) else { continue };
                ids.adopt(key, policy_of(*treatment), value.id(), &mut adopted);
                if let Some(cluster) = inside.get(value) {
                    ids.adopt(key, TrafficPolicy::Cluster, *cluster, &mut adopted);
                }
            }
        }
        ids.free_all_but(&adopted);
        ids
    }

    pub(super) fn update<'a>(
        &mut self,
        family: Family,
        changed: impl Iterator<Item = &'a EntryKey>,
        wanted: impl Fn(&EntryKey) -> Option<&'a ForwardingEntry>,
        node: NodeScope<'_>,
        refused: &mut BTreeMap<EntryKey, Exhausted>,
    ) -> Option<TableChange> {
        let mut difference = Difference::default();
        let found = self.found.take().map(|found| found.elements);
        self.undo = (self.exists && found.is_none()).then(|| Undo::new(&self.classes, self.rooms));
        let mut entries = Vec::new();
        for key in changed {
            let entry = wanted(key);
            let before = self.entries.remove(key).unwrap_or_default();
            if let Some(undo) = &mut self.undo {
                undo.entry(key, &before, self.ids.all_of(key));
            }
            let had = found.as_ref().map(|found| self.endpoints_in(found, key));
            let had = had.as_deref().unwrap_or(&before);
            let after = match entry.map(|entry| self.elements_of(key, entry, had)) {
                None => Vec::new(),
                Some((elements, exhausted)) => {
                    refused.extend(exhausted.map(|exhausted| (key.clone(), exhausted)));
                    elements
                }
            };
            self.compare_entry(key, &before, &after, &mut difference);
            difference.kept.follow(&before, &after, &self.classes);
            let used = entry.map(policies).filter(|_| !after.is_empty()).unwrap_or_default();
            for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
                if !used.contains(&policy) {
                    self.ids.release(key, policy);
                }
            }
            if !after.is_empty() {
                entries.push((key.clone(), after.into()));
            }
        }
        fill(&mut self.entries, entries);
        self.update_node(family, node, &mut difference);
        for (key, before) in std::mem::take(&mut difference.shared) {
            let after = self.effective(key);
            if before != after {
                difference.deleted.extend(before);
                difference.added.extend(after);
            }
        }
        if let Some(found) = found {
            // What there was before this turn is not nothing but what was found.
            let mut wanted = std::mem::take(&mut difference.added);
            wanted.sort_unstable();
            compare(&found, &wanted, |change| difference.record(change));
        }
        let is_new = !std::mem::replace(&mut self.exists, true);
        self.readmit(node, &mut difference);
        difference.release(node.node, &mut self.released);
        difference.sort();
        self.rooms.follow(&difference.deleted, &difference.added);
        let full = self.rooms.grow();
        let new_classes = self.classes.drain_new();
        let growth = (!is_new && !full.is_empty()).then(|| self.growth(&full, &new_classes));
        difference.into_change(family, is_new, new_classes, self.rooms.sizes(), growth)
    }

    /// All that shall be in these maps.
    fn growth(&self, full: &[&'static str], new_classes: &[(Purpose, Class)]) -> Growth {
        let own = self.entries.values().flatten().filter(|element| element.shared_key().is_none()).chain(&self.node);
        let shared = self.claims.keys().filter_map(|key| self.effective(*key));
        let mut maps: BTreeMap<&'static str, Vec<Element>> = full.iter().map(|map| (*map, Vec::new())).collect();
        for element in own.copied().chain(shared) {
            if let Some(elements) = maps.get_mut(element.set()) {
                elements.push(element);
            }
        }
        maps.values_mut().for_each(|elements| elements.sort_unstable());
        Growth { maps, classes: self.classes.all().filter(|class| !new_classes.contains(class)).collect() }
    }

    /// The elements of an entry, and what it has to do without. Better served without session affinity than not at all: or
    /// whoever may make Services could use up the classes of all others.
    fn elements_of(
        &mut self,
        key: &EntryKey,
        entry: &ForwardingEntry,
        had: &[Element],
    ) -> (Vec<Element>, Option<Exhausted>) {
        let mut make = |entry: &ForwardingEntry| elements_of(key, entry, &mut self.ids, &mut self.classes, had);
        let exhausted = match make(entry) {
            Ok(elements) => return (elements, None),
            Err(exhausted) => exhausted,
        };
        let plain = ForwardingEntry { affinity: None, ..entry.clone() };
        match (exhausted, entry.affinity) {
            (Exhausted::Classes, Some(_)) => match make(&plain) {
                Ok(elements) => (elements, Some(Exhausted::Affinity)),
                Err(exhausted) => (Vec::new(), Some(exhausted)),
            },
            (exhausted, _) => (Vec::new(), Some(exhausted)),
        }
    }

    fn update_node(&mut self, family: Family, scope: NodeScope<'_>, difference: &mut Difference) {
        let NodeScope { node, addresses } = scope;
        let Some(Update { cluster_ips, served, .. }) = addresses else {
            let wanted = node_elements(node, family).into_iter().collect();
            compare(&self.node, &wanted, |change| difference.record(change));
            if let Some(undo) = &mut self.undo {
                undo.node(&self.node);
            }
            self.node = wanted;
            return;
        };
        let is_here = |address: &&IpAddr| Family::of(**address) == family;
        let cluster_ips = cluster_ips
            .iter()
            .filter(is_here)
            .map(|address| (Element::ClusterIp(*address), node.cluster_ips.contains(address)));
        let served = served.iter().filter(is_here).map(|address| (Element::Served(*address), node.serves(*address)));
        for (element, is_wanted) in cluster_ips.chain(served) {
            let is_changed = if is_wanted { self.node.insert(element) } else { self.node.remove(&element) };
            if is_changed {
                difference.record(if is_wanted { Change::Added(&element) } else { Change::Deleted(&element) });
                if let Some(undo) = &mut self.undo {
                    undo.address(element, !is_wanted);
                }
            }
        }
    }

    pub(super) fn pack(&mut self) {
        pack(&mut self.entries);
        pack(&mut self.claims);
        pack_set(&mut self.node);
        self.ids.pack();
    }

    /// What was released and is somebody's again is let through: also where that is another, of whom the kernel knows nothing.
    fn readmit(&mut self, scope: NodeScope<'_>, difference: &mut Difference) {
        let NodeScope { node, addresses } = scope;
        let is_back = |address: &&IpAddr| self.released.contains(*address) && node.is_held(**address);
        let back: Vec<IpAddr> = match addresses {
            Some(Update { served, .. }) => served.iter().filter(is_back).copied().collect(),
            None => self.released.iter().filter(is_back).copied().collect(),
        };
        for address in &back {
            self.released.remove(address);
        }
        if let Some(undo) = &mut self.undo {
            undo.readmitted(&back);
        }
        difference.readmitted = back;
    }

    pub(super) fn wastes_classes(&self) -> bool {
        #[expect(clippy::wildcard_enum_match_arm, reason = "only these two have classes")]
        let class = |element: &Element| match *element {
            Element::Service { class, .. } => Some(class),
            Element::Endpoint { memory, .. } => memory,
            _ => None,
        };
        let used = self.entries.values().flatten().filter_map(class).collect();
        self.classes.are_more_than(&used)
    }

    /// The endpoints of an entry among ordered elements.
    fn endpoints_in(&self, elements: &[Element], key: &EntryKey) -> Vec<Element> {
        let mut endpoints = Vec::new();
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            let Some(wanted) = self.ids.get(key, policy) else { continue };
            // Endpoints come before all others, by their ids.
            let id_of = |element: &Element| if let Element::Endpoint { id, .. } = element { Some(*id) } else { None };
            let start = elements.partition_point(|element| id_of(element).is_some_and(|id| id < wanted));
            let rest = elements.get(start..).unwrap_or_default();
            endpoints.extend(rest.iter().take_while(|element| id_of(element) == Some(wanted)));
        }
        endpoints
    }

    fn compare_entry(&mut self, key: &EntryKey, before: &[Element], after: &[Element], difference: &mut Difference) {
        compare(before, after, |change| {
            let element = *change.element();
            let Some(shared) = element.shared_key() else { return difference.record(change) };
            let effective = self.effective(shared);
            if let Some(undo) = &mut self.undo {
                undo.claims(shared, self.claims.get(&shared));
            }
            difference.shared.entry(shared).or_insert(effective);
            let claims = self.claims.entry(shared).or_default();
            match change {
                Change::Added(_) => {
                    claims.insert(key, &element);
                }
                // A changed value was perhaps added before.
                Change::Deleted(_) => {
                    claims.remove(key, &element);
                    if claims.is_empty() {
                        self.claims.remove(&shared);
                    }
                }
            }
        });
    }

    fn effective(&self, shared: SharedKey) -> Option<Element> {
        self.claims.get(&shared)?.first().and_then(|value| shared.element(value))
    }
}
