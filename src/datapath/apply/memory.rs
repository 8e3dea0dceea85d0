//! Session affinity's memory, which packets fill: deletes what must not be remembered any more, and nothing else.
//!
//! An endpoint that goes is deleted from the memory right after the transaction that takes it. A packet that chose it just
//! before may be remembered a moment later: so the same is done once more. The memory is read for that, all of it; without
//! a change of this kind it is left alone. In the agent a thread does it ([`Forgetter`]), else the turn itself and the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use super::forgetter::{Forgetter, Pen};
use crate::datapath::nft::decode;
use crate::datapath::nft::ids::Sticky;
use crate::datapath::nft::layout::{AFFINITY, table};
use crate::datapath::plan::{Belief, Kept, Transaction};
use crate::model::Family;
use crate::netlink::nf_tables::{Batch, Connection, ConnectionError, DumpedElement, Failures};

/// Entries may end by themselves between reading and deleting. With more than this many it is something else.
const MOST_ENDED: usize = 10_000;

/// What is left to be done again.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    again: BTreeMap<Family, Sweep>,
    /// Who does it instead, if anybody.
    aside: Option<Forgetter>,
}

/// What a turn means for one table's memory.
pub(super) enum Word<'a> {
    /// The table is another one, without any memory.
    Nothing,
    /// The turn was over everything: only this is remembered.
    Whole(Sweep),
    /// Entries changed.
    Change(&'a Kept),
}

/// Whose clients may remember what.
#[derive(Clone, Debug, Default)]
pub(super) struct Sweep {
    endpoints: BTreeMap<Sticky, BTreeSet<SocketAddr>>,
    /// Those that are not named remember nothing; else they are left alone.
    is_all: bool,
}

impl Sweep {
    /// Takes in a change. One by which nothing goes matters only to those that are named already.
    pub(super) fn follow(&mut self, kept: &Kept) {
        for (whose, endpoints) in &kept.endpoints {
            if kept.is_less || self.is_all || self.endpoints.contains_key(whose) {
                self.endpoints.insert(*whose, endpoints.clone());
            }
        }
    }

    /// Whether something must not be remembered. What nobody understands leads nowhere that is wanted.
    pub(super) fn is_stale(&self, family: Family, element: &DumpedElement) -> bool {
        decode::remembered(element, family)
            .is_none_or(|(whose, _client, address, port)| !self.keeps(whose, address, port))
    }

    fn keeps(&self, whose: Sticky, address: IpAddr, port: Option<u16>) -> bool {
        let Some(endpoints) = self.endpoints.get(&whose) else { return !self.is_all };
        match port {
            Some(port) => endpoints.contains(&SocketAddr::new(address, port)),
            // Those that are remembered without one all have the same.
            None => {
                let range = SocketAddr::new(address, 0)..=SocketAddr::new(address, u16::MAX);
                endpoints.range(range).next().is_some()
            }
        }
    }
}

impl Forgetting {
    /// Leaves it to a thread from now on.
    pub(super) fn leave_to(&mut self, forgetter: Forgetter) {
        self.aside = Some(forgetter);
    }

    /// The thread, if it is left to one.
    pub(super) const fn aside(&self) -> Option<&Forgetter> {
        self.aside.as_ref()
    }

    /// To be held from before a transaction until [`Self::run`] has been told of it, where there is a thread.
    pub(super) fn pen(&self) -> Option<Pen> {
        self.aside.as_ref().map(Forgetter::pen)
    }

    /// The tables are gone.
    pub(super) fn nothing_is_left(&mut self) {
        self.again.clear();
        for family in Family::ALL {
            self.aside.iter().for_each(|forgetter| forgetter.hand_over(family, Word::Nothing));
        }
    }

    /// Whether there is something to be done again though nothing changes.
    pub(super) fn is_pending(&self) -> bool {
        !self.again.is_empty() || self.aside.as_ref().is_some_and(|forgetter| !forgetter.is_idle())
    }

    /// After a transaction, or without one: deletes, and tells how many clients were forgotten. `is_whole`: the transaction
    /// was over all entries, and others may have been at the memory.
    pub(super) fn run(
        &mut self,
        connection: &mut Connection,
        belief: &Belief,
        transaction: &Transaction,
        is_whole: bool,
    ) -> usize {
        if let Some(forgetter) = &self.aside {
            hand_over(forgetter, belief, transaction, is_whole);
            return 0;
        }
        let mut forgotten = 0;
        for family in Family::ALL {
            let change = transaction.tables.iter().find(|change| change.family == family);
            let again = self.again.remove(&family);
            if change.is_some_and(|change| change.is_new) {
                // What was remembered went with the table.
                continue;
            }
            let mut sweep = again.clone().unwrap_or_default();
            let mut next = Sweep::default();
            if is_whole {
                next = Sweep { endpoints: belief.kept(family), is_all: true };
                sweep = next.clone();
            } else if let Some(change) = change {
                sweep.follow(&change.kept);
                if change.kept.is_less {
                    next.endpoints.clone_from(&change.kept.endpoints);
                }
            }
            if sweep.endpoints.is_empty() && !sweep.is_all {
                continue;
            }
            match forget(connection, family, &sweep) {
                Ok(count) => {
                    forgotten += count;
                    let is_less = change.is_some_and(|change| change.kept.is_less);
                    if is_less || (is_whole && count > 0) {
                        self.again.insert(family, next);
                    }
                }
                // The memory went with its table, and the next turn over everything makes a new one.
                Err(ConnectionError::Refused(failures)) if are_missing(&failures) => {}
                Err(error) => {
                    tracing::warn!(%family, %error, "failed to delete endpoints from the memory of session affinity");
                    self.again.insert(family, sweep);
                }
            }
        }
        forgotten
    }
}

pub(super) fn are_missing(failures: &Failures) -> bool {
    failures.0.iter().all(|failure| failure.errno == Errno::ENOENT)
}

/// What a turn over one table means for a thread that forgets.
fn hand_over(forgetter: &Forgetter, belief: &Belief, transaction: &Transaction, is_whole: bool) {
    for family in Family::ALL {
        let change = transaction.tables.iter().find(|change| change.family == family);
        let word = match change {
            Some(change) if change.is_new => Word::Nothing,
            _ if is_whole => Word::Whole(Sweep { endpoints: belief.kept(family), is_all: true }),
            Some(change) if !change.kept.endpoints.is_empty() => Word::Change(&change.kept),
            Some(_) | None => continue,
        };
        forgetter.hand_over(family, word);
    }
}

/// Reads the memory, and deletes what it must not have.
fn forget(connection: &mut Connection, family: Family, sweep: &Sweep) -> Result<usize, ConnectionError> {
    let found = stale(connection, family, sweep)?;
    let keys: Vec<Vec<u8>> = found.into_iter().map(|element| element.key).collect();
    delete(connection, family, &keys)
}

/// What the memory must not have.
pub(super) fn stale(
    connection: &mut Connection,
    family: Family,
    sweep: &Sweep,
) -> Result<Vec<DumpedElement>, ConnectionError> {
    let mut found = Vec::new();
    connection.walk(table(family), AFFINITY, |element| {
        if sweep.is_stale(family, &element) {
            found.push(element);
        }
    })?;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Deletes by keys, and tells how many were still there.
pub(super) fn delete(connection: &mut Connection, family: Family, keys: &[Vec<u8>]) -> Result<usize, ConnectionError> {
    let mut parts = vec![keys];
    let mut deleted = 0;
    let mut ended = 0;
    while let Some(part) = parts.pop() {
        let mut batch = Batch::new();
        batch.delete_elements(table(family), AFFINITY, part, |key, writer| writer.write(|element| element.key(key)));
        match (connection.commit(&batch), part) {
            (Ok(()), part) => deleted += part.len(),
            (Err(ConnectionError::Refused(failures)), part) if ended < MOST_ENDED && are_missing(&failures) => {
                if let [_, _, ..] = part {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                } else {
                    ended += 1;
                }
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(deleted)
}
