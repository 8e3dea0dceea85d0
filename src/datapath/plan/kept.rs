//! What clients with session affinity may go on remembering.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::datapath::nft::classes::Classes;
use crate::datapath::nft::elements::Element;
use crate::datapath::nft::ids::Sticky;

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
    pub(super) fn follow(&mut self, before: &[Element], after: &[Element], classes: &Classes) {
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
pub(super) fn sticky(elements: &[Element], classes: &Classes) -> impl Iterator<Item = (Sticky, SocketAddr)> {
    elements.iter().filter_map(|element| {
        if let Element::Endpoint { id, memory: Some(memory), to, .. } = *element {
            classes.remembers(memory, to).then_some((Sticky::new(id, memory), to))
        } else {
            None
        }
    })
}
