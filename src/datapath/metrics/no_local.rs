//! Which Service ports drop packets here since a policy `Local` finds no endpoint on this node: counted as entries change.

use std::collections::{BTreeMap, BTreeSet};

use crate::datapath::entry::{EntryKey, ForwardingEntry, Target, Treatment};
use crate::model::Family;
use crate::model::service::TrafficPolicy;

/// Where packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// To a cluster IP: `internalTrafficPolicy`.
    Internal,
    /// To an address outside: `externalTrafficPolicy`.
    External,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Internal, Self::External];

    /// The value of the metrics' label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
        }
    }

    fn is_local(self, treatment: Treatment) -> bool {
        match (self, treatment) {
            (Self::Internal, Treatment::Internal(policy)) | (Self::External, Treatment::External { policy, .. }) => {
                policy == TrafficPolicy::Local
            }
            (Self::Internal, Treatment::External { .. }) | (Self::External, Treatment::Internal(_)) => false,
        }
    }
}

/// The Service ports that drop.
#[derive(Debug, Default)]
pub struct NoLocalEndpoints(BTreeMap<(Side, Family), BTreeSet<EntryKey>>);

impl NoLocalEndpoints {
    /// Sees an entry as it is now, or that it is gone.
    pub fn see(&mut self, key: &EntryKey, entry: Option<&ForwardingEntry>) {
        let drops = entry.filter(|entry| entry.local == Target::Drop);
        for side in Side::ALL {
            let ports = self.0.entry((side, key.family)).or_default();
            if drops.is_some_and(|entry| entry.frontends.values().any(|treatment| side.is_local(*treatment))) {
                ports.insert(key.clone());
            } else {
                ports.remove(key);
            }
        }
    }

    /// How many drop.
    pub fn count(&self, side: Side, family: Family) -> usize {
        self.0.get(&(side, family)).map_or(0, BTreeSet::len)
    }
}
