//! Writes what was planned: every write carries the version that it was decided on and is made only while we lead.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::json;
use thiserror::Error;
use tokio::time::Instant;

use super::index::{Index, PoolObject, ServiceObject};
use super::metrics::Metrics;
use super::plan::{ConditionsWrite, Plan, PoolWrite, Report, ServiceWrite, Step, Subject, Task};
use crate::api::address_claim::{AddressClaim, AddressClaimSpec};
use crate::api::annotations::{ALLOCATED_FROM_POOL, DECIDED_ON};
use crate::api::claim_name::claim_name;
use crate::api::schema::Address;
use crate::api::{CONTROLLER_NAME, IPAddressPool};
use crate::model::claim::{Claim, Tenure};
use crate::names::{ClaimName, PoolName, ServiceKey};
use crate::runtime::lease::Leadership;
use crate::runtime::telemetry::chain;
use crate::runtime::watch::Observed;

/// How many tasks are under way at a time: enough to hide the API server's latency, few enough to leave it room.
const SIDE_BY_SIDE: usize = 16;
/// How soon to look again after an answer that shows that we acted on old state.
const STALE_PAUSE: Duration = Duration::from_millis(100);
/// The first pause before an object that the API server refuses is tried again; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a turn could not be completed.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The API server did not answer, or not now.
    #[error("failed to write {subject}: {source}")]
    Unreachable {
        /// What was to be written.
        subject: Subject,
        /// What the client said.
        source: Box<kube::Error>,
    },
}

/// The newest state of an object, from an answer.
#[derive(Debug)]
enum Answer {
    Claim(Claim),
    NoClaim(ClaimName),
    Service(Box<ServiceObject>),
    NoService(ServiceKey),
    Pool(Box<PoolObject>),
    NoPool(PoolName),
}

/// How a task ended.
#[derive(Debug)]
enum End {
    /// All steps are done.
    Done,
    /// We acted on old state, and the newer one is among the answers; or there was no answer in time. To be looked at again.
    Stale,
    /// We do not lead any more.
    NotLeading,
    /// The API server refuses this object.
    Refused(Box<kube::Error>),
    /// The API server cannot be reached, or is overloaded.
    Unreachable(Box<kube::Error>),
}

/// Sends writes to the API server.
#[derive(Debug)]
pub struct Applier {
    sender: Sender,
    /// Objects that the API server refuses: when to try again, and the pause after that.
    refused: BTreeMap<Subject, (Instant, Duration)>,
}

impl Applier {
    /// Writes with this client, under this name in events, while this leadership lasts.
    pub fn new(client: Client, identity: String, leadership: Leadership, metrics: Metrics) -> Self {
        let reporter = Reporter { controller: CONTROLLER_NAME.to_owned(), instance: Some(identity) };
        Self { sender: Sender { client, reporter, leadership, metrics }, refused: BTreeMap::new() }
    }

    /// Carries out a plan and teaches the index what the answers show. Gives when to look again at the latest.
    ///
    /// # Errors
    /// When the API server could not be reached. An object that it refuses is set aside and no error.
    pub async fn apply(&mut self, plan: Plan, index: &mut Index, now: Instant) -> Result<Option<Duration>, ApplyError> {
        self.refused.retain(|subject, _| plan.tasks.iter().any(|task| task.subject == *subject));
        let is_due = |task: &Task| self.refused.get(&task.subject).is_none_or(|(until, _)| *until <= now);
        // Pools first: what others rest on is durable before they do.
        let (pools, others): (Vec<Task>, Vec<Task>) =
            plan.tasks.into_iter().filter(is_due).partition(|task| matches!(task.subject, Subject::Pool(_)));
        let mut failure = None;
        let mut is_stale = false;
        for tasks in [pools, others] {
            let sender = &self.sender;
            let mut ends = stream::iter(tasks).map(|task| sender.run(task)).buffer_unordered(SIDE_BY_SIDE);
            while let Some((subject, answers, end)) = ends.next().await {
                answers.into_iter().for_each(|answer| index.learn(answer));
                match end {
                    End::Done => {
                        self.refused.remove(&subject);
                    }
                    // Leadership may have come back already: what was left undone is looked at again.
                    End::Stale | End::NotLeading => is_stale = true,
                    End::Refused(error) => {
                        let pause = self.refused.get(&subject).map_or(FIRST_PAUSE, |(_, pause)| *pause);
                        tracing::warn!(%subject, error = chain(&*error), ?pause, "write refused, the object is set aside");
                        self.refused.insert(subject, (now + pause, (pause * 2).min(LONGEST_PAUSE)));
                    }
                    End::Unreachable(source) => {
                        failure.get_or_insert(ApplyError::Unreachable { subject, source });
                    }
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let retries = self.refused.values().map(|(until, _)| until.saturating_duration_since(now).max(STALE_PAUSE));
        Ok(retries.chain(is_stale.then_some(STALE_PAUSE)).min())
    }
}

impl Index {
    fn learn(&mut self, answer: Answer) {
        match answer {
            Answer::Claim(claim) => self.claims.answered(claim),
            Answer::NoClaim(name) => self.claims.forget(&name),
            Answer::Service(service) => self.services.answered(*service),
            Answer::NoService(key) => self.services.forget(&key),
            Answer::Pool(pool) => self.pools.answered(*pool),
            Answer::NoPool(name) => self.pools.forget(&name),
        }
    }
}

/// What all tasks share.
#[derive(Clone)]
struct Sender {
    client: Client,
    reporter: Reporter,
    leadership: Leadership,
    metrics: Metrics,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("reporter", &self.reporter).finish_non_exhaustive()
    }
}

impl Sender {
    async fn run(&self, task: Task) -> (Subject, Vec<Answer>, End) {
        let mut answers = Vec::new();
        for step in &task.steps {
            if let Step::Report(report) = step {
                match self.while_leading(self.report(&task.subject, report)).await {
                    Ok(()) => continue,
                    Err(end) => return (task.subject, answers, end),
                }
            }
            let error = match self.while_leading(self.step(step)).await {
                Ok(Ok(answer)) => {
                    self.metrics.writes.inc_by(u64::from(step.is_write()));
                    answers.extend(answer);
                    continue;
                }
                Ok(Err(error)) => error,
                Err(end) => return (task.subject, answers, end),
            };
            // Without a status it is a failure of the connection.
            let code = if let kube::Error::Api(status) = &error { status.code } else { 503 };
            let end = match code {
                404 | 409 => {
                    self.metrics.failed("Stale");
                    tracing::debug!(subject = %task.subject, error = chain(&error), "acted on old state, looking again");
                    match self.while_leading(self.newest(step)).await {
                        Ok(Ok(answer)) => {
                            answers.extend(answer);
                            End::Stale
                        }
                        Ok(Err(error)) => End::Unreachable(Box::new(error)),
                        Err(end) => end,
                    }
                }
                // 500 is what a broken webhook makes of one object: the others must not wait for it.
                429 | 501..=599 => End::Unreachable(Box::new(error)),
                _ => End::Refused(Box::new(error)),
            };
            match &end {
                End::Refused(_) => self.metrics.failed("Refused"),
                End::Unreachable(_) => self.metrics.failed("Unreachable"),
                End::Done | End::Stale | End::NotLeading => {}
            }
            return (task.subject, answers, end);
        }
        (task.subject, answers, End::Done)
    }

    /// Does one thing unless we lead no more, and gives it up when the lease, as it stands now, has run out.
    async fn while_leading<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        let remaining = self.leadership.remaining().ok_or(End::NotLeading)?;
        tokio::time::timeout(remaining, work).await.map_err(|_elapsed| {
            // Whether a write was taken is not known: we, or the next leader, will see.
            if self.leadership.is_current() { End::Stale } else { End::NotLeading }
        })
    }

    async fn step(&self, step: &Step) -> Result<Option<Answer>, kube::Error> {
        match step {
            Step::CreateClaim { address, tenure } => {
                let object = claim(*address, tenure, None);
                let created = self.claims().create(&PostParams::default(), &object).await?;
                tracing::info!(%address, pool = %tenure.pool, holders = ?tenure.holders, "address claimed");
                Ok(Claim::read(&created).ok().map(Answer::Claim))
            }
            Step::WriteClaim { name, resource_version, address, tenure } => {
                let object = claim(*address, tenure, Some(resource_version));
                let written = self.claims().replace(name.as_str(), &PostParams::default(), &object).await?;
                tracing::info!(%address, pool = %tenure.pool, holders = ?tenure.holders, "claim changed");
                Ok(Claim::read(&written).ok().map(Answer::Claim))
            }
            Step::DeleteClaim { name, resource_version } => {
                let preconditions = Preconditions { resource_version: Some(resource_version.clone()), uid: None };
                let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                self.claims().delete(name.as_str(), &parameters).await?;
                tracing::info!(claim = %name, "claim has rested and is free");
                Ok(Some(Answer::NoClaim(name.clone())))
            }
            Step::ConfirmGone(key) => match self.services(key).get_opt(&key.name).await? {
                None => Ok(Some(Answer::NoService(key.clone()))),
                Some(_) => Err(stale("the Service exists")),
            },
            Step::ConfirmNotHeld { claim, service } => {
                let found = self.claims().get_opt(claim.as_str()).await?;
                match found.and_then(|object| Claim::read(&object).ok()) {
                    None => Ok(Some(Answer::NoClaim(claim.clone()))),
                    Some(found) if found.is_held_by(service) => Err(stale("the Service holds the address")),
                    Some(found) => Ok(Some(Answer::Claim(found))),
                }
            }
            Step::WriteService(write) => self.write_service(write).await.map(Some),
            Step::WriteConditions(write) => self.write_conditions(write).await.map(Some),
            Step::WritePool(write) => self.write_pool(write).await.map(Some),
            Step::Report(_) => Ok(None),
        }
    }

    /// Annotation and finalizer go with the status: the API server takes metadata there too, and one write cannot be left
    /// half done.
    async fn write_service(&self, write: &ServiceWrite) -> Result<Answer, kube::Error> {
        let ingress: Vec<_> = write.addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let patch = json!({
            "metadata": {
                "resourceVersion": write.resource_version,
                "annotations": {ALLOCATED_FROM_POOL: write.pools, DECIDED_ON: write.decided_on},
                "finalizers": write.finalizers,
            },
            "status": {
                "loadBalancer": {"ingress": if ingress.is_empty() { json!(null) } else { json!(ingress) }},
                "conditions": write.conditions,
            },
        });
        let written = self
            .services(&write.key)
            .patch_status(&write.key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        tracing::info!(service = %write.key, addresses = ?write.addresses, "service written");
        Ok(read_service(&written, &write.key))
    }

    async fn write_conditions(&self, write: &ConditionsWrite) -> Result<Answer, kube::Error> {
        let patch = json!({
            "metadata": {"resourceVersion": write.resource_version},
            "status": {"conditions": write.conditions},
        });
        let written = self
            .services(&write.key)
            .patch_status(&write.key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(read_service(&written, &write.key))
    }

    async fn write_pool(&self, write: &PoolWrite) -> Result<Answer, kube::Error> {
        // Replaced, not merged: a merge would keep fields of the accepted spec that are gone.
        let mut pool = IPAddressPool::new(write.name.as_str(), write.spec.clone());
        pool.metadata.resource_version = Some(write.resource_version.clone());
        pool.status = Some(write.status.clone());
        let written = self.pools().replace_status(write.name.as_str(), &PostParams::default(), &pool).await?;
        Ok(read_pool(&written, &write.name))
    }

    /// The state of the object that a step found changed, or what shows that it is gone.
    async fn newest(&self, step: &Step) -> Result<Option<Answer>, kube::Error> {
        let claim = async |name: ClaimName| {
            let found = self.claims().get_opt(name.as_str()).await?;
            let claim = found.and_then(|object| Claim::read(&object).ok());
            Ok::<_, kube::Error>(Some(claim.map_or(Answer::NoClaim(name), Answer::Claim)))
        };
        let service = async |key: &ServiceKey| {
            let found = self.services(key).get_opt(&key.name).await?;
            let gone = || Answer::NoService(key.clone());
            Ok::<_, kube::Error>(Some(found.map_or_else(gone, |object| read_service(&object, key))))
        };
        match step {
            Step::CreateClaim { address, .. } => claim(claim_name(*address)).await,
            Step::WriteClaim { name, .. } | Step::DeleteClaim { name, .. } => claim(name.clone()).await,
            Step::WriteService(write) => service(&write.key).await,
            Step::WriteConditions(write) => service(&write.key).await,
            Step::ConfirmGone(key) => service(key).await,
            Step::ConfirmNotHeld { claim: name, .. } => claim(name.clone()).await,
            Step::WritePool(write) => {
                let found = self.pools().get_opt(write.name.as_str()).await?;
                let gone = || Answer::NoPool(write.name.clone());
                Ok(Some(found.map_or_else(gone, |object| read_pool(&object, &write.name))))
            }
            Step::Report(_) => Ok(None),
        }
    }

    /// Events are for people: one that is lost is no reason to stop.
    async fn report(&self, subject: &Subject, report: &Report) {
        let reference = match subject {
            Subject::Service(key) => core::ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Service".to_owned()),
                namespace: Some(key.namespace.to_string()),
                name: Some(key.name.to_string()),
                uid: Some(report.uid.clone()),
                ..core::ObjectReference::default()
            },
            Subject::Pool(name) => core::ObjectReference {
                api_version: Some(format!("{}/v1alpha1", crate::api::GROUP)),
                kind: Some("IPAddressPool".to_owned()),
                name: Some(name.to_string()),
                uid: Some(report.uid.clone()),
                ..core::ObjectReference::default()
            },
            Subject::Claim(_) => return,
        };
        let event = Event {
            type_: if report.is_warning { EventType::Warning } else { EventType::Normal },
            reason: report.reason.to_owned(),
            // The API takes at most 1,024 bytes.
            note: Some(report.message.chars().take(1000).collect()),
            action: "Assign".to_owned(),
            secondary: None,
        };
        // A recorder of its own for each event: a shared one would join events of one reason and keep the text of the
        // first, and ours differ in their text.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        if let Err(error) = recorder.publish(&event, &reference).await {
            tracing::debug!(%subject, error = chain(&error), "event could not be written");
        }
    }

    fn claims(&self) -> Api<AddressClaim> {
        Api::all(self.client.clone())
    }

    fn pools(&self) -> Api<IPAddressPool> {
        Api::all(self.client.clone())
    }

    fn services(&self, key: &ServiceKey) -> Api<core::Service> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }
}

fn claim(address: IpAddr, tenure: &Tenure, resource_version: Option<&String>) -> AddressClaim {
    AddressClaim {
        metadata: ObjectMeta {
            name: Some(claim_name(address).to_string()),
            resource_version: resource_version.cloned(),
            // So that the API server takes a write that changes nothing else for a change (see `plan`).
            annotations: resource_version.map(|version| [(DECIDED_ON.to_owned(), version.clone())].into()),
            ..ObjectMeta::default()
        },
        spec: AddressClaimSpec {
            address: Address(address.to_string()),
            pool: tenure.pool.to_string(),
            holders: tenure.holders.iter().map(Into::into).collect(),
            released_at: tenure.released_at.map(Time),
            last_holder: tenure.last_holder.as_ref().map(Into::into),
            lingers_until: tenure.lingers_until.map(Time),
        },
        status: None,
    }
}

/// What the API server would say if it knew what we wanted to be sure of.
fn stale(message: &str) -> kube::Error {
    let status = kube::core::Status { code: 409, message: message.to_owned(), ..kube::core::Status::default() };
    kube::Error::Api(Box::new(status))
}

fn read_service(object: &core::Service, key: &ServiceKey) -> Answer {
    ServiceObject::read(object).map_or_else(|_| Answer::NoService(key.clone()), |read| Answer::Service(Box::new(read)))
}

fn read_pool(object: &IPAddressPool, name: &PoolName) -> Answer {
    PoolObject::read(object).map_or_else(|_| Answer::NoPool(name.clone()), |read| Answer::Pool(Box::new(read)))
}
