//! Forgets clients in a thread of its own: the kernel's memory is read as a whole for that, and programming does not wait.
//!
//! What was read is judged by the newest word, part by part as it is deleted, and nobody else writes meanwhile: an endpoint
//! that came back is not forgotten. A packet that chose an endpoint just before it went may be remembered a moment later: so
//! there are later looks. What is not done when the agent ends is found by the turn over everything with which it begins.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;

use super::memory::{Sweep, are_missing, delete, stale};
use crate::datapath::aside::{Aside, Shared, Tasks};
use crate::datapath::looks::Looks;
use crate::datapath::plan::{Belief, Kept, Transaction};
use crate::model::Family;
use crate::netlink::nf_tables::{Connection, ConnectionError};
use crate::runtime::telemetry::chain;

/// So many are deleted at once: a turn that comes just then waits for no more than that.
const BATCH: usize = 500;

/// The way to the thread, which ends when this goes.
#[derive(Debug)]
pub(super) struct Forgetter {
    aside: Aside<Jobs>,
    pen: Pen,
    port: u32,
}

/// Held by who writes to the kernel until the other knows what that means.
type Pen = Arc<Mutex<()>>;

/// Waits for the other to have written.
fn take(pen: &Pen) -> MutexGuard<'_, ()> {
    pen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a turn means for one table's memory.
enum Word<'a> {
    /// The table is another one, without any memory.
    Nothing,
    /// The turn was over everything: only this is remembered.
    Whole(Sweep),
    /// Entries changed.
    Change(&'a Kept),
}

#[derive(Debug, Default)]
struct Jobs(BTreeMap<Family, Job>);

/// What is to be forgotten in one table.
#[derive(Debug)]
struct Job {
    sweep: Arc<Sweep>,
    looks: Looks,
    /// Nobody knows that there is anything: a look that finds nothing is the last.
    may_be_in_vain: bool,
}

impl Forgetter {
    /// Starts the thread, in the network namespace of this one. It counts the clients that it forgets.
    pub(super) fn start(forgotten: Counter) -> Result<Self, ConnectionError> {
        let connection = Connection::open()?;
        let port = connection.port();
        let pen = Pen::default();
        let mut eraser = Eraser { connection, pen: Arc::clone(&pen), forgotten };
        let aside = Aside::start("forgetter", move |jobs: &Shared<Jobs>, due| {
            for (family, since) in due {
                eraser.look(jobs, family, since);
            }
        });
        Ok(Self { aside: aside.map_err(ConnectionError::Open)?, pen, port })
    }

    /// By which the kernel's events name its socket.
    pub(super) const fn port(&self) -> u32 {
        self.port
    }

    /// To be held from before a transaction until what it means is handed over.
    pub(super) fn pen(&self) -> MutexGuard<'_, ()> {
        take(&self.pen)
    }

    /// Whether all that was handed over is done.
    pub(super) fn is_idle(&self) -> bool {
        self.aside.ask(|jobs| jobs.0.is_empty())
    }

    /// Hands over what a turn means: all entries that it was over, where it `is_whole`, since others may have been at the
    /// memory, else those that changed. Never waits for the kernel.
    pub(super) fn hand_over(&self, belief: &Belief, transaction: &Transaction, is_whole: bool) {
        for family in Family::ALL {
            let change = transaction.tables.iter().find(|change| change.family == family);
            let word = match change {
                Some(change) if change.is_new => Word::Nothing,
                _ if is_whole => Word::Whole(Sweep::all(belief.kept(family))),
                Some(change) if !change.kept.endpoints.is_empty() => Word::Change(&change.kept),
                Some(_) | None => continue,
            };
            self.aside.tell(|jobs| jobs.add(family, word, Instant::now()));
        }
    }

    /// The tables are gone.
    pub(super) fn nothing_is_left(&self) {
        self.aside.tell(|jobs| jobs.0.clear());
    }
}

impl Tasks for Jobs {
    type Part = BTreeMap<Family, Instant>;

    fn due(&self) -> Option<Instant> {
        self.0.values().map(|job| job.looks.due()).min()
    }

    fn take(&mut self, now: Instant) -> Self::Part {
        let due = self.0.iter().filter(|(_, job)| job.looks.due() <= now);
        due.map(|(family, job)| (*family, job.looks.since())).collect()
    }
}

impl Jobs {
    fn add(&mut self, family: Family, word: Word<'_>, now: Instant) {
        let mut sweep = self.0.get(&family).map(|job| Arc::clone(&job.sweep)).unwrap_or_default();
        let (is_new, may_be_in_vain) = match word {
            Word::Nothing => return drop(self.0.remove(&family)),
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
            self.0.insert(family, Job { sweep, looks: Looks::begin(now), may_be_in_vain });
        } else if let Some(job) = self.0.get_mut(&family) {
            job.sweep = sweep;
        }
    }

    /// Plans the next look, unless there was another word meanwhile.
    fn looked_at(&mut self, family: Family, since: Instant, forgotten: usize) {
        let Some(job) = self.0.get_mut(&family).filter(|job| job.looks.since() == since) else { return };
        let is_done = job.may_be_in_vain && forgotten == 0;
        if is_done || !job.looks.made() {
            self.0.remove(&family);
        }
    }

    fn failed(&mut self, family: Family, now: Instant) {
        if let Some(job) = self.0.get_mut(&family) {
            job.looks.failed(now);
        }
    }
}

/// The newest word.
fn newest(jobs: &Shared<Jobs>, family: Family) -> Option<Arc<Sweep>> {
    if jobs.is_over() {
        return None;
    }
    jobs.with(|jobs| jobs.0.get(&family).map(|job| Arc::clone(&job.sweep)))
}

struct Eraser {
    connection: Connection,
    pen: Pen,
    forgotten: Counter,
}

impl Eraser {
    fn look(&mut self, jobs: &Shared<Jobs>, family: Family, since: Instant) {
        let start = Instant::now();
        match self.forget(jobs, family) {
            Ok(forgotten) => {
                self.forgotten.inc_by(u64::try_from(forgotten).unwrap_or(u64::MAX));
                jobs.with(|jobs| jobs.looked_at(family, since, forgotten));
                if forgotten > 0 {
                    let took = start.elapsed();
                    tracing::debug!(%family, forgotten, ?took, "forgot clients of endpoints that are gone");
                }
            }
            // The memory went with its table, and the next turn over everything makes a new one.
            Err(ConnectionError::Refused(failures)) if are_missing(&failures) => {
                jobs.with(|jobs| jobs.looked_at(family, since, 0));
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%family, error, "failed to delete endpoints from the memory of session affinity");
                jobs.with(|jobs| jobs.failed(family, Instant::now()));
            }
        }
    }

    /// Reads the memory, and deletes what it must not have.
    fn forget(&mut self, jobs: &Shared<Jobs>, family: Family) -> Result<usize, ConnectionError> {
        let Some(sweep) = newest(jobs, family) else { return Ok(0) };
        let found = stale(&mut self.connection, family, &sweep)?;
        let mut deleted = 0;
        for part in found.chunks(BATCH) {
            let _writing = take(&self.pen);
            let Some(newest) = newest(jobs, family) else { break };
            let keys = part.iter().filter(|element| newest.is_stale(family, element));
            let keys: Vec<Vec<u8>> = keys.map(|element| element.key.clone()).collect();
            deleted += delete(&mut self.connection, family, &keys)?;
        }
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::datapath::plan::Kept;

    fn less() -> Kept {
        Kept { is_less: true, ..Kept::default() }
    }

    #[test]
    fn each_word_begins_the_looks_anew() {
        let mut jobs = Jobs::default();
        let start = Instant::now();
        jobs.add(Family::V4, Word::Change(&less()), start);
        assert_eq!(jobs.take(start), [(Family::V4, start)].into());
        let later = start + Duration::from_millis(1);
        jobs.add(Family::V4, Word::Change(&less()), later);
        jobs.looked_at(Family::V4, start, 0);
        assert_eq!(jobs.due(), Some(later), "what was looked at was not this word");
        while jobs.due().is_some() {
            jobs.looked_at(Family::V4, later, 0);
        }
    }

    #[test]
    fn a_look_at_everything_that_finds_nothing_is_the_last() {
        let mut jobs = Jobs::default();
        let start = Instant::now();
        jobs.add(Family::V6, Word::Whole(Sweep::default()), start);
        jobs.looked_at(Family::V6, start, 0);
        assert!(jobs.0.is_empty());
    }

    #[test]
    fn nothing_is_left_to_do_in_a_new_table() {
        let mut jobs = Jobs::default();
        jobs.add(Family::V4, Word::Change(&less()), Instant::now());
        jobs.add(Family::V4, Word::Nothing, Instant::now());
        assert!(jobs.0.is_empty());
    }
}
