//! What a turn did in the kernel, and what it could not do.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::datapath::desired::FrontendKey;
use crate::datapath::entry::{EntryKey, Frontend};
use crate::datapath::nft::elements::{Element, SharedKey};
use crate::datapath::nft::ids::Exhausted;
use crate::datapath::plan::Transaction;

/// Why an entry is not programmed, or not as it should be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Quarantine {
    /// No number is left for it.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The kernel refuses it.
    #[error("the kernel refuses it: {0}")]
    Refused(String),
}

impl Quarantine {
    /// Whether the entry is programmed all the same, without session affinity.
    pub const fn is_partial(&self) -> bool {
        matches!(self, Self::Exhausted(Exhausted::Affinity))
    }
}

/// What a turn did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Elements that went.
    pub deleted: usize,
    /// Elements that came.
    pub added: usize,
    /// The whole table was made anew.
    pub is_rebuilt: bool,
    /// Frontends that went, also those that a former process left.
    pub removed: Vec<FrontendKey>,
    /// Entries that are not programmed as they should be, with the reason. Each is tried again when it changes or at a resync.
    pub quarantined: BTreeMap<EntryKey, Quarantine>,
}

/// The frontends that a transaction takes away for good.
pub(super) fn removed_frontends(transaction: &Transaction) -> Vec<FrontendKey> {
    let mut removed = Vec::new();
    for table in &transaction.tables {
        let key = |element: &Element| {
            let (frontend, protocol) = match element.shared_key()? {
                SharedKey::Frontend(address, protocol) => (Frontend::Address(address), protocol),
                SharedKey::NodePort(port, protocol) => (Frontend::NodePort(port), protocol),
                SharedKey::Hairpin(_) => return None,
            };
            Some(FrontendKey { family: table.family, protocol, frontend })
        };
        let gone: BTreeSet<FrontendKey> = table.deleted.iter().filter_map(key).collect();
        let back: BTreeSet<FrontendKey> =
            if gone.is_empty() { BTreeSet::new() } else { table.added.iter().filter_map(key).collect() };
        removed.extend(gone.difference(&back));
    }
    removed
}
