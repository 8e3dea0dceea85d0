//! What should be true: of every Service, every claim and every pool.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

use super::allocator::{Allocator, Applicant, Award, Taken};
use super::index::{Index, ServiceObject};
use super::pools::{Pools, Verdict};
use super::request::Request;
use super::troubles::troubles;
use crate::api::address_pool::{DEFAULT_COOLDOWN, IPAddressPoolSpec};
use crate::api::conditions::{announced, assigned};
use crate::api::{LOAD_BALANCER_CLASS, conditions};
use crate::model::Family;
use crate::model::claim::{Claim, Holder, Tenure};
use crate::model::service::{Service, ServiceType};
use crate::names::{ClaimName, PoolName, ServiceKey};

/// Which Services are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The `loadBalancerClass` that is ours besides [`LOAD_BALANCER_CLASS`].
    pub load_balancer_class: String,
    /// Whether Services without a class are ours.
    pub handles_classless: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { load_balancer_class: LOAD_BALANCER_CLASS.to_owned(), handles_classless: true }
    }
}

/// A condition, as far as it is decided and not when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredCondition {
    /// `type`.
    pub kind: &'static str,
    /// `status`.
    pub is_true: bool,
    /// `reason`.
    pub reason: Cow<'static, str>,
    /// `message`.
    pub message: String,
}

/// What a Service should show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    /// Its addresses, in ascending order.
    pub addresses: Vec<IpAddr>,
    /// The annotation `allocated-from-pool`.
    pub pools: Option<String>,
    /// Our conditions; one of ours that is not in it should go.
    pub conditions: Vec<DesiredCondition>,
    /// Whether the finalizer should be there; no opinion while nothing is assigned.
    pub has_finalizer: Option<bool>,
    /// The claims to write before the Service may show an address: those that are not the Service's yet, and those whose
    /// address it does not show yet (see [`mod@super::plan`]).
    pub acquires: BTreeMap<ClaimName, (IpAddr, Tenure)>,
    /// The claims that are given up once the Service shows it.
    pub releases: Vec<ClaimName>,
    /// Whether the Service itself is not to be written.
    pub is_read_only: bool,
}

/// What should become of a claim that no Service present has to do with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DesiredClaim {
    /// It begins its rest.
    Release,
    /// It has rested.
    Delete,
}

/// What a pool's status should say.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredPool {
    /// What became of the spec.
    pub verdict: Verdict,
    /// The spec in force.
    pub accepted: Option<IPAddressPoolSpec>,
    /// Addresses held, IPv4 and IPv6.
    pub assigned: [i64; 2],
    /// Addresses that could be given now, IPv4 and IPv6.
    pub available: [i64; 2],
}

/// What should be true.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Services that are ours or were.
    pub services: BTreeMap<ServiceKey, DesiredService>,
    /// What the others should show of what nodes cannot do for them; without an entry nothing.
    pub troubles: BTreeMap<ServiceKey, DesiredCondition>,
    /// Claims of nobody.
    pub claims: BTreeMap<ClaimName, DesiredClaim>,
    /// All pools.
    pub pools: BTreeMap<PoolName, DesiredPool>,
    /// When the next rest ends.
    pub next: Option<Timestamp>,
}

/// What a Service is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is to have addresses.
    Served,
    /// It was ours: what we put on it is to go.
    Left,
    /// It was ours and is another load balancer's now: its claims go, the object is not touched.
    Ceded,
    /// It is not our business.
    Foreign,
}

/// Decides everything.
pub fn desired(index: &Index, settings: &Settings, now: Timestamp) -> Desired {
    let pools = Pools::judge(index.pools.values());
    let held = index.claims_by_holder();
    let mut desired = Desired::default();
    let taken = taken(index, &pools, now);
    let returning = returning(&taken);
    let namespaces = index.namespaces.values().map(|namespace| (&*namespace.name, &namespace.labels));
    let mut allocator =
        Allocator::new(&pools, namespaces, taken.iter().map(|(address, taken)| (*address, taken.clone())));

    let mut applicants = Vec::new();
    for object in index.services.values() {
        let service = &object.service;
        let claims = held.get(&service.key).map_or(&[][..], Vec::as_slice);
        match standing(object, claims, &pools, settings) {
            Standing::Foreign => {}
            Standing::Left => {
                desired.services.insert(service.key.clone(), left(claims));
            }
            Standing::Ceded => {
                desired.services.insert(service.key.clone(), DesiredService { is_read_only: true, ..left(claims) });
            }
            Standing::Served => applicants.push((object, claims)),
        }
    }
    applicants.sort_by_key(|(object, claims)| turn_of(object, claims));
    for (object, claims) in applicants {
        let service = &object.service;
        let applicant = Applicant {
            service,
            request: Request::of(service),
            held: claims.iter().map(|claim| claim.address).collect(),
            returning: returning.get(&service.key).cloned().unwrap_or_default(),
        };
        let award = allocator.award(&applicant);
        desired.services.insert(service.key.clone(), served(index, service, &applicant, &award, claims));
    }

    let acquired: BTreeSet<&ClaimName> =
        desired.services.values().flat_map(|service| service.acquires.keys()).collect();
    for claim in index.claims.values().filter(|claim| !acquired.contains(&claim.name)) {
        if let Some(fate) = fate(claim, index, &taken, now) {
            desired.claims.insert(claim.name.clone(), fate);
        }
    }
    desired.next = taken
        .values()
        .filter_map(|taken| match taken {
            Taken::Resting { until, .. } => Some(*until).filter(|until| *until > now),
            Taken::Held | Taken::Quarantined => None,
        })
        .min();
    desired.pools = pool_statuses(&pools, &taken);
    for (key, trouble) in troubles(index) {
        match desired.services.get_mut(&key) {
            Some(service) => service.conditions.push(trouble),
            None => drop(desired.troubles.insert(key, trouble)),
        }
    }
    desired
}

/// Every address that has a claim.
fn taken(index: &Index, pools: &Pools, now: Timestamp) -> BTreeMap<IpAddr, Taken> {
    let state = |claim: &Claim| {
        if claim.is_quarantined && claim.tenure.holders.is_empty() {
            return Taken::Quarantined;
        }
        if !claim.tenure.holders.is_empty() {
            return Taken::Held;
        }
        let cooldown = pools.get(&claim.tenure.pool).map_or(DEFAULT_COOLDOWN, |pool| pool.cooldown);
        let released = claim.tenure.released_at.unwrap_or(now);
        Taken::Resting {
            until: released.checked_add(cooldown).unwrap_or(Timestamp::MAX),
            last_holder: claim.tenure.last_holder.as_ref().map(|holder| holder.service.clone()),
        }
    };
    index.claims.values().map(|claim| (claim.address, state(claim))).collect()
}

/// The resting addresses of each Service that held one.
fn returning(taken: &BTreeMap<IpAddr, Taken>) -> BTreeMap<ServiceKey, Vec<IpAddr>> {
    let mut returning: BTreeMap<ServiceKey, Vec<IpAddr>> = BTreeMap::new();
    for (address, taken) in taken {
        match taken {
            Taken::Resting { last_holder: Some(service), .. } => {
                returning.entry(service.clone()).or_default().push(*address);
            }
            Taken::Resting { last_holder: None, .. } | Taken::Held | Taken::Quarantined => {}
        }
    }
    returning
}

/// What a Service is to us. A claim is the proof that we gave it something; without one, and without a class, an
/// address outside our pools (or a host name) shows that somebody else serves it.
fn standing(object: &ServiceObject, claims: &[&Claim], pools: &Pools, settings: &Settings) -> Standing {
    let service = &object.service;
    let has_mark = service.annotations.allocated_from_pool.is_some()
        || object.decided_on.is_some()
        || object.conditions.iter().any(|condition| condition.type_ == conditions::ADDRESS_ASSIGNED);
    let was_ours = !claims.is_empty() || has_mark;
    let is_balanced = service.service_type == ServiceType::LoadBalancer && !service.is_deleting;
    let is_elsewhere = || {
        let is_outside = |address: IpAddr| pools.containing(address).is_none();
        object.has_hostname || service.ingress.iter().any(|ingress| is_outside(ingress.address))
    };
    match &service.load_balancer_class {
        Some(class) if class != LOAD_BALANCER_CLASS && *class != settings.load_balancer_class => {
            if claims.is_empty() {
                Standing::Foreign
            } else {
                Standing::Ceded
            }
        }
        None if !settings.handles_classless && is_balanced => Standing::Foreign,
        None if is_balanced && !was_ours && is_elsewhere() => Standing::Foreign,
        Some(_) | None if is_balanced => Standing::Served,
        Some(_) | None if was_ours => Standing::Left,
        Some(_) | None => Standing::Foreign,
    }
}

/// The order in which Services choose: first those whose status shows an address that no claim holds, so that nobody
/// takes it from under them; then by age, then by name.
fn turn_of<'a>(object: &'a ServiceObject, claims: &[&Claim]) -> (bool, Option<Timestamp>, &'a ServiceKey) {
    let service = &object.service;
    let unclaimed = |address: IpAddr| claims.iter().all(|claim| claim.address != address);
    let shows_unclaimed = service.virtual_addresses().any(unclaimed);
    (!shows_unclaimed, service.created, &service.key)
}

fn left(claims: &[&Claim]) -> DesiredService {
    DesiredService {
        addresses: Vec::new(),
        pools: None,
        conditions: Vec::new(),
        has_finalizer: Some(false),
        acquires: BTreeMap::new(),
        releases: claims.iter().map(|claim| claim.name.clone()).collect(),
        is_read_only: false,
    }
}

fn served(
    index: &Index,
    service: &Service,
    applicant: &Applicant<'_>,
    award: &Award,
    claims: &[&Claim],
) -> DesiredService {
    let mut acquires = BTreeMap::new();
    for grant in award.grants.values() {
        let name = crate::api::claim_name::claim_name(grant.address);
        let present = index.claims.get(&name);
        // An address outside all pools is kept under the name of the pool that it came from.
        let pool = grant.pool.clone().or_else(|| present.map(|claim| claim.tenure.pool.clone()));
        let Some(pool) = pool else { continue };
        let mut holders: Vec<Holder> = present.map(|claim| claim.others(&service.key)).unwrap_or_default();
        holders.push(Holder { service: service.key.clone(), uid: service.uid.clone() });
        holders.sort();
        let tenure = Tenure { pool, holders, released_at: None, last_holder: None, lingers_until: None };
        let is_shown = service.virtual_addresses().any(|shown| shown == grant.address);
        if !is_shown || present.is_none_or(|claim| claim.tenure != tenure) {
            acquires.insert(name, (grant.address, tenure));
        }
    }
    let addresses: Vec<IpAddr> = award.grants.values().map(|grant| grant.address).collect();
    let pools: BTreeSet<&str> =
        award.grants.values().filter_map(|grant| grant.pool.as_ref()).map(PoolName::as_str).collect();
    let mut all_conditions = vec![address_assigned(applicant, award)];
    all_conditions.extend(announced_by(index, &addresses));
    DesiredService {
        pools: if pools.is_empty() {
            service.annotations.allocated_from_pool.clone().filter(|_| !addresses.is_empty())
        } else {
            Some(pools.into_iter().collect::<Vec<_>>().join(","))
        },
        conditions: all_conditions,
        has_finalizer: (!addresses.is_empty()).then_some(true),
        releases: claims
            .iter()
            .filter(|claim| !addresses.contains(&claim.address))
            .map(|claim| claim.name.clone())
            .collect(),
        addresses,
        acquires,
        is_read_only: false,
    }
}

fn address_assigned(applicant: &Applicant<'_>, award: &Award) -> DesiredCondition {
    let granted: Vec<String> = award
        .grants
        .values()
        .map(|grant| match &grant.pool {
            Some(pool) => format!("{} from pool {pool}", grant.address),
            None => format!("{}, which is in no pool any more", grant.address),
        })
        .collect();
    let granted = granted.join(" and ");
    let takes_one = applicant.request.as_ref().is_ok_and(|request| request.takes_one_of_two);
    let (is_true, reason, message) = match &award.refusal {
        None => (true, assigned::ASSIGNED, format!("holds {granted}")),
        Some(refusal) if award.grants.is_empty() => (false, refusal.reason(), refusal.to_string()),
        Some(refusal) if takes_one && !award.is_kept_against_rules => {
            (true, assigned::ONE_FAMILY, format!("holds {granted}; {refusal}"))
        }
        Some(refusal) => (true, assigned::REQUEST_REFUSED, format!("keeps {granted}; {refusal}")),
    };
    DesiredCondition { kind: conditions::ADDRESS_ASSIGNED, is_true, reason: reason.into(), message }
}

/// Who announces the addresses. No opinion where no node reports anything: then nobody runs the speaker.
fn announced_by(index: &Index, addresses: &[IpAddr]) -> Option<DesiredCondition> {
    if addresses.is_empty() || index.nodes.values().next().is_none() {
        return None;
    }
    let mut parts = Vec::new();
    let mut missing = 0;
    for address in addresses {
        let announcements: Vec<_> = index
            .nodes
            .values()
            .flat_map(|node| node.announcements.iter().map(move |announcement| (&node.node, announcement)))
            .filter(|(_, (announced, ..))| announced == address)
            .collect();
        // A node that has died goes on saying that it announces: the last to begin is the one that does.
        let newest = announcements.iter().max_by_key(|(node, (_, _, since))| (*since, *node)).map(|(node, _)| *node);
        let by = announcements.iter().filter(|(node, _)| Some(*node) == newest);
        let by: Vec<String> = by.map(|(_, (_, interface, since))| format!("{interface} since {since:.0}")).collect();
        if let Some(node) = newest {
            parts.push(format!("{address} is announced by node {node} on {}", by.join(" and ")));
        } else {
            missing += 1;
            parts.push(format!("{address} is announced by no node"));
        }
    }
    let reason = match missing {
        0 => announced::ANNOUNCED,
        some if some < addresses.len() => announced::PARTLY,
        _ => announced::NO_NODE,
    };
    let (is_true, message) = (missing == 0, parts.join("; "));
    Some(DesiredCondition { kind: conditions::ANNOUNCED, is_true, reason: reason.into(), message })
}

/// What becomes of a claim whose holders are gone, or that has none.
fn fate(claim: &Claim, index: &Index, taken: &BTreeMap<IpAddr, Taken>, now: Timestamp) -> Option<DesiredClaim> {
    if claim.is_deleting {
        return None;
    }
    if claim.tenure.holders.is_empty() {
        return match taken.get(&claim.address) {
            Some(Taken::Resting { .. }) if claim.tenure.released_at.is_none() => Some(DesiredClaim::Release),
            Some(Taken::Resting { until, .. }) if *until <= now => Some(DesiredClaim::Delete),
            Some(Taken::Resting { .. } | Taken::Held | Taken::Quarantined) | None => None,
        };
    }
    let is_orphan = claim.tenure.holders.iter().all(|holder| index.services.get(&holder.service).is_none());
    is_orphan.then_some(DesiredClaim::Release)
}

fn pool_statuses(pools: &Pools, taken: &BTreeMap<IpAddr, Taken>) -> BTreeMap<PoolName, DesiredPool> {
    let mut counts: BTreeMap<(&PoolName, Family), (u64, u64)> = BTreeMap::new();
    for (address, taken) in taken {
        let Some(pool) = pools.containing(*address) else { continue };
        let (held, gone) = counts.entry((&pool.name, Family::of(*address))).or_default();
        *held += u64::from(*taken == Taken::Held);
        *gone += u64::from(pool.is_unreserved(*address));
    }
    let saturated = |count: u128| i64::try_from(count).unwrap_or(i64::MAX);
    let statuses = pools.verdicts().iter().map(|(name, verdict)| {
        let count = |family| counts.get(&(name, family)).copied().unwrap_or_default();
        let available = |family| {
            let size = pools.get(name).map_or(0, |pool| pool.size(family));
            saturated(size.saturating_sub(u128::from(count(family).1)))
        };
        let status = DesiredPool {
            verdict: verdict.clone(),
            accepted: pools.spec(name).cloned(),
            assigned: Family::ALL.map(|family| saturated(u128::from(count(family).0))),
            available: Family::ALL.map(available),
        };
        (name.clone(), status)
    });
    statuses.collect()
}

#[cfg(test)]
mod tests;
