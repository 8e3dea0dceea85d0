//! Session affinity's memory, which packets fill: what must not be remembered any more is found by reading all of it, and
//! deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use crate::datapath::nft::decode;
use crate::datapath::nft::ids::Sticky;
use crate::datapath::nft::layout::{AFFINITY, table};
use crate::datapath::plan::Kept;
use crate::model::Family;
use crate::netlink::nf_tables::{Batch, Connection, ConnectionError, DumpedElement, Failures};

/// Entries may end by themselves between reading and deleting. With more than this many it is something else.
const MOST_ENDED: usize = 10_000;

/// Whose clients may remember what.
#[derive(Clone, Debug, Default)]
pub(super) struct Sweep {
    endpoints: BTreeMap<Sticky, BTreeSet<SocketAddr>>,
    /// Those that are not named remember nothing; else they are left alone.
    is_all: bool,
}

impl Sweep {
    /// Only this is remembered.
    pub(super) const fn all(endpoints: BTreeMap<Sticky, BTreeSet<SocketAddr>>) -> Self {
        Self { endpoints, is_all: true }
    }

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

pub(super) fn are_missing(failures: &Failures) -> bool {
    failures.0.iter().all(|failure| failure.errno == Errno::ENOENT)
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
