//! What a turn changed in what is believed of a table, so that it can be taken back: the kernel refused the turn, or was
//! only asked whether it would take it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::claims::Claims;
use super::table::TableBelief;
use crate::datapath::entry::EntryKey;
use crate::datapath::nft::classes::Classes;
use crate::datapath::nft::elements::{Element, SharedKey};
use crate::datapath::nft::ids::PolicyIds;
use crate::datapath::nft::sizes::Rooms;

/// What was believed before of all that a turn touched.
#[derive(Clone, Debug, Default)]
pub(super) struct Undo {
    classes: Classes,
    rooms: Rooms,
    entries: Vec<(EntryKey, Box<[Element]>)>,
    ids: Vec<(EntryKey, PolicyIds)>,
    claims: BTreeMap<SharedKey, Option<Claims>>,
    /// The elements of the node as a whole.
    node: Option<BTreeSet<Element>>,
    /// Elements of the node one by one, and whether they were there.
    addresses: Vec<(Element, bool)>,
    readmitted: Vec<IpAddr>,
}

impl Undo {
    pub(super) fn new(classes: &Classes, rooms: Rooms) -> Self {
        Self { classes: classes.clone(), rooms, ..Self::default() }
    }

    pub(super) fn entry(&mut self, key: &EntryKey, elements: &[Element], ids: PolicyIds) {
        self.entries.push((key.clone(), elements.into()));
        self.ids.push((key.clone(), ids));
    }

    pub(super) fn claims(&mut self, key: SharedKey, claims: Option<&Claims>) {
        self.claims.entry(key).or_insert_with(|| claims.cloned());
    }

    pub(super) fn node(&mut self, elements: &BTreeSet<Element>) {
        self.node = Some(elements.clone());
    }

    pub(super) fn address(&mut self, element: Element, was_there: bool) {
        self.addresses.push((element, was_there));
    }

    pub(super) fn readmitted(&mut self, addresses: &[IpAddr]) {
        self.readmitted.extend(addresses);
    }

    /// What the turn released stays among what was: to let that through, should somebody have it, does no harm.
    pub(super) fn apply(self, table: &mut TableBelief) {
        table.classes = self.classes;
        table.rooms = self.rooms;
        for (key, elements) in self.entries {
            if elements.is_empty() {
                table.entries.remove(&key);
            } else {
                table.entries.insert(key, elements);
            }
        }
        table.ids.restore(&self.ids);
        for (key, claims) in self.claims {
            match claims {
                Some(claims) => drop(table.claims.insert(key, claims)),
                None => drop(table.claims.remove(&key)),
            }
        }
        if let Some(node) = self.node {
            table.node = node;
        }
        table.released.extend(self.readmitted);
        for (element, was_there) in self.addresses {
            if was_there {
                table.node.insert(element);
            } else {
                table.node.remove(&element);
            }
        }
    }
}
