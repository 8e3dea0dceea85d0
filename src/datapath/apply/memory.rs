//! Session affinity's memory, which packets fill: deletes what must not be remembered any more, and nothing else.
//!
//! An endpoint that goes is deleted from the memory right after the transaction that takes it. A packet that chose it just
//! before may be remembered a moment later: so the same is done once more in the next turn. The memory is read for that,
//! all of it; without a change of this kind it is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use crate::datapath::nft::decode;
use crate::datapath::nft::ids::Sticky;
use crate::datapath::nft::layout::{AFFINITY, table};
use crate::datapath::plan::{Belief, Transaction};
use crate::model::Family;
use crate::netlink::nf_tables::{Batch, Connection, ConnectionError, Failures};

/// Entries may end by themselves between reading and deleting. With more than this many it is something else.
const MOST_ENDED: usize = 10_000;

/// What is left to be done again.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    again: BTreeMap<Family, Sweep>,
}

/// Whose clients may remember what.
#[derive(Clone, Debug, Default)]
struct Sweep {
    endpoints: BTreeMap<Sticky, BTreeSet<SocketAddr>>,
    /// Those that are not named remember nothing; else they are left alone.
    is_all: bool,
}

impl Sweep {
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
    /// Whether there is something to be done again though nothing changes.
    pub(super) fn is_pending(&self) -> bool {
        !self.again.is_empty()
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
                let (kept, is_less) = (&change.kept.endpoints, change.kept.is_less);
                for (whose, endpoints) in kept {
                    if is_less || sweep.is_all || sweep.endpoints.contains_key(whose) {
                        sweep.endpoints.insert(*whose, endpoints.clone());
                    }
                }
                if is_less {
                    next.endpoints.clone_from(kept);
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

fn are_missing(failures: &Failures) -> bool {
    failures.0.iter().all(|failure| failure.errno == Errno::ENOENT)
}

/// Reads the memory, and deletes what it must not have.
fn forget(connection: &mut Connection, family: Family, sweep: &Sweep) -> Result<usize, ConnectionError> {
    let dumped = connection.elements(table(family), AFFINITY)?;
    let is_stale = |element: &_| {
        // What nobody understands leads nowhere that is wanted.
        decode::remembered(element, family)
            .is_none_or(|(whose, _client, address, port)| !sweep.keeps(whose, address, port))
    };
    let keys: Vec<Vec<u8>> =
        dumped.into_iter().filter_map(|element| is_stale(&element).then_some(element.key)).collect();
    let mut parts = vec![&keys[..]];
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
