//! Compares what should be in the kernel with what is believed to be there.
//!
//! The belief is only as good as the last transaction: when one fails it is forgotten, and the next is the whole table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::datapath::entry::{EntryKey, ForwardingEntry, NodeForwarding};
use crate::datapath::nft::elements::{Element, SharedKey, elements_of, node_elements, policies};
use crate::datapath::nft::ids::{Class, Classes, Exhausted, Ids};
use crate::model::service::TrafficPolicy;
use crate::model::{Family, Protocol};

/// Which entries may have changed since the last turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Any, and entries that are gone too.
    All,
    /// These; an entry that is named and not there is gone.
    Keys(BTreeSet<EntryKey>),
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
    /// Numbers of slots that come into use.
    pub new_classes: Vec<(u32, Class)>,
    /// Elements that go, in order. A changed value is one that goes and one that comes.
    pub deleted: Vec<Element>,
    /// Elements that come, in order.
    pub added: Vec<Element>,
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
    claims: BTreeMap<SharedKey, BTreeMap<EntryKey, Element>>,
    node: Vec<Element>,
}

impl Belief {
    /// Plans a turn, and believes from now on that it was done. Entries to skip are planned as if they were not there;
    /// those that get no number are reported and left out likewise.
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
            let keys: BTreeSet<&EntryKey> = match scope {
                Scope::All => entries.keys().collect(),
                Scope::Keys(keys) => keys.iter().collect(),
            };
            let mut known: Vec<EntryKey> = Vec::new();
            if *scope == Scope::All {
                known.extend(table.entries.keys().filter(|key| !entries.contains_key(key)).cloned());
            }
            let changed = keys.into_iter().chain(&known).filter(|key| key.family == family);
            let wanted = |key: &EntryKey| entries.get(key).filter(|_| !skipped.contains(key));
            transaction.tables.extend(table.update(family, changed, wanted, node, &mut refused));
        }
        (transaction, refused)
    }

    /// Forgets what is in the kernel. Ids stay with their Service ports.
    pub fn forget(&mut self) {
        for family in Family::ALL {
            let table = self.table_mut(family);
            let ids = std::mem::take(&mut table.ids);
            *table = TableBelief { ids, ..TableBelief::default() };
        }
    }

    /// Whether nothing is believed to be there: the next transaction makes the tables.
    pub const fn is_nothing(&self) -> bool {
        !self.v4.exists && !self.v6.exists
    }

    /// The addresses and ports that are believed to be programmed.
    pub fn frontends(&self) -> impl Iterator<Item = (SocketAddr, Protocol)> {
        [&self.v4, &self.v6].into_iter().flat_map(|table| table.claims.keys()).filter_map(|key| match *key {
            SharedKey::Frontend(address, protocol) => Some((address, protocol)),
            SharedKey::Hairpin(_) | SharedKey::NodePort(..) => None,
        })
    }

    const fn table_mut(&mut self, family: Family) -> &mut TableBelief {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl TableBelief {
    fn update<'a>(
        &mut self,
        family: Family,
        changed: impl Iterator<Item = &'a EntryKey>,
        wanted: impl Fn(&EntryKey) -> Option<&'a ForwardingEntry>,
        node: &NodeForwarding,
        refused: &mut BTreeMap<EntryKey, Exhausted>,
    ) -> Option<TableChange> {
        let mut difference = Difference::default();
        for key in changed {
            let entry = wanted(key);
            let before = self.entries.remove(key).unwrap_or_default();
            let after = match entry.map(|entry| elements_of(key, entry, &mut self.ids, &mut self.classes, &before)) {
                None => Vec::new(),
                Some(Ok(elements)) => elements,
                Some(Err(exhausted)) => {
                    refused.insert(key.clone(), exhausted);
                    Vec::new()
                }
            };
            self.compare_entry(key, &before, &after, &mut difference);
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
        let node = node_elements(node, family);
        compare(&self.node, &node, |change| difference.record(change));
        self.node = node;
        for (key, before) in std::mem::take(&mut difference.shared) {
            let after = self.effective(key);
            if before != after {
                difference.deleted.extend(before);
                difference.added.extend(after);
            }
        }
        let is_new = !std::mem::replace(&mut self.exists, true);
        let new_classes = self.classes.drain_new();
        difference.into_change(family, is_new, new_classes)
    }

    fn compare_entry(&mut self, key: &EntryKey, before: &[Element], after: &[Element], difference: &mut Difference) {
        compare(before, after, |change| {
            let element = *change.element();
            let Some(shared) = element.shared_key() else { return difference.record(change) };
            let effective = self.effective(shared);
            difference.shared.entry(shared).or_insert(effective);
            let claims = self.claims.entry(shared).or_default();
            match change {
                Change::Added(_) => {
                    claims.insert(key.clone(), element);
                }
                // A changed value was perhaps added before.
                Change::Deleted(_) => {
                    if claims.get(key) == Some(&element) {
                        claims.remove(key);
                    }
                    if claims.is_empty() {
                        self.claims.remove(&shared);
                    }
                }
            }
        });
    }

    fn effective(&self, shared: SharedKey) -> Option<Element> {
        self.claims.get(&shared)?.values().next().copied()
    }
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
fn compare(before: &[Element], after: &[Element], mut tell: impl FnMut(Change<'_>)) {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
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
}

impl Difference {
    fn record(&mut self, change: Change<'_>) {
        match change {
            Change::Deleted(element) => self.deleted.push(*element),
            Change::Added(element) => self.added.push(*element),
        }
    }

    fn into_change(mut self, family: Family, is_new: bool, new_classes: Vec<(u32, Class)>) -> Option<TableChange> {
        if !is_new && new_classes.is_empty() && self.deleted.is_empty() && self.added.is_empty() {
            return None;
        }
        self.deleted.sort_unstable();
        self.added.sort_unstable();
        Some(TableChange { family, is_new, new_classes, deleted: self.deleted, added: self.added })
    }
}

#[cfg(test)]
mod tests;
