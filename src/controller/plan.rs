//! What to change, in which order: claims before the status that shows them, the status before claims are given up.
//!
//! # Two leaders
//!
//! A leader that was stopped between two writes may wake up when another leads. Versions alone do not keep the two apart:
//! one could show an address while the other, whose view of the Service is older, gives up its claim. So these rules hold,
//! and each leader's decisions come before all writes of the task that they lead to:
//!
//! 1. Before a Service shows an address that it did not show, the address's claim is *written*, even if it says the right
//!    thing already.
//! 2. Before the claim of a Service is given up, the Service is *written*, even if nothing changes; or, if it is not there,
//!    asked for and not found.
//! 3. Before a Service ceases to show an address that, as far as we have seen, it does not hold, the claim is asked for: we
//!    may not have seen it yet.
//!
//! Of the first two:
//! Let A show an address (claim written at T, status at S) and B give it up (Service written at B, claim at L). B's write of
//! the claim counts only if B had seen T. If S comes before B's write of the Service, that write fails, or B had seen S and
//! does not give up. If S comes after, A's write fails, or A had seen B's, and then A decided after B wrote, B before: but B
//! had seen T, which A wrote after it decided. So one of the two fails in any order.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::desired::{Desired, DesiredClaim, DesiredCondition, DesiredPool, DesiredService};
use super::index::{Index, PoolObject, ServiceObject};
use crate::api::SERVICE_FINALIZER;
use crate::api::address_pool::{IPAddressPoolSpec, IPAddressPoolStatus};
use crate::api::claim_name::claim_name;
use crate::api::conditions::{ADDRESS_ASSIGNED, ANNOUNCED, PROGRAMMED, READY, assigned};
use crate::model::claim::{Claim, Tenure};
use crate::names::{ClaimName, PoolName, ServiceKey};

/// What a task is about: the unit that fails by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A Service, with its claims.
    Service(ServiceKey),
    /// A claim that no Service present has to do with.
    Claim(ClaimName),
    /// A pool.
    Pool(PoolName),
}

/// Steps that go one after the other, and end at the first that fails.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What it is about.
    pub subject: Subject,
    /// The steps.
    pub steps: Vec<Step>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Makes an address ours.
    CreateClaim {
        /// The address, which is also the name.
        address: IpAddr,
        /// Who holds it.
        tenure: Tenure,
    },
    /// Changes who holds an address.
    WriteClaim {
        /// The claim.
        name: ClaimName,
        /// The version that this was decided on.
        resource_version: String,
        /// Its address.
        address: IpAddr,
        /// Who holds it from now on.
        tenure: Tenure,
    },
    /// Ends a claim.
    DeleteClaim {
        /// The claim.
        name: ClaimName,
        /// The version that this was decided on.
        resource_version: String,
    },
    /// Makes sure that a Service does not exist.
    ConfirmGone(ServiceKey),
    /// Makes sure that a Service does not hold an address.
    ConfirmNotHeld {
        /// The address's claim.
        claim: ClaimName,
        /// The Service.
        service: ServiceKey,
    },
    /// Writes status, annotation and finalizer of a Service, at once.
    WriteService(Box<ServiceWrite>),
    /// Writes the conditions of a Service that is not ours to assign to.
    WriteConditions(Box<ConditionsWrite>),
    /// Writes a pool's status.
    WritePool(Box<PoolWrite>),
    /// Reports a change that has been made.
    Report(Report),
}

/// What is written to a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceWrite {
    /// The Service.
    pub key: ServiceKey,
    /// The version that this was decided on.
    pub resource_version: String,
    /// `status.loadBalancer.ingress`.
    pub addresses: Vec<IpAddr>,
    /// The annotation `allocated-from-pool`.
    pub pools: Option<String>,
    /// `metadata.finalizers`, everybody's.
    pub finalizers: Vec<String>,
    /// `status.conditions`, everybody's.
    pub conditions: Vec<Condition>,
    /// The annotation `decided-on`: there only where the write must be seen though nothing else changes.
    pub decided_on: Option<String>,
}

/// What is written to a Service of which only a condition is ours.
#[derive(Clone, Debug, PartialEq)]
pub struct ConditionsWrite {
    /// The Service.
    pub key: ServiceKey,
    /// The version that this was decided on.
    pub resource_version: String,
    /// `status.conditions`, everybody's.
    pub conditions: Vec<Condition>,
}

/// What is written to a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolWrite {
    /// The pool.
    pub name: PoolName,
    /// The version that this was decided on.
    pub resource_version: String,
    /// `spec` as it was seen; the API server takes no change of it here.
    pub spec: IPAddressPoolSpec,
    /// `status`.
    pub status: IPAddressPoolStatus,
    /// Whether nothing but counts has changed.
    pub is_counts_only: bool,
}

impl Step {
    /// Whether it changes something, rather than asking or reporting.
    pub fn is_write(&self) -> bool {
        match self {
            Self::CreateClaim { .. }
            | Self::WriteClaim { .. }
            | Self::DeleteClaim { .. }
            | Self::WriteService(_)
            | Self::WriteConditions(_)
            | Self::WritePool(_) => true,
            Self::ConfirmGone(_) | Self::ConfirmNotHeld { .. } | Self::Report(_) => false,
        }
    }

    fn can_wait(&self) -> bool {
        match self {
            Self::WritePool(write) => write.is_counts_only,
            Self::CreateClaim { .. }
            | Self::WriteClaim { .. }
            | Self::DeleteClaim { .. }
            | Self::ConfirmGone(_)
            | Self::ConfirmNotHeld { .. }
            | Self::WriteService(_)
            | Self::WriteConditions(_)
            | Self::Report(_) => false,
        }
    }
}

/// An event on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The object's UID.
    pub uid: String,
    /// Whether something is wrong.
    pub is_warning: bool,
    /// The event's reason.
    pub reason: &'static str,
    /// The event's text.
    pub message: String,
}

/// Everything to change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The tasks; no two touch one object, so that they may run side by side.
    pub tasks: Vec<Task>,
}

/// Compares what should be with what has been seen.
pub fn plan(index: &Index, desired: &Desired, now: Timestamp) -> Plan {
    let mut tasks = Vec::new();
    for (key, wanted) in &desired.services {
        if let Some(object) = index.services.get(key) {
            tasks.push(Task { subject: Subject::Service(key.clone()), steps: service(index, object, wanted, now) });
        }
    }
    for object in index.services.values().filter(|object| !desired.services.contains_key(&object.service.key)) {
        let key = &object.service.key;
        let steps = trouble(object, desired.troubles.get(key), now);
        if !steps.is_empty() {
            tasks.push(Task { subject: Subject::Service(key.clone()), steps });
        }
    }
    for (name, fate) in &desired.claims {
        if let Some(claim) = index.claims.get(name) {
            let holders = claim.tenure.holders.iter();
            let mut steps: Vec<Step> = holders.map(|holder| Step::ConfirmGone(holder.service.clone())).collect();
            steps.push(match fate {
                DesiredClaim::Release => write_claim(claim, released(claim, None, now)),
                DesiredClaim::Delete => {
                    Step::DeleteClaim { name: claim.name.clone(), resource_version: claim.resource_version.clone() }
                }
            });
            tasks.push(Task { subject: Subject::Claim(name.clone()), steps });
        }
    }
    for (name, wanted) in &desired.pools {
        if let Some(object) = index.pools.get(name) {
            tasks.push(Task { subject: Subject::Pool(name.clone()), steps: pool(object, wanted, now) });
        }
    }
    tasks.retain(|task| !task.steps.is_empty());
    // While addresses come and go, counts would be written for each of them. They wait until it is quiet; our own writes
    // bring the turn in which it is.
    let is_busy = tasks.iter().any(|task| !matches!(task.subject, Subject::Pool(_)));
    tasks.retain(|task| !(is_busy && task.steps.iter().all(Step::can_wait)));
    Plan { tasks }
}

fn service(index: &Index, object: &ServiceObject, wanted: &DesiredService, now: Timestamp) -> Vec<Step> {
    let key = &object.service.key;
    let mut steps = Vec::new();
    for address in object.service.virtual_addresses().filter(|shown| !wanted.addresses.contains(shown)) {
        let claim = claim_name(address);
        if !index.claims.get(&claim).is_some_and(|claim| claim.is_held_by(key)) {
            steps.push(Step::ConfirmNotHeld { claim, service: key.clone() });
        }
    }
    if wanted.is_read_only {
        steps.clear();
    }
    for (name, (address, tenure)) in &wanted.acquires {
        steps.push(match index.claims.get(name) {
            Some(claim) => write_claim(claim, tenure.clone()),
            None => Step::CreateClaim { address: *address, tenure: tenure.clone() },
        });
    }
    if !wanted.is_read_only {
        steps.extend(service_write(object, wanted, now).map(|write| Step::WriteService(Box::new(write))));
    }
    for name in &wanted.releases {
        if let Some(claim) = index.claims.get(name) {
            steps.push(write_claim(claim, released(claim, Some(key), now)));
        }
    }
    if !steps.is_empty() && !wanted.is_read_only {
        steps.extend(reports(object, wanted).into_iter().map(Step::Report));
    }
    steps
}

/// What nodes cannot do for a Service that is not ours to assign to.
fn trouble(object: &ServiceObject, wanted: Option<&DesiredCondition>, now: Timestamp) -> Vec<Step> {
    let service = &object.service;
    let is_shown = object.conditions.iter().any(|condition| condition.type_ == PROGRAMMED);
    if wanted.is_none() && !is_shown || service.is_deleting {
        return Vec::new();
    }
    let generation = Some(service.generation).filter(|generation| *generation > 0);
    let wanted: Vec<DesiredCondition> = wanted.cloned().into_iter().collect();
    let conditions = merge(&object.conditions, &[PROGRAMMED], &wanted, generation, now);
    if conditions == object.conditions {
        return Vec::new();
    }
    let write =
        ConditionsWrite { key: service.key.clone(), resource_version: service.resource_version.clone(), conditions };
    let report = trouble_report(object, &wanted).map(Step::Report);
    [Step::WriteConditions(Box::new(write))].into_iter().chain(report).collect()
}

/// A new trouble, or the end of it. A message that only names another node is no news.
fn trouble_report(object: &ServiceObject, wanted: &[DesiredCondition]) -> Option<Report> {
    let wanted = wanted.iter().find(|condition| condition.kind == PROGRAMMED);
    let before = object.conditions.iter().find(|condition| condition.type_ == PROGRAMMED);
    let report = |is_warning, reason, message| Report { uid: object.service.uid.clone(), is_warning, reason, message };
    match (before, wanted) {
        (Some(before), Some(wanted)) if before.reason == wanted.reason => None,
        (_, Some(wanted)) => Some(report(true, "NotProgrammed", format!("{}: {}", wanted.reason, wanted.message))),
        (Some(_), None) => Some(report(false, "Programmed", "all nodes forward for this Service again".to_owned())),
        (None, None) => None,
    }
}

fn write_claim(claim: &Claim, tenure: Tenure) -> Step {
    Step::WriteClaim {
        name: claim.name.clone(),
        resource_version: claim.resource_version.clone(),
        address: claim.address,
        tenure,
    }
}

/// A claim after a Service has given it up; after all have, where none is named.
fn released(claim: &Claim, service: Option<&ServiceKey>, now: Timestamp) -> Tenure {
    let holders = service.map(|service| claim.others(service)).unwrap_or_default();
    let gone = claim.tenure.holders.iter().find(|holder| service.is_none_or(|service| holder.service == *service));
    Tenure {
        pool: claim.tenure.pool.clone(),
        released_at: holders.is_empty().then_some(now),
        last_holder: if holders.is_empty() { gone.or(claim.tenure.last_holder.as_ref()).cloned() } else { None },
        holders,
        lingers_until: None,
    }
}

/// The write that brings a Service to what is wanted, if it is not there, or that must come before its claims go.
fn service_write(object: &ServiceObject, wanted: &DesiredService, now: Timestamp) -> Option<ServiceWrite> {
    let service = &object.service;
    let mut finalizers = service.finalizers.clone();
    match wanted.has_finalizer {
        Some(true) if !finalizers.iter().any(|finalizer| finalizer == SERVICE_FINALIZER) => {
            finalizers.push(SERVICE_FINALIZER.to_owned());
        }
        Some(false) => finalizers.retain(|finalizer| finalizer != SERVICE_FINALIZER),
        Some(true) | None => {}
    }
    let generation = Some(service.generation).filter(|generation| *generation > 0);
    let conditions =
        merge(&object.conditions, &[ADDRESS_ASSIGNED, ANNOUNCED, PROGRAMMED], &wanted.conditions, generation, now);
    let shown: Vec<IpAddr> = service.virtual_addresses().collect();
    let is_shown = shown == wanted.addresses && shown.len() == service.ingress.len() && !object.has_hostname;
    let is_same_but_mark = is_shown
        && service.annotations.allocated_from_pool == wanted.pools
        && finalizers == service.finalizers
        && conditions == object.conditions;
    let is_there = is_same_but_mark && object.decided_on.is_none() && wanted.releases.is_empty();
    (!is_there).then(|| ServiceWrite {
        key: service.key.clone(),
        resource_version: service.resource_version.clone(),
        addresses: wanted.addresses.clone(),
        pools: wanted.pools.clone(),
        finalizers,
        conditions,
        // A version that is never the same twice, or the API server would take the write for none.
        decided_on: (!wanted.releases.is_empty() && is_same_but_mark).then(|| service.resource_version.clone()),
    })
}

/// What a person should hear of: addresses that come or go, and a new reason for a no.
fn reports(object: &ServiceObject, wanted: &DesiredService) -> Vec<Report> {
    let service = &object.service;
    let shown: Vec<IpAddr> = service.virtual_addresses().collect();
    let list = |addresses: &[&IpAddr]| addresses.iter().map(|ip| ip.to_string()).collect::<Vec<_>>().join(" and ");
    let report = |is_warning, reason, message| Report { uid: service.uid.clone(), is_warning, reason, message };
    let new: Vec<&IpAddr> = wanted.addresses.iter().filter(|address| !shown.contains(address)).collect();
    let old: Vec<&IpAddr> = shown.iter().filter(|address| !wanted.addresses.contains(address)).collect();
    let mut reports = Vec::new();
    if !new.is_empty() {
        let from = wanted.pools.as_deref().map(|pools| format!(" from pool {pools}")).unwrap_or_default();
        let instead = if old.is_empty() { String::new() } else { format!(" in place of {}", list(&old)) };
        reports.push(report(false, "AddressAssigned", format!("assigned {}{from}{instead}", list(&new))));
    } else if !old.is_empty() {
        reports.push(report(false, "AddressReleased", format!("released {}", list(&old))));
    }
    for condition in wanted.conditions.iter().filter(|condition| condition.kind == ADDRESS_ASSIGNED) {
        let before = object.conditions.iter().find(|before| before.type_ == condition.kind);
        let is_bad = !condition.is_true || condition.reason == assigned::REQUEST_REFUSED;
        if is_bad && before.is_none_or(|before| before.reason != condition.reason) {
            reports.push(report(true, "AssignmentFailed", condition.message.clone()));
        }
    }
    reports.extend(trouble_report(object, &wanted.conditions));
    reports
}

fn pool(object: &PoolObject, wanted: &DesiredPool, now: Timestamp) -> Vec<Step> {
    let [assigned_ipv4, assigned_ipv6] = wanted.assigned;
    let [available_ipv4, available_ipv6] = wanted.available;
    let ready = DesiredCondition {
        kind: READY,
        is_true: wanted.verdict.is_accepted,
        reason: wanted.verdict.reason.into(),
        message: wanted.verdict.message.clone(),
    };
    let before = object.status.conditions.iter().find(|condition| condition.type_ == READY);
    let is_refused_anew = !ready.is_true && before.is_none_or(|before| before.message != ready.message);
    let report =
        Report { uid: object.uid.clone(), is_warning: true, reason: "PoolNotReady", message: ready.message.clone() };
    let status = IPAddressPoolStatus {
        conditions: merge(&object.status.conditions, &[READY], &[ready], Some(object.generation), now),
        accepted: wanted.accepted.clone(),
        assigned: assigned_ipv4.saturating_add(assigned_ipv6),
        available: available_ipv4.saturating_add(available_ipv6),
        assigned_ipv4,
        assigned_ipv6,
        available_ipv4,
        available_ipv6,
    };
    if status == object.status {
        return Vec::new();
    }
    let write = PoolWrite {
        name: object.name.clone(),
        resource_version: object.resource_version.clone(),
        spec: object.spec.clone(),
        is_counts_only: status.conditions == object.status.conditions && status.accepted == object.status.accepted,
        status,
    };
    let report = is_refused_anew.then_some(Step::Report(report));
    [Step::WritePool(Box::new(write))].into_iter().chain(report).collect()
}

/// The conditions present with ours as they should be. Others', and the times of those that did not change, stay.
fn merge(
    present: &[Condition],
    ours: &[&str],
    wanted: &[DesiredCondition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let make = |wanted: &DesiredCondition| {
        let status = if wanted.is_true { "True" } else { "False" };
        let before = present.iter().find(|condition| condition.type_ == wanted.kind);
        let since = before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
        // The API keeps whole seconds.
        let whole_seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Condition {
            type_: wanted.kind.to_owned(),
            status: status.to_owned(),
            reason: wanted.reason.to_string(),
            message: wanted.message.clone(),
            observed_generation: generation,
            last_transition_time: since.unwrap_or(Time(whole_seconds)),
        }
    };
    let kept = present.iter().filter_map(|condition| {
        if !ours.contains(&condition.type_.as_str()) {
            return Some(condition.clone());
        }
        wanted.iter().find(|wanted| wanted.kind == condition.type_).map(make)
    });
    let is_new = |wanted: &&DesiredCondition| !present.iter().any(|condition| condition.type_ == wanted.kind);
    kept.chain(wanted.iter().filter(is_new).map(make)).collect()
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service {key}"),
            Self::Claim(name) => write!(f, "claim {name}"),
            Self::Pool(name) => write!(f, "pool {name}"),
        }
    }
}
