//! Compares what should be in the kernel with what is believed to be there.
//!
//! The belief is only as good as the last transaction: when one fails it is forgotten, and the next is the whole table.
//! A turn over everything starts from what was found in the kernel instead, since others may have been there.

mod claims;
mod undo;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use self::claims::Claims;
use self::undo::Undo;
use crate::datapath::desired::Update;
use crate::datapath::entry::{EntryKey, ForwardingEntry, NodeForwarding};
use crate::datapath::nft::classes::{Classes, Purpose};
use crate::datapath::nft::compose::{elements_of, node_elements, policies, policy_of};
use crate::datapath::nft::elements::{Element, SharedKey};
use crate::datapath::nft::ids::{Class, Exhausted, Ids, Sticky};
use crate::model::Family;
use crate::model::service::TrafficPolicy;

/// Which entries may have changed since the last turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Any, and entries that are gone too.
    All,
    /// These; an entry that is named and not there is gone. Anything of the node may have changed too.
    Keys(BTreeSet<EntryKey>),
    /// What an update names, and nothing else: costs what it changes.
    Update(Update),
}

impl Scope {
    /// The entries that may have changed; nothing for all.
    pub const fn keys(&self) -> Option<&BTreeSet<EntryKey>> {
        match self {
            Self::All => None,
            Self::Keys(keys) | Self::Update(Update { entries: keys, .. }) => Some(keys),
        }
    }

    /// The only cluster IPs and load-balancer addresses that changed, if nothing else of the node did.
    const fn addresses(&self) -> Option<&Update> {
        match self {
            Self::Update(update @ Update { is_node_changed: false, .. }) => Some(update),
            Self::All | Self::Keys(_) | Self::Update(_) => None,
        }
    }
}

/// Both tables' changes, done together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// At most one for a family, none without a change.
    pub tables: Vec<TableChange>,
}

impl Transaction {
    /// Whether there is nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// How many elements are deleted and added.
    pub fn size(&self) -> (usize, usize) {
        self.tables
            .iter()
            .fold((0, 0), |(deleted, added), table| (deleted + table.deleted.len(), added + table.added.len()))
    }
}

/// What changes in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChange {
    /// The table's.
    pub family: Family,
    /// The table is made anew, and what was in it goes.
    pub is_new: bool,
    /// Chains that come into use.
    pub new_classes: Vec<(Purpose, Class)>,
    /// Elements that go, in order. A changed value is one that goes and one that comes.
    pub deleted: Vec<Element>,
    /// Elements that come, in order.
    pub added: Vec<Element>,
    /// What clients of the entries that changed may go on remembering.
    pub kept: Kept,
}

/// Which endpoints clients may go on remembering: of others, and of ids that have none, memory is to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// By memory and id.
    pub endpoints: BTreeMap<Sticky, BTreeSet<SocketAddr>>,
    /// Whether any endpoint went that clients may remember.
    pub is_less: bool,
}

impl Kept {
    /// Takes in a change of an entry's elements.
    fn follow(&mut self, before: &[Element], after: &[Element], classes: &Classes) {
        for (whose, _) in sticky(before, classes) {
            self.endpoints.entry(whose).or_default();
        }
        for (whose, to) in sticky(after, classes) {
            self.endpoints.entry(whose).or_default().insert(to);
        }
        let is_kept = |(whose, to)| self.endpoints.get(&whose).is_some_and(|kept| kept.contains(&to));
        self.is_less |= !sticky(before, classes).all(is_kept);
    }
}

/// Whose clients may remember which endpoint.
fn sticky(elements: &[Element], classes: &Classes) -> impl Iterator<Item = (Sticky, SocketAddr)> {
    elements.iter().filter_map(|element| {
        if let Element::Endpoint { id, memory: Some(memory), to, .. } = *element {
            classes.remembers(memory, to).then_some((Sticky::new(id, memory), to))
        } else {
            None
        }
    })
}

/// What is believed to be in the kernel.
#[derive(Clone, Debug, Default)]
pub struct Belief {
    v4: TableBelief,
    v6: TableBelief,
}

#[derive(Clone, Debug, Default)]
struct TableBelief {
    exists: bool,
    ids: Ids,
    classes: Classes,
    /// The elements that each entry wants, in order.
    entries: BTreeMap<EntryKey, Vec<Element>>,
    /// Who wants an element that others may want too. The kernel has that of the first.
    claims: BTreeMap<SharedKey, Claims>,
    node: BTreeSet<Element>,
    /// What the kernel was found to have, until the next turn.
    found: Option<Found>,
    /// What the last turn changed, if it was not over everything.
    undo: Option<Undo>,
}

/// What the kernel has, by our own reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The table's.
    pub family: Family,
    /// What has chains.
    pub classes: Vec<(Purpose, Class)>,
    /// All elements.
    pub elements: Vec<Element>,
}

impl Belief {
    /// Plans a turn, and believes from now on that it was done. Entries to skip are planned as if they were not there;
    /// those that get no number are reported and left out likewise, save that [`Exhausted::Affinity`] only takes that away.
    pub fn update(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        scope: &Scope,
        node: &NodeForwarding,
        skipped: &BTreeSet<EntryKey>,
    ) -> (Transaction, BTreeMap<EntryKey, Exhausted>) {
        let mut transaction = Transaction::default();
        let mut refused = BTreeMap::new();
        for family in Family::ALL {
            let table = self.table_mut(family);
            // Addresses are as many as Services: who names those that changed need not look at all.
            let is_known = table.exists && table.found.is_none();
            let node = NodeScope { node, addresses: scope.addresses().filter(|_| is_known) };
            let keys: BTreeSet<&EntryKey> = match scope.keys() {
                None => entries.keys().collect(),
                Some(keys) => keys.iter().collect(),
            };
            let mut known: BTreeSet<EntryKey> = BTreeSet::new();
            if scope.keys().is_none() {
                // Of what was forgotten only the ids are left.
                let all = table.entries.keys().chain(table.ids.keys());
                known.extend(all.filter(|key| !entries.contains_key(key)).cloned());
            }
            let changed = keys.into_iter().chain(&known).filter(|key| key.family == family);
            let wanted = |key: &EntryKey| entries.get(key).filter(|_| !skipped.contains(key));
            transaction.tables.extend(table.update(family, changed, wanted, node, &mut refused));
        }
        (transaction, refused)
    }

    /// Takes over what is in the kernel: the next turn must be over all entries, and changes only what is not as it
    /// should be. Ids are those that were given before; if none were, as after a start, then a frontend's id in the kernel
    /// goes on being that of its entry.
    pub fn adopt(&mut self, found: Found, entries: &BTreeMap<EntryKey, ForwardingEntry>) {
        let family = found.family;
        self.table_mut(family).adopt(found, entries.iter().filter(|(key, _)| key.family == family));
    }

    /// Takes the last turn back: the kernel has not done it. Not possible, and not done, for a turn over everything.
    pub fn undo(&mut self) -> bool {
        match (self.v4.undo.take(), self.v6.undo.take()) {
            (Some(v4), Some(v6)) => {
                v4.apply(&mut self.v4);
                v6.apply(&mut self.v6);
                true
            }
            (None, _) | (_, None) => false,
        }
    }

    /// Forgets what is in the kernel. Ids stay with their Service ports.
    pub fn forget(&mut self) {
        for family in Family::ALL {
            let table = self.table_mut(family);
            let ids = std::mem::take(&mut table.ids);
            *table = TableBelief { ids, ..TableBelief::default() };
        }
    }

    /// Whether a table has chains for numbers of endpoints that no entry has: a new one would do without.
    pub fn wastes_classes(&self) -> bool {
        self.v4.wastes_classes() || self.v6.wastes_classes()
    }

    /// All that clients may remember.
    pub fn kept(&self, family: Family) -> BTreeMap<Sticky, BTreeSet<SocketAddr>> {
        let table = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let mut kept: BTreeMap<Sticky, BTreeSet<SocketAddr>> = BTreeMap::new();
        for (whose, to) in table.entries.values().flat_map(|elements| sticky(elements, &table.classes)) {
            kept.entry(whose).or_default().insert(to);
        }
        kept
    }

    /// Whether nothing is believed to be there: the next transaction makes the tables.
    pub const fn is_nothing(&self) -> bool {
        !self.v4.exists && !self.v6.exists
    }

    const fn table_mut(&mut self, family: Family) -> &mut TableBelief {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl TableBelief {
    fn adopt<'a>(&mut self, mut found: Found, entries: impl Iterator<Item = (&'a EntryKey, &'a ForwardingEntry)>) {
        found.elements.sort_unstable();
        let ids = if self.ids.is_empty() { Self::ids_in(&found, entries) } else { std::mem::take(&mut self.ids) };
        *self = Self { exists: true, ids, classes: Classes::adopt(&found.classes), ..Self::default() };
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

    fn update<'a>(
        &mut self,
        family: Family,
        changed: impl Iterator<Item = &'a EntryKey>,
        wanted: impl Fn(&EntryKey) -> Option<&'a ForwardingEntry>,
        node: NodeScope<'_>,
        refused: &mut BTreeMap<EntryKey, Exhausted>,
    ) -> Option<TableChange> {
        let mut difference = Difference::default();
        let found = self.found.take().map(|found| found.elements);
        self.undo = (self.exists && found.is_none()).then(|| Undo::new(&self.classes));
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
                self.entries.insert(key.clone(), after);
            }
        }
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
        let new_classes = self.classes.drain_new();
        difference.release(node.node);
        difference.into_change(family, is_new, new_classes)
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

    fn wastes_classes(&self) -> bool {
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
                    claims.insert(key, element);
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
        self.claims.get(&shared)?.first()
    }
}

/// What of the node a turn looks at: all of it, or certain cluster IPs.
#[derive(Clone, Copy)]
struct NodeScope<'a> {
    node: &'a NodeForwarding,
    addresses: Option<&'a Update>,
}

/// One step from one ordered list to another.
#[derive(Clone, Copy)]
enum Change<'a> {
    Deleted(&'a Element),
    Added(&'a Element),
}

impl<'a> Change<'a> {
    const fn element(&self) -> &'a Element {
        match self {
            Self::Deleted(element) | Self::Added(element) => element,
        }
    }
}

/// Walks two ordered lists and tells what only one of them has.
fn compare<'a>(
    before: impl IntoIterator<Item = &'a Element>,
    after: impl IntoIterator<Item = &'a Element>,
    mut tell: impl FnMut(Change<'_>),
) {
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    loop {
        match (before.peek(), after.peek()) {
            (None, None) => return,
            (Some(left), Some(right)) if left == right => {
                before.next();
                after.next();
            }
            (Some(left), right) if right.is_none_or(|right| left < right) => {
                tell(Change::Deleted(left));
                before.next();
            }
            (_, Some(right)) => {
                tell(Change::Added(right));
                after.next();
            }
            (Some(_), None) => return,
        }
    }
}

#[derive(Default)]
struct Difference {
    deleted: Vec<Element>,
    added: Vec<Element>,
    /// Shared elements that were touched, with what the kernel has.
    shared: BTreeMap<SharedKey, Option<Element>>,
    kept: Kept,
}

impl Difference {
    fn record(&mut self, change: Change<'_>) {
        match change {
            Change::Deleted(element) => self.deleted.push(*element),
            Change::Added(element) => self.added.push(*element),
        }
    }

    /// What was served until now and nobody has is dropped for a while. That follows from what the kernel has, so it holds
    /// also for what went while no agent ran.
    fn release(&mut self, node: &NodeForwarding) {
        let gone = |element: &Element| if let Element::Served(address) = element { Some(*address) } else { None };
        let released = self.deleted.iter().filter_map(gone).filter(|address| !node.is_held(*address));
        self.added.extend(released.map(Element::Released));
    }

    fn into_change(mut self, family: Family, is_new: bool, new_classes: Vec<(Purpose, Class)>) -> Option<TableChange> {
        if !is_new && new_classes.is_empty() && self.deleted.is_empty() && self.added.is_empty() {
            return None;
        }
        self.deleted.sort_unstable();
        self.added.sort_unstable();
        Some(TableChange { family, is_new, new_classes, deleted: self.deleted, added: self.added, kept: self.kept })
    }
}

#[cfg(test)]
mod tests;
