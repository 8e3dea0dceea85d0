//! Who owns a frontend that several Services want: decided once, the same on every node, and kept up as Services change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;

use super::entries::Standing;
use crate::datapath::entry::{EntryKey, Frontend};
use crate::model::flat::pack;
use crate::model::{Family, Protocol};
use crate::names::ServiceKey;

/// What only one Service port can own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The family: a NodePort is owned in each by itself.
    pub family: Family,
    /// The protocol.
    pub protocol: Protocol,
    /// The address and port, or the NodePort.
    pub frontend: Frontend,
}

/// A Service port that goes without a frontend because another has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// What both want.
    pub frontend: FrontendKey,
    /// Who goes without.
    pub loser: EntryKey,
    /// Who has it.
    pub owner: EntryKey,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrontendKey { family, protocol, frontend } = self.frontend;
        match frontend {
            Frontend::Address(address) => write!(f, "{address}/{protocol}")?,
            Frontend::NodePort(port) => write!(f, "NodePort {port}/{protocol} ({family})")?,
        }
        write!(f, " of {} is served by {}", self.loser.port, self.owner.port)
    }
}

/// When a Service was created; without a time it counts as younger than all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Age {
    Since(Timestamp),
    Unknown,
}

impl From<Option<Timestamp>> for Age {
    fn from(created: Option<Timestamp>) -> Self {
        created.map_or(Self::Unknown, Self::Since)
    }
}

/// One Service port's wish for a frontend. The least one wins: by standing, then age, then key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) standing: Standing,
    pub(super) age: Age,
    pub(super) entry: EntryKey,
}

/// All claims. Every frontend has one owner: the first of its claims.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Sorted, never empty. Nearly always one claim, hence no tree.
    claims: BTreeMap<FrontendKey, Vec<Claim>>,
    of_service: BTreeMap<ServiceKey, Box<[FrontendKey]>>,
    contested: BTreeSet<FrontendKey>,
    /// Counts the changes of who contests what.
    disputes: u64,
}

impl Owners {
    /// Gives back memory to spare.
    pub(super) fn pack(&mut self) {
        pack(&mut self.claims);
        pack(&mut self.of_service);
    }

    /// Puts a Service's claims in place of those that it had, and names the other Services that won or lost by it.
    pub(super) fn replace(
        &mut self,
        service: &ServiceKey,
        wanted: BTreeMap<FrontendKey, Vec<Claim>>,
    ) -> BTreeSet<ServiceKey> {
        let before = self.of_service.remove(service).unwrap_or_default();
        let touched: BTreeSet<FrontendKey> = before.iter().chain(wanted.keys()).copied().collect();
        if !wanted.is_empty() {
            self.of_service.insert(service.clone(), wanted.keys().copied().collect());
        }
        let mut wanted = wanted;
        let mut others = BTreeSet::new();
        for key in touched {
            let previous = self.owner(&key).map(|owner| owner.port.service.clone());
            self.set(key, service, wanted.remove(&key).unwrap_or_default());
            let current = self.owner(&key).map(|owner| owner.port.service.clone());
            if previous != current {
                others.extend(previous.into_iter().chain(current).filter(|other| other != service));
            }
        }
        others
    }

    fn set(&mut self, key: FrontendKey, service: &ServiceKey, mut claims: Vec<Claim>) {
        if let Some(known) = self.claims.remove(&key) {
            claims.extend(known.into_iter().filter(|claim| claim.entry.port.service != *service));
        }
        claims.sort();
        let was_contested = self.contested.contains(&key);
        if claims.len() > 1 {
            self.contested.insert(key);
        } else {
            self.contested.remove(&key);
        }
        self.disputes += u64::from(was_contested || claims.len() > 1);
        if !claims.is_empty() {
            claims.shrink_to_fit();
            self.claims.insert(key, claims);
        }
    }

    /// Who has a frontend.
    pub(super) fn owner(&self, key: &FrontendKey) -> Option<&EntryKey> {
        self.claims.get(key).and_then(|claims| claims.first()).map(|claim| &claim.entry)
    }

    /// Another number whenever that may be others than before.
    pub(super) const fn disputes(&self) -> u64 {
        self.disputes
    }

    /// Everybody who goes without something.
    pub(super) fn conflicts(&self) -> impl Iterator<Item = Conflict> + '_ {
        self.contested.iter().filter_map(|key| self.claims.get_key_value(key)).flat_map(|(key, claims)| {
            let owner = claims.first().map(|claim| claim.entry.clone());
            claims.iter().skip(1).filter_map(move |claim| {
                Some(Conflict { frontend: *key, loser: claim.entry.clone(), owner: owner.clone()? })
            })
        })
    }
}
