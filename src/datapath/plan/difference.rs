//! What tells two ordered lists of elements apart, gathered to the change of a table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::kept::Kept;
use super::{Growth, TableChange};
use crate::datapath::entry::NodeForwarding;
use crate::datapath::nft::classes::Purpose;
use crate::datapath::nft::elements::{Element, SharedKey};
use crate::datapath::nft::ids::Class;
use crate::datapath::nft::sizes::Sizes;
use crate::model::Family;

/// One step from one ordered list to another.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    Deleted(&'a Element),
    Added(&'a Element),
}

impl<'a> Change<'a> {
    pub(super) const fn element(&self) -> &'a Element {
        match self {
            Self::Deleted(element) | Self::Added(element) => element,
        }
    }
}

/// Walks two ordered lists and tells what only one of them has.
pub(super) fn compare<'a>(
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

/// What a turn changes in a table, so far.
#[derive(Default)]
pub(super) struct Difference {
    pub(super) deleted: Vec<Element>,
    pub(super) added: Vec<Element>,
    pub(super) readmitted: Vec<IpAddr>,
    /// Shared elements that were touched, with what the kernel has.
    pub(super) shared: BTreeMap<SharedKey, Option<Element>>,
    pub(super) kept: Kept,
}

impl Difference {
    pub(super) fn record(&mut self, change: Change<'_>) {
        match change {
            Change::Deleted(element) => self.deleted.push(*element),
            Change::Added(element) => self.added.push(*element),
        }
    }

    /// What was served until now and nobody has is dropped for a while. That follows from what the kernel has, so it holds
    /// also for what went while no agent ran.
    pub(super) fn release(&mut self, node: &NodeForwarding, released: &mut BTreeSet<IpAddr>) {
        let gone = |element: &Element| if let Element::Served(address) = element { Some(*address) } else { None };
        let gone = self.deleted.iter().filter_map(gone).filter(|address| !node.is_held(*address));
        for address in gone {
            released.insert(address);
            self.added.push(Element::Released(address));
        }
    }

    /// To the order of writing.
    pub(super) fn sort(&mut self) {
        self.deleted.sort_unstable();
        self.added.sort_unstable();
    }

    /// The whole change, by what is known of it otherwise.
    pub(super) fn into_change(
        self,
        family: Family,
        is_new: bool,
        new_classes: Vec<(Purpose, Class)>,
        sizes: Sizes,
        growth: Option<Growth>,
    ) -> Option<TableChange> {
        let is_nothing = !is_new
            && new_classes.is_empty()
            && self.deleted.is_empty()
            && self.added.is_empty()
            && self.readmitted.is_empty();
        let Self { deleted, added, readmitted, kept, .. } = self;
        let change = TableChange { family, is_new, new_classes, deleted, added, readmitted, sizes, growth, kept };
        (!is_nothing).then_some(change)
    }
}
