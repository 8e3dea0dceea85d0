//! Compares what should be in the kernel with what is believed to be there.
//!
//! The belief is only as good as the last transaction: when one fails it is forgotten, and the next is the whole table.
//! A turn over everything starts from what was found in the kernel instead, since others may have been there.

mod claims;
mod difference;
mod kept;
mod table;
mod undo;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

pub use self::kept::Kept;
use self::kept::sticky;
use self::table::{NodeScope, TableBelief};
use crate::datapath::desired::Update;
use crate::datapath::entry::{EntryKey, ForwardingEntry, NodeForwarding};
use crate::datapath::nft::classes::Purpose;
use crate::datapath::nft::elements::Element;
use crate::datapath::nft::ids::{Class, Exhausted, Sticky};
use crate::datapath::nft::sizes::Sizes;
use crate::model::Family;

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
            .map(|table| (table.deleted.len() + table.readmitted.len(), table.added.len()))
            .fold((0, 0), |(deleted, added), (fewer, more)| (deleted + fewer, added + more))
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
    /// Addresses that were released and are somebody's again: dropped no longer, if they still are.
    pub readmitted: Vec<IpAddr>,
    /// The room in the maps of a table that is made anew, or of those that grow.
    pub sizes: Sizes,
    /// The maps that are full; nothing in a table that is made anew.
    pub growth: Option<Growth>,
    /// What clients of the entries that changed may go on remembering.
    pub kept: Kept,
}

/// Maps that are full, to be made anew with more room. The rules have to be written again, since they refer to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Each with all that shall be in it, in the order of writing: what else the change has for it is in here.
    pub maps: BTreeMap<&'static str, Vec<Element>>,
    /// The chains that there are, apart from those that are always there and those that come.
    pub classes: Vec<(Purpose, Class)>,
}

/// What is believed to be in the kernel.
#[derive(Clone, Debug, Default)]
pub struct Belief {
    v4: TableBelief,
    v6: TableBelief,
}

/// What the kernel has, by our own reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The table's.
    pub family: Family,
    /// What has chains.
    pub classes: Vec<(Purpose, Class)>,
    /// The room in its maps.
    pub sizes: Sizes,
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

    /// Gives back memory to spare.
    pub fn pack(&mut self) {
        self.v4.pack();
        self.v6.pack();
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

#[cfg(test)]
mod tests;
