//! Elections against a store of one lease, with the clock stopped.

use std::sync::{Arc, Mutex, PoisonError};

use proptest::prelude::*;

use super::*;
use crate::runtime::shutdown::{ShutdownTrigger, shutdown};

const DURATION: Duration = Duration::from_secs(4);
const RENEW: Duration = Duration::from_secs(1);

/// The API server's part: one object, versions, and links that can be cut.
#[derive(Clone, Debug, Default)]
struct Store {
    lease: Arc<Mutex<Option<LeaseObject>>>,
    is_cut: Arc<Mutex<bool>>,
}

impl Store {
    fn reach(&self) -> Result<std::sync::MutexGuard<'_, Option<LeaseObject>>, LeaseError> {
        if *self.is_cut.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(LeaseError::Api("unreachable".into()));
        }
        Ok(self.lease.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another way to the same lease, which is cut by itself.
    fn another_link(&self) -> Self {
        Self { lease: Arc::clone(&self.lease), is_cut: Arc::default() }
    }

    fn cut(&self, is_cut: bool) {
        *self.is_cut.lock().unwrap() = is_cut;
    }

    fn holder(&self) -> String {
        let lease = self.lease.lock().unwrap();
        lease.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.clone()).unwrap_or_default()
    }
}

fn next_version(lease: &LeaseObject, present: Option<&LeaseObject>) -> LeaseObject {
    let version = present.and_then(|lease| lease.metadata.resource_version.as_ref()?.parse::<u64>().ok());
    let mut lease = lease.clone();
    lease.metadata.resource_version = Some((version.unwrap_or_default() + 1).to_string());
    lease
}

impl LeaseStore for Store {
    async fn get(&self, _: &str) -> Result<Option<LeaseObject>, LeaseError> {
        Ok(self.reach()?.clone())
    }

    async fn create(&self, lease: &LeaseObject) -> Result<LeaseObject, LeaseError> {
        let mut present = self.reach()?;
        if present.is_some() {
            return Err(LeaseError::Conflict);
        }
        Ok(present.insert(next_version(lease, None)).clone())
    }

    async fn replace(&self, lease: &LeaseObject) -> Result<LeaseObject, LeaseError> {
        let mut present = self.reach()?;
        let is_newest =
            present.as_ref().is_some_and(|p| p.metadata.resource_version == lease.metadata.resource_version);
        if !is_newest {
            return Err(LeaseError::Conflict);
        }
        let written = next_version(lease, present.as_ref());
        Ok(present.insert(written).clone())
    }
}

struct Replica {
    link: Store,
    leadership: Leadership,
    trigger: ShutdownTrigger,
    task: tokio::task::JoinHandle<()>,
}

fn replica(store: &Store, identity: &str) -> Replica {
    let link = store.another_link();
    let settings =
        LeaseSettings { name: "controller".into(), identity: identity.into(), duration: DURATION, renew_every: RENEW };
    let (election, leadership) = Election::new(link.clone(), settings);
    let (trigger, requested) = shutdown();
    Replica { link, leadership, trigger, task: tokio::spawn(election.run(requested)) }
}

/// Waits until the replica leads; gives how long that took.
async fn until_leading(replica: &Replica) -> Duration {
    let start = Instant::now();
    while !replica.leadership.is_current() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(start.elapsed() < Duration::from_secs(60), "never leads");
    }
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn the_first_leads_and_goes_on_leading() {
    let store = Store::default();
    let (first, second) = (replica(&store, "a"), replica(&store, "b"));
    until_leading(&first).await;
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(first.leadership.is_current() && !second.leadership.is_current());
    }
    assert_eq!(store.holder(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_from_the_dead_within_five_seconds_and_not_before_the_lease_ends() {
    let store = Store::default();
    let first = replica(&store, "a");
    until_leading(&first).await;
    let second = replica(&store, "b");
    tokio::time::sleep(Duration::from_secs(10)).await;
    first.task.abort();
    let took = until_leading(&second).await;
    assert!(took >= DURATION - RENEW && took < Duration::from_secs(5), "{took:?}");
    assert!(!first.leadership.is_current());
    let spec = store.lease.lock().unwrap().clone().unwrap().spec.unwrap();
    assert_eq!(spec.lease_transitions, Some(1));
}

#[tokio::test(start_paused = true)]
async fn who_shuts_down_gives_the_lease_back() {
    let store = Store::default();
    let first = replica(&store, "a");
    until_leading(&first).await;
    let second = replica(&store, "b");
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.trigger.request();
    first.task.await.unwrap();
    assert!(!first.leadership.is_current());
    assert!(until_leading(&second).await <= RENEW / 2);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_starts() {
    let store = Store::default();
    let first = replica(&store, "a");
    until_leading(&first).await;
    let second = replica(&store, "b");
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.link.cut(true);
    while !second.leadership.is_current() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!first.leadership.is_current());
    first.link.cut(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!first.leadership.is_current() && second.leadership.is_current());
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_api_ends_with_one_leader() {
    let store = Store::default();
    let (first, second) = (replica(&store, "a"), replica(&store, "b"));
    until_leading(&first).await;
    first.link.cut(true);
    second.link.cut(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!first.leadership.is_current() && !second.leadership.is_current());
    first.link.cut(false);
    second.link.cut(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(first.leadership.is_current() != second.leadership.is_current());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Links are cut and mended at random: at no moment do two lead.
    #[test]
    fn at_no_moment_do_two_lead(cuts in prop::collection::vec((0..3usize, any::<bool>(), 1..3000u64), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let store = Store::default();
            let replicas = ["a", "b", "c"].map(|name| replica(&store, name));
            for (which, is_cut, pause) in cuts {
                replicas[which].link.cut(is_cut);
                let end = Instant::now() + Duration::from_millis(pause);
                while Instant::now() < end {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let leaders = replicas.iter().filter(|replica| replica.leadership.is_current()).count();
                    assert!(leaders <= 1, "{leaders} lead");
                }
            }
        });
    }
}
