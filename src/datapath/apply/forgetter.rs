//! Forgets clients in a thread of its own: the kernel's memory is read as a whole for that, and programming does not wait.
//!
//! What was read is judged by the newest word, part by part as it is deleted, and nobody else writes meanwhile: an endpoint
//! that came back is not forgotten. A packet that chose an endpoint just before it went may be remembered a moment later: so
//! there are later looks. What is not done when the agent ends is found by the turn over everything with which it begins.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::memory::{Sweep, Word, are_missing, delete, stale};
use crate::datapath::metrics::Metrics;
use crate::model::Family;
use crate::netlink::nf_tables::{Connection, ConnectionError};
use crate::runtime::telemetry::chain;

/// When the memory is looked at, counted from the last word.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(20), Duration::from_secs(1)];
/// After an error.
const RETRY: Duration = Duration::from_secs(1);
/// So many are deleted at once: a turn that comes just then waits for no more than that.
const BATCH: usize = 500;

/// The way to the thread, which ends when this goes.
#[derive(Debug)]
pub(super) struct Forgetter {
    shared: Arc<Shared>,
    port: u32,
}

/// Held by who writes to the kernel until the other knows what that means.
pub(super) type Pen = Arc<Mutex<()>>;

/// Waits for the other to have written.
pub(super) fn take(pen: &Pen) -> MutexGuard<'_, ()> {
    pen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    pen: Pen,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: BTreeMap<Family, Job>,
    is_over: bool,
}

/// What is to be forgotten in one table.
#[derive(Debug)]
struct Job {
    sweep: Arc<Sweep>,
    since: Instant,
    looks: usize,
    due: Instant,
    /// Nobody knows that there is anything: a look that finds nothing is the last.
    may_be_in_vain: bool,
}

impl Forgetter {
    /// Starts the thread, in the network namespace of this one.
    pub(super) fn start(metrics: Metrics) -> Result<Self, ConnectionError> {
        let connection = Connection::open()?;
        let port = connection.port();
        let shared = Arc::<Shared>::default();
        let of_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("forgetter".to_owned())
            .spawn(move || run(&of_thread, connection, &metrics))
            .map_err(ConnectionError::Open)?;
        Ok(Self { shared, port })
    }

    /// By which the kernel's events name its socket.
    pub(super) const fn port(&self) -> u32 {
        self.port
    }

    /// To be held from before a transaction until what it means is handed over.
    pub(super) fn pen(&self) -> Pen {
        Arc::clone(&self.shared.pen)
    }

    /// Whether all that was handed over is done.
    pub(super) fn is_idle(&self) -> bool {
        self.shared.waiting().jobs.is_empty()
    }

    /// Hands over the word of a turn on one table. Never waits for the kernel.
    pub(super) fn hand_over(&self, family: Family, word: Word<'_>) {
        self.shared.waiting().take(family, word, Instant::now());
        self.shared.wake.notify_one();
    }
}

impl Drop for Forgetter {
    fn drop(&mut self) {
        self.shared.waiting().is_over = true;
        self.shared.wake.notify_one();
    }
}

impl Waiting {
    fn take(&mut self, family: Family, word: Word<'_>, now: Instant) {
        let mut sweep = self.jobs.get(&family).map(|job| Arc::clone(&job.sweep)).unwrap_or_default();
        let (is_new, may_be_in_vain) = match word {
            Word::Nothing => return drop(self.jobs.remove(&family)),
            Word::Whole(whole) => {
                sweep = Arc::new(whole);
                (true, true)
            }
            Word::Change(kept) => {
                Arc::make_mut(&mut sweep).follow(kept);
                (kept.is_less, false)
            }
        };
        if is_new {
            self.jobs.insert(family, Job { sweep, since: now, looks: 0, due: now, may_be_in_vain });
        } else if let Some(job) = self.jobs.get_mut(&family) {
            job.sweep = sweep;
        }
    }

    /// Plans the next look, unless there was another word meanwhile.
    fn looked_at(&mut self, family: Family, since: Instant, forgotten: usize) {
        let Some(job) = self.jobs.get_mut(&family).filter(|job| job.since == since) else { return };
        job.looks += 1;
        let is_done = job.may_be_in_vain && forgotten == 0;
        match LOOKS.get(job.looks).filter(|_| !is_done) {
            Some(after) => job.due = job.since + *after,
            None => drop(self.jobs.remove(&family)),
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is due; nothing when it is over.
    fn next(&self, not_before: Instant) -> Option<(Family, Instant)> {
        let mut waiting = self.waiting();
        loop {
            if waiting.is_over {
                return None;
            }
            let now = Instant::now();
            let first = waiting.jobs.iter().min_by_key(|(_, job)| job.due);
            match first.map(|(family, job)| (*family, job.since, job.due.max(not_before))) {
                Some((family, since, due)) if due <= now => return Some((family, since)),
                Some((_, _, due)) => {
                    let (guard, _) = self.wake.wait_timeout(waiting, due - now).unwrap_or_else(PoisonError::into_inner);
                    waiting = guard;
                }
                None => waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// The newest word.
    fn sweep(&self, family: Family) -> Option<Arc<Sweep>> {
        let waiting = self.waiting();
        waiting.jobs.get(&family).filter(|_| !waiting.is_over).map(|job| Arc::clone(&job.sweep))
    }

    /// Reads the memory, and deletes what it must not have.
    fn forget(&self, connection: &mut Connection, family: Family) -> Result<usize, ConnectionError> {
        let Some(sweep) = self.sweep(family) else { return Ok(0) };
        let found = stale(connection, family, &sweep)?;
        let mut deleted = 0;
        for part in found.chunks(BATCH) {
            let _writing = take(&self.pen);
            let Some(newest) = self.sweep(family) else { break };
            let keys = part.iter().filter(|element| newest.is_stale(family, element));
            deleted += delete(connection, family, &keys.map(|element| element.key.clone()).collect::<Vec<_>>())?;
        }
        Ok(deleted)
    }
}

fn run(shared: &Shared, mut connection: Connection, metrics: &Metrics) {
    let mut not_before = Instant::now();
    while let Some((family, since)) = shared.next(not_before) {
        let start = Instant::now();
        match shared.forget(&mut connection, family) {
            Ok(forgotten) => {
                metrics.forgotten(forgotten);
                shared.waiting().looked_at(family, since, forgotten);
                if forgotten > 0 {
                    let took = start.elapsed();
                    tracing::debug!(%family, forgotten, ?took, "forgot clients of endpoints that are gone");
                }
            }
            // The memory went with its table, and the next turn over everything makes a new one.
            Err(ConnectionError::Refused(failures)) if are_missing(&failures) => {
                shared.waiting().looked_at(family, since, 0);
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%family, error, "failed to delete endpoints from the memory of session affinity");
                if let Some(job) = shared.waiting().jobs.get_mut(&family) {
                    job.due = Instant::now() + RETRY;
                }
            }
        }
        // With a memory so large that looking takes long, half of the time is left to others.
        not_before = Instant::now() + start.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::plan::Kept;

    fn less() -> Kept {
        Kept { is_less: true, ..Kept::default() }
    }

    #[test]
    fn there_are_later_looks_counted_from_the_last_word() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        waiting.take(Family::V4, Word::Change(&less()), start);
        assert_eq!(waiting.jobs[&Family::V4].due, start);
        waiting.looked_at(Family::V4, start, 3);
        assert_eq!(waiting.jobs[&Family::V4].due, start + LOOKS[1]);
        let later = start + LOOKS[1];
        waiting.take(Family::V4, Word::Change(&less()), later);
        waiting.looked_at(Family::V4, start, 0);
        assert_eq!(waiting.jobs[&Family::V4].due, later, "what was looked at was not this word");
        for _ in LOOKS {
            waiting.looked_at(Family::V4, later, 0);
        }
        assert!(waiting.jobs.is_empty());
    }

    #[test]
    fn a_look_at_everything_that_finds_nothing_is_the_last() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        waiting.take(Family::V6, Word::Whole(Sweep::default()), start);
        waiting.looked_at(Family::V6, start, 0);
        assert!(waiting.jobs.is_empty());
    }

    #[test]
    fn nothing_is_left_to_do_in_a_new_table() {
        let mut waiting = Waiting::default();
        waiting.take(Family::V4, Word::Change(&less()), Instant::now());
        waiting.take(Family::V4, Word::Nothing, Instant::now());
        assert!(waiting.jobs.is_empty());
    }
}
