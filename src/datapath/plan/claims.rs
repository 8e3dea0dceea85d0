//! Who wants an element of which the kernel can have only one.

use crate::datapath::entry::EntryKey;
use crate::datapath::nft::elements::Element;
use crate::datapath::nft::ids::FrontendValue;
use crate::model::flat::FlatMap;

/// The entries that want it, in order, and what it shall lead to, if to anything: the first has it. Nearly always one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims(FlatMap<EntryKey, Option<FrontendValue>>);

impl Claims {
    /// An entry wants this, instead of what it wanted before.
    pub(super) fn insert(&mut self, key: &EntryKey, element: &Element) {
        self.0.insert(key.clone(), element.frontend_value());
    }

    /// An entry does not want this any more. What it wants instead stays.
    pub(super) fn remove(&mut self, key: &EntryKey, element: &Element) {
        self.0.retain(|known, wanted| known != key || *wanted != element.frontend_value());
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the kernel is to have.
    pub(super) fn first(&self) -> Option<Option<FrontendValue>> {
        self.0.values().next().copied()
    }
}
