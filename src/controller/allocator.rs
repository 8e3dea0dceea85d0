//! Who gets which address.
//!
//! One allocator serves one pass over all Services, in the caller's order. It knows every address that is taken: held,
//! resting or quarantined before the pass, and those that it gives during the pass. So no address is given twice, and the
//! same pass over the same state gives the same addresses.
//!
//! For each family that a Service wants, in this order:
//!
//! 1. what it holds, if its request and the pools allow it (of several the one that its status shows);
//! 2. the address that it asks for;
//! 3. what it held until lately, or what its status shows though no claim says so (after a migration, or loss of claims);
//! 4. an address that a pool keeps for it;
//! 5. the lowest free address of the first pool that has one; for two families the first pool that has both.
//!
//! Where none of these gives an address, it keeps what it holds, whatever the rules say: the old goes only when there is a
//! new one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;

use super::pools::Pools;
use super::refusal::{PoolRule, Refusal};
use super::request::Request;
use crate::model::Family;
use crate::model::pool::{NotAdmitted, Pool};
use crate::model::range::{address, number};
use crate::model::selector::Labels;
use crate::model::service::Service;
use crate::names::{PoolName, ServiceKey};

/// Why an address is not free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A Service holds it.
    Held,
    /// It was released and rests.
    Resting {
        /// Until when.
        until: Timestamp,
        /// Who gets it back without waiting.
        last_holder: Option<ServiceKey>,
    },
    /// Somebody else answers for it.
    Quarantined,
}

/// A Service that is to have addresses, and what it has.
#[derive(Clone, Debug)]
pub struct Applicant<'a> {
    /// The Service.
    pub service: &'a Service,
    /// What it asks for; a refusal where that cannot be known.
    pub request: Result<Request, Refusal>,
    /// What it holds by claim.
    pub held: Vec<IpAddr>,
    /// What it held until lately.
    pub returning: Vec<IpAddr>,
}

/// An address for a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The address.
    pub address: IpAddr,
    /// The pool, if one in force has the address.
    pub pool: Option<PoolName>,
}

/// What a Service gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Award {
    /// Its addresses, at most one of a family.
    pub grants: BTreeMap<Family, Grant>,
    /// What it does not get, and why.
    pub refusal: Option<Refusal>,
    /// Whether an address is kept that the rules do not allow any more.
    pub is_kept_against_rules: bool,
}

/// The state of one pass.
#[derive(Debug)]
pub struct Allocator<'a> {
    pools: &'a Pools,
    ranked: Vec<&'a Pool>,
    namespaces: BTreeMap<&'a str, &'a Labels>,
    taken: BTreeMap<IpAddr, Taken>,
    /// Where the search in a pool goes on: everything before is taken, and nothing becomes free during a pass.
    cursors: BTreeMap<(&'a PoolName, Family), u128>,
    no_labels: Labels,
}

/// What a Service needs besides a free address.
struct Terms<'r> {
    service: &'r Service,
    request: &'r Request,
}

impl<'a> Allocator<'a> {
    /// Starts a pass.
    pub fn new(
        pools: &'a Pools,
        namespaces: impl IntoIterator<Item = (&'a str, &'a Labels)>,
        taken: impl IntoIterator<Item = (IpAddr, Taken)>,
    ) -> Self {
        let mut ranked: Vec<&Pool> = pools.in_force().collect();
        ranked.sort_by(|left, right| left.rank().cmp(&right.rank()));
        Self {
            pools,
            ranked,
            namespaces: namespaces.into_iter().collect(),
            taken: taken.into_iter().collect(),
            cursors: BTreeMap::new(),
            no_labels: Labels::new(),
        }
    }

    /// Gives a Service what it is to have, and takes it off the free addresses.
    pub fn award(&mut self, applicant: &Applicant<'_>) -> Award {
        let mut award = match &applicant.request {
            Ok(request) => self.award_request(applicant, request),
            Err(refusal) => Award { refusal: Some(refusal.clone()), ..Award::default() },
        };
        let families = applicant.request.as_ref().map_or(Family::ALL.as_slice(), |request| &request.families);
        if award.refusal.is_some() {
            for family in families {
                if let Some(kept) = first_shown(applicant, *family, &applicant.held)
                    && !award.grants.contains_key(family)
                {
                    let pool = self.pools.containing(kept).map(|pool| pool.name.clone());
                    award.grants.insert(*family, Grant { address: kept, pool });
                    award.is_kept_against_rules = true;
                }
            }
        }
        for grant in award.grants.values() {
            self.taken.insert(grant.address, Taken::Held);
        }
        award
    }

    fn award_request(&mut self, applicant: &Applicant<'_>, request: &Request) -> Award {
        let terms = Terms { service: applicant.service, request };
        let mut grants = BTreeMap::new();
        for family in &request.families {
            let allowed: Vec<IpAddr> =
                applicant.held.iter().copied().filter(|held| self.may_keep(&terms, *held).is_some()).collect();
            if let Some(kept) = first_shown(applicant, *family, &allowed) {
                grants.insert(*family, Grant { address: kept, pool: self.may_keep(&terms, kept) });
            }
        }
        let missing: Vec<Family> =
            request.families.iter().copied().filter(|family| !grants.contains_key(family)).collect();
        let anchor = grants.values().find_map(|grant| grant.pool.clone());
        let mut refusal = None;
        let mut found = BTreeMap::new();
        for (family, pick) in self.pick(applicant, &terms, &missing, anchor) {
            match pick {
                Ok(grant) => {
                    found.insert(family, grant);
                }
                Err(reason) => refusal = refusal.or(Some(reason)),
            }
        }
        // Half of what was asked for is nothing, unless the Service says that one family will do.
        let takes_half = request.takes_one_of_two && request.addresses.is_empty();
        if refusal.is_none() || takes_half {
            grants.extend(found);
        }
        Award { grants, refusal, is_kept_against_rules: false }
    }

    /// The pool of a held address that the Service may keep. Reservations made since, and `autoAssign`, take nothing away.
    fn may_keep(&self, terms: &Terms<'_>, held: IpAddr) -> Option<PoolName> {
        if terms.request.address(Family::of(held)).is_some_and(|requested| requested != held) {
            return None;
        }
        let pool = self.pools.containing(held)?;
        let is_requested = terms.request.pool.as_ref().is_none_or(|requested| *requested == pool.name);
        let is_allowed = pool.assigns(held) && self.admits(pool, terms.service).is_ok();
        (is_requested && is_allowed).then(|| pool.name.clone())
    }

    fn pick(
        &mut self,
        applicant: &Applicant<'_>,
        terms: &Terms<'_>,
        missing: &[Family],
        anchor: Option<PoolName>,
    ) -> BTreeMap<Family, Result<Grant, Refusal>> {
        let mut picks = BTreeMap::new();
        let mut open = Vec::new();
        for family in missing {
            if let Some(requested) = terms.request.address(*family) {
                picks.insert(*family, self.requested(terms, requested));
            } else if let Some(grant) =
                self.familiar(applicant, terms, *family).or_else(|| self.kept_for(terms, *family))
            {
                picks.insert(*family, Ok(grant));
            } else {
                open.push(*family);
            }
        }
        if open.is_empty() {
            return picks;
        }
        let (candidates, rejected) = self.candidates(terms);
        let picked = picks.values().flatten().find_map(|grant: &Grant| grant.pool.clone());
        let first = if let [_, _] = open.as_slice() { self.first_with_all(&candidates, &open) } else { None };
        let first = first.or(anchor).or(picked);
        for family in open {
            picks.insert(
                family,
                self.lowest(&candidates, first.as_ref(), family)
                    .ok_or_else(|| self.no_pool(&candidates, &rejected, terms, family)),
            );
        }
        picks
    }

    /// The requested address, if the Service may have it.
    fn requested(&self, terms: &Terms<'_>, requested: IpAddr) -> Result<Grant, Refusal> {
        let service = &terms.service.key;
        let pool = self.pools.containing(requested).ok_or(Refusal::OutsidePools(requested))?;
        let refused = |rule| Err(Refusal::Pool { address: requested, pool: pool.name.clone(), rule });
        if let Some(name) = terms.request.pool.as_ref().filter(|name| **name != pool.name) {
            return Err(Refusal::OtherPool { address: requested, requested: name.clone() });
        }
        if let Err(rule) = self.admits(pool, terms.service) {
            return refused(rule);
        }
        if !pool.assigns(requested) {
            return refused(PoolRule::Excluded);
        }
        if pool.reserved_for(requested).is_some_and(|other| other != service) {
            return refused(PoolRule::Reserved);
        }
        match self.taken.get(&requested) {
            None => {}
            Some(Taken::Resting { last_holder, .. }) if last_holder.as_ref() == Some(service) => {}
            Some(Taken::Held) => return Err(Refusal::InUse(requested)),
            Some(Taken::Resting { until, .. }) => return Err(Refusal::Resting { address: requested, until: *until }),
            Some(Taken::Quarantined) => return Err(Refusal::Quarantined(requested)),
        }
        Ok(Grant { address: requested, pool: Some(pool.name.clone()) })
    }

    /// An address that the Service held until lately, or that its status shows.
    fn familiar(&self, applicant: &Applicant<'_>, terms: &Terms<'_>, family: Family) -> Option<Grant> {
        let returning = applicant.returning.iter().copied().map(|address| (address, false));
        let shown = applicant.service.virtual_addresses().map(|address| (address, true));
        shown.chain(returning).filter(|(address, _)| Family::of(*address) == family).find_map(|(address, is_shown)| {
            let grant = self.requested(terms, address).ok()?;
            let pool = self.pools.get(grant.pool.as_ref()?)?;
            (is_shown || pool.auto_assign || terms.request.pool.is_some()).then_some(grant)
        })
    }

    /// An address that a pool keeps for the Service.
    fn kept_for(&self, terms: &Terms<'_>, family: Family) -> Option<Grant> {
        let pools = self.ranked.iter().filter(|pool| terms.request.pool.as_ref().is_none_or(|name| *name == pool.name));
        pools.filter(|pool| self.admits(pool, terms.service).is_ok()).find_map(|pool| {
            let kept = pool.next_reserved(&terms.service.key, family, |number| self.is_taken(family, number))?;
            Some(Grant { address: address(family, kept)?, pool: Some(pool.name.clone()) })
        })
    }

    /// The pools that may give the Service an address, best first, and the others with the rule that rejects it.
    fn candidates(&self, terms: &Terms<'_>) -> (Vec<&'a Pool>, Vec<(PoolName, PoolRule)>) {
        let mut candidates = Vec::new();
        let mut rejected = Vec::new();
        for pool in &self.ranked {
            let verdict = match &terms.request.pool {
                Some(requested) if *requested != pool.name => Err(PoolRule::NotRequested),
                None if !pool.auto_assign => Err(PoolRule::OnRequest),
                Some(_) | None => self.admits(pool, terms.service),
            };
            match verdict {
                Ok(()) => candidates.push(*pool),
                Err(rule) => rejected.push((pool.name.clone(), rule)),
            }
        }
        rejected.extend(self.pools.out_of_force().map(|(name, reason)| (name.clone(), PoolRule::NotReady(reason))));
        (candidates, rejected)
    }

    fn first_with_all(&mut self, candidates: &[&'a Pool], families: &[Family]) -> Option<PoolName> {
        let has_all = |pool: &&&'a Pool| families.iter().all(|family| self.peek(pool, *family).is_some());
        candidates.iter().find(has_all).map(|pool| pool.name.clone())
    }

    /// The lowest free address of `first`, if that is a candidate that has one, else of the best candidate that has.
    fn lowest(&mut self, candidates: &[&'a Pool], first: Option<&PoolName>, family: Family) -> Option<Grant> {
        let preferred = candidates.iter().filter(|pool| Some(&pool.name) == first);
        preferred.chain(candidates).find_map(|pool| {
            let address = self.peek(pool, family)?;
            Some(Grant { address, pool: Some(pool.name.clone()) })
        })
    }

    /// The lowest free address of a pool.
    fn peek(&mut self, pool: &'a Pool, family: Family) -> Option<IpAddr> {
        let start = self.cursors.get(&(&pool.name, family)).copied().unwrap_or_default();
        let found = pool.next_free(family, start, |number| self.is_taken(family, number));
        // A pool that has none left is not searched again.
        self.cursors.insert((&pool.name, family), found.unwrap_or(u128::MAX));
        address(family, found?)
    }

    fn no_pool(
        &self,
        candidates: &[&'a Pool],
        rejected: &[(PoolName, PoolRule)],
        terms: &Terms<'_>,
        family: Family,
    ) -> Refusal {
        if let Some(name) = &terms.request.pool
            && !self.pools.verdicts().contains_key(name)
        {
            return Refusal::UnknownPool(name.clone());
        }
        if self.pools.verdicts().is_empty() {
            return Refusal::NoPools;
        }
        let empty = candidates.iter().map(|pool| {
            let rule = if pool.size(family) == 0 { PoolRule::NoFamily } else { PoolRule::Exhausted };
            (pool.name.clone(), rule)
        });
        let mut pools: Vec<_> = empty.chain(rejected.iter().cloned()).collect();
        if let Some(requested) = &terms.request.pool {
            pools.retain(|(name, _)| name == requested);
        }
        Refusal::NoPoolFits { family, pools }
    }

    fn admits(&self, pool: &Pool, service: &Service) -> Result<(), PoolRule> {
        let namespace = &*service.key.namespace;
        let labels = self.namespaces.get(namespace).copied().unwrap_or(&self.no_labels);
        pool.admits(namespace, labels, &service.labels).map_err(|rule| match rule {
            NotAdmitted::Namespace => PoolRule::Namespace,
            NotAdmitted::Labels => PoolRule::Labels,
        })
    }

    fn is_taken(&self, family: Family, number: u128) -> bool {
        address(family, number).is_none_or(|address| self.taken.contains_key(&address))
    }
}

/// Of these addresses of a family the one that the Service's status shows, else the lowest.
fn first_shown(applicant: &Applicant<'_>, family: Family, addresses: &[IpAddr]) -> Option<IpAddr> {
    let of_family = addresses.iter().copied().filter(|address| Family::of(*address) == family);
    of_family.min_by_key(|address| {
        let is_shown = applicant.service.ingress.iter().any(|ingress| ingress.address == *address);
        (!is_shown, number(*address))
    })
}

#[cfg(test)]
mod tests;
