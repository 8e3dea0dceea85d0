//! Who wants an element of which the kernel can have only one.

use crate::datapath::entry::EntryKey;
use crate::datapath::nft::elements::Element;

/// The entries that want it, in order: the first has it. Nearly always one, so no tree, which would be a kilobyte for each
/// frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims(Vec<(EntryKey, Element)>);

impl Claims {
    /// An entry wants this, instead of what it wanted before.
    pub(super) fn insert(&mut self, key: &EntryKey, element: Element) {
        match self.0.binary_search_by(|(known, _)| known.cmp(key)) {
            Ok(at) => {
                if let Some((_, wanted)) = self.0.get_mut(at) {
                    *wanted = element;
                }
            }
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (key.clone(), element));
            }
        }
    }

    /// An entry does not want this any more. What it wants instead stays.
    pub(super) fn remove(&mut self, key: &EntryKey, element: &Element) {
        self.0.retain(|(known, wanted)| known != key || wanted != element);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the kernel is to have.
    pub(super) fn first(&self) -> Option<Element> {
        self.0.first().map(|(_, element)| *element)
    }
}
