//! Leader election by a Lease of `coordination.k8s.io`.
//!
//! # Guarantees
//!
//! * Clocks of two machines are never compared. A standby takes over when *it* has seen no new renewal for the whole
//!   duration; what the times in the object say is for people.
//! * A leader trusts its lease for four fifths of the duration, counted from before it asked for the renewal, so it has
//!   stopped before anybody else can start.
//! * Whoever shuts down in order gives the lease back, and the next one has it at its next look.
//!
//! # Assumptions
//!
//! A process that is stopped in the middle of a write and wakes up later can still complete that write. What must hold
//! even then cannot rest on the lease; the controller rests it on names of claims and on resource versions.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as LeaseObject, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use super::shutdown::Shutdown;
use super::telemetry::chain;

/// How the election runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSettings {
    /// The Lease's name.
    pub name: String,
    /// Who we are: unique among the replicas.
    pub identity: String,
    /// How long a lease holds without renewal; whole seconds.
    pub duration: Duration,
    /// How often the leader renews it. Standbys look four times as often, so that they take over in time.
    pub renew_every: Duration,
}

/// Why the API refused.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// Somebody else was faster.
    #[error("the lease has changed meanwhile")]
    Conflict,
    /// Anything else.
    #[error("the API server did not answer as hoped")]
    Api(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where the Lease is kept.
pub trait LeaseStore: Send + Sync {
    /// The Lease, if there is one.
    fn get(&self, name: &str) -> impl Future<Output = Result<Option<LeaseObject>, LeaseError>> + Send;
    /// Creates it.
    fn create(&self, lease: &LeaseObject) -> impl Future<Output = Result<LeaseObject, LeaseError>> + Send;
    /// Replaces it, if it still has the resource version given.
    fn replace(&self, lease: &LeaseObject) -> impl Future<Output = Result<LeaseObject, LeaseError>> + Send;
}

impl LeaseStore for Api<LeaseObject> {
    async fn get(&self, name: &str) -> Result<Option<LeaseObject>, LeaseError> {
        self.get_opt(name).await.map_err(api_error)
    }

    async fn create(&self, lease: &LeaseObject) -> Result<LeaseObject, LeaseError> {
        Self::create(self, &PostParams::default(), lease).await.map_err(api_error)
    }

    async fn replace(&self, lease: &LeaseObject) -> Result<LeaseObject, LeaseError> {
        let name = lease.metadata.name.as_deref().unwrap_or_default();
        Self::replace(self, name, &PostParams::default(), lease).await.map_err(api_error)
    }
}

fn api_error(error: kube::Error) -> LeaseError {
    let is_conflict = matches!(&error, kube::Error::Api(status) if status.code == 409);
    if is_conflict { LeaseError::Conflict } else { LeaseError::Api(Box::new(error)) }
}

/// Says whether this process leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// A leadership that never ends, for tests and for replicas that are alone by design.
    pub fn forever() -> Self {
        let (sender, receiver) = watch::channel(Some(Instant::now() + Duration::from_secs(30 * 365 * 86_400)));
        // The receiver keeps the last value when the sender is gone.
        drop(sender);
        Self(receiver)
    }

    /// Whether writes are allowed at this moment.
    pub fn is_current(&self) -> bool {
        self.remaining().is_some()
    }

    /// How long writes are allowed from now on, if at all.
    pub fn remaining(&self) -> Option<Duration> {
        self.0.borrow().and_then(|until| until.checked_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    /// Resolves when the state changes: gained, renewed, lost. Gives false once the election is over. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

/// The election of one process.
#[derive(Debug)]
pub struct Election<S> {
    store: S,
    settings: LeaseSettings,
    leads_until: watch::Sender<Option<Instant>>,
    seen: Option<Sighting>,
}

/// What was seen of another's lease, and when by our own clock.
#[derive(Debug)]
struct Sighting {
    holder: String,
    renewed: Option<Timestamp>,
    version: Option<String>,
    at: Instant,
}

impl<S: LeaseStore> Election<S> {
    /// Enters the election; nothing happens before [`Election::run`].
    pub fn new(store: S, settings: LeaseSettings) -> (Self, Leadership) {
        let (leads_until, leadership) = watch::channel(None);
        (Self { store, settings, leads_until, seen: None }, Leadership(leadership))
    }

    /// Stands for election until shutdown; then gives the lease back if it is ours.
    ///
    /// Shutdown should be requested here only after the work that the lease guards has ended.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        loop {
            let pause = match self.step().await {
                Ok(()) => self.pause(),
                Err(error) => {
                    tracing::warn!(
                        lease = self.settings.name,
                        error = chain(&error),
                        "lease could not be looked after"
                    );
                    self.settings.renew_every / 4
                }
            };
            tokio::select! {
                biased;
                () = shutdown.requested() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.release().await;
    }

    fn pause(&self) -> Duration {
        let is_ours = self.leads_until.borrow().is_some();
        if is_ours { self.settings.renew_every } else { self.settings.renew_every / 4 }
    }

    /// One look at the lease: renews it, takes it, or lets the holder have it.
    async fn step(&mut self) -> Result<(), LeaseError> {
        let asked = Instant::now();
        if self.leads_until.borrow().is_some_and(|until| until <= asked) {
            self.lost("it ran out");
        }
        // An answer that comes after the lease has run out is of no use, and waiting for it would delay the next try.
        let look = tokio::time::timeout(self.settings.duration / 2, self.look(asked));
        match look.await {
            Ok(result) => result,
            Err(elapsed) => Err(LeaseError::Api(Box::new(elapsed))),
        }
    }

    async fn look(&mut self, asked: Instant) -> Result<(), LeaseError> {
        let Some(lease) = self.store.get(&self.settings.name).await? else {
            let written = self.store.create(&self.lease(None)).await;
            return self.taken(written.map(drop), asked);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder != self.settings.identity && !holder.is_empty() && !self.has_run_out(&lease, &spec, holder, asked) {
            if self.leads_until.borrow().is_some() {
                self.lost("somebody else has it");
            }
            return Ok(());
        }
        let written = self.store.replace(&self.lease(Some(lease))).await;
        self.taken(written.map(drop), asked)
    }

    /// Whether we have watched another's lease for its whole duration without seeing it renewed.
    fn has_run_out(&mut self, lease: &LeaseObject, spec: &LeaseSpec, holder: String, now: Instant) -> bool {
        let renewed = spec.renew_time.as_ref().map(|time| time.0);
        let version = lease.metadata.resource_version.clone();
        let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = duration.map_or(self.settings.duration, Duration::from_secs);
        match &self.seen {
            Some(seen) if seen.holder == holder && seen.renewed == renewed && seen.version == version => {
                now.saturating_duration_since(seen.at) >= duration
            }
            Some(_) | None => {
                self.seen = Some(Sighting { holder, renewed, version, at: now });
                false
            }
        }
    }

    fn taken(&mut self, written: Result<(), LeaseError>, asked: Instant) -> Result<(), LeaseError> {
        match written {
            Ok(()) => {
                let until = asked + self.settings.duration * 4 / 5;
                let was_ours = self.leads_until.send_replace(Some(until)).is_some();
                if !was_ours {
                    tracing::info!(lease = self.settings.name, identity = self.settings.identity, "leading");
                }
                self.seen = None;
                Ok(())
            }
            Err(LeaseError::Conflict) => {
                // Whoever was faster will be seen at the next look.
                if self.leads_until.borrow().is_some() {
                    self.lost("somebody else wrote it");
                }
                Ok(())
            }
            Err(error @ LeaseError::Api(_)) => Err(error),
        }
    }

    fn lost(&self, reason: &str) {
        self.leads_until.send_replace(None);
        tracing::warn!(lease = self.settings.name, reason, "leading no more");
    }

    /// The lease as ours, made from what was there.
    fn lease(&self, present: Option<LeaseObject>) -> LeaseObject {
        let now = MicroTime(Timestamp::now());
        let mut lease = present.unwrap_or_else(|| LeaseObject {
            metadata: ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.settings.identity.as_str()) {
            spec.holder_identity = Some(self.settings.identity.clone());
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions =
                Some(spec.lease_transitions.map_or(0, |transitions| transitions.saturating_add(1)));
        }
        spec.lease_duration_seconds = i32::try_from(self.settings.duration.as_secs()).ok();
        spec.renew_time = Some(now);
        lease
    }

    /// Gives the lease back, if it is ours.
    async fn release(&mut self) {
        if self.leads_until.send_replace(None).is_none() {
            return;
        }
        let given_back = tokio::time::timeout(self.settings.duration, async {
            let Some(mut lease) = self.store.get(&self.settings.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(self.settings.identity.as_str()) {
                spec.holder_identity = Some(String::new());
                self.store.replace(&lease).await?;
            }
            Ok::<(), LeaseError>(())
        });
        match given_back.await {
            Ok(Ok(())) => tracing::info!(lease = self.settings.name, "lease given back"),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "lease could not be given back, it will run out"),
            Err(_elapsed) => tracing::warn!("lease could not be given back in time, it will run out"),
        }
    }
}

#[cfg(test)]
mod tests;
