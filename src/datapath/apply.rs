//! Programs the kernel: one transaction per turn, the whole table after a failure, and without an entry that it refuses.

mod forgetter;
mod isolate;
mod memory;
mod programmed;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use thiserror::Error;
use tokio::time::Instant;

use self::forgetter::Forgetter;
use self::programmed::Programmed;
use self::report::removed_frontends;
pub use self::report::{Quarantine, Report};
use crate::datapath::entry::{EntryKey, ForwardingEntry, NodeForwarding};
use crate::datapath::nft::ids::Exhausted;
use crate::datapath::nft::layout::{TABLE_NAME, table};
use crate::datapath::nft::options::Options;
use crate::datapath::nft::{read, write};
use crate::datapath::plan::{Belief, Scope, Transaction};
use crate::datapath::repairs::Renewals;
use crate::model::Family;
use crate::model::programmed::AddressSet;
use crate::netlink::nf_tables::{Connection, ConnectionError, Listener};

/// Why the kernel is not known to have what it should.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// There is no way to the kernel.
    #[error("failed to reach nf_tables")]
    Connect(#[source] ConnectionError),
    /// The kernel refuses even the table without any entry: too old, say, or without a module.
    #[error("failed to program the empty table")]
    Structure(#[source] ConnectionError),
    /// The kernel refuses the entries together, and each half of them by itself not.
    #[error("failed to program {entries} entries, and found none that is to blame")]
    Entries {
        /// How many.
        entries: usize,
        /// What the kernel said.
        source: ConnectionError,
    },
    /// Our tables may still be there.
    #[error("failed to delete our nf_tables tables")]
    Cleanup(#[source] ConnectionError),
}

/// Holds what is in the kernel to what it should be, in the network namespace that it was opened in.
///
/// Its functions block for as long as the kernel takes, up to some 0.1 s for 50,000 elements: call them outside the
/// runtime's own threads.
#[derive(Debug)]
pub struct Programmer {
    connection: Connection,
    options: Options,
    belief: Belief,
    quarantined: BTreeMap<EntryKey, Quarantine>,
    renewals: Renewals,
    programmed: Programmed,
    forgetter: Forgetter,
}

impl Programmer {
    /// Opens the way to the kernel, and changes nothing there.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Connect`].
    pub fn new() -> Result<Self, ApplyError> {
        Self::counting(Counter::default())
    }

    /// As [`Self::new`]; counts the clients that do not keep their endpoint, since it went, or since its Service ended
    /// session affinity or changed its timeout. A thread forgets them: no turn waits for that.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Connect`].
    pub fn counting(forgotten: Counter) -> Result<Self, ApplyError> {
        Ok(Self {
            connection: Connection::open().map_err(ApplyError::Connect)?,
            options: Options::default(),
            belief: Belief::default(),
            quarantined: BTreeMap::new(),
            renewals: Renewals::default(),
            programmed: Programmed::default(),
            forgetter: Forgetter::start(forgotten).map_err(ApplyError::Connect)?,
        })
    }

    /// Makes the table with other rules: one that has not these is made anew.
    #[must_use]
    pub const fn with_options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// A listener to what others do to our tables. Our own changes are not heard.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Connect`].
    pub fn listen(&mut self) -> Result<Listener, ApplyError> {
        let ports = [self.connection.port(), self.forgetter.port()];
        let listener = Listener::open(TABLE_NAME, &ports).map_err(ApplyError::Connect)?;
        self.connection.silence(listener.silencer());
        Ok(listener)
    }

    /// Programs what changed. With [`Scope::All`] the kernel is read first: what a former process left is taken over, and
    /// what others did to our elements meanwhile is undone.
    ///
    /// # Errors
    ///
    /// When the kernel takes nothing. The next turn is over everything, whatever its scope.
    pub fn apply(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        scope: &Scope,
        node: &NodeForwarding,
    ) -> Result<Report, ApplyError> {
        match scope.keys() {
            None => self.quarantined.clear(),
            Some(keys) => self.quarantined.retain(|key, _| entries.contains_key(key) && !keys.contains(key)),
        }
        self.bring(entries, scope, node)
    }

    /// As [`Self::apply`] over everything, after others were at our tables: what the kernel refused before is not tried
    /// again, save the entries that changed.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`].
    pub fn repair(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        changed: &BTreeSet<EntryKey>,
        node: &NodeForwarding,
    ) -> Result<Report, ApplyError> {
        self.quarantined.retain(|key, _| entries.contains_key(key) && !changed.contains(key));
        self.bring(entries, &Scope::All, node)
    }

    fn bring(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        scope: &Scope,
        node: &NodeForwarding,
    ) -> Result<Report, ApplyError> {
        let scope = if self.belief.is_nothing() { &Scope::All } else { scope };
        if *scope == Scope::All {
            self.observe(entries);
        }
        let is_whole = self.belief.is_nothing();
        let error = match self.attempt(entries, scope, node) {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        if let Some(keys) = scope.keys()
            && !self.belief.is_nothing()
        {
            // The kernel is as before this turn: the rest of it, or what is found there, may do.
            if self.isolate_among(entries, keys, node)
                && let Ok(report) = self.attempt(entries, scope, node)
            {
                return Ok(report);
            }
            tracing::warn!(%error, "failed to program a change, looking at everything");
            self.observe(entries);
            if let Ok(report) = self.attempt(entries, &Scope::All, node) {
                return Ok(report);
            }
        }
        tracing::warn!(%error, is_whole, "failed to program, rebuilding the whole table");
        self.belief.forget();
        if !is_whole && let Ok(report) = self.attempt(entries, &Scope::All, node) {
            return Ok(Report { is_rebuilt: true, ..report });
        }
        self.isolate(entries, node)?;
        let report = self
            .attempt(entries, &Scope::All, node)
            .map_err(|source| ApplyError::Entries { entries: entries.len(), source })?;
        Ok(Report { is_rebuilt: true, ..report })
    }

    /// Gives back memory to spare, after a turn over everything.
    pub fn pack(&mut self) {
        self.belief.pack();
        self.programmed.pack();
    }

    /// How long until the table may be made anew for those that go without a number, if that would help them.
    pub fn renewal_pause(&self) -> Option<Duration> {
        self.renewals.pause(Instant::now())
    }

    /// Whether that time has come: those that go without are to be tried again.
    pub fn take_renewal(&mut self) -> bool {
        self.renewals.take_due(Instant::now())
    }

    /// Whether clients are still to be forgotten.
    pub fn is_unsettled(&self) -> bool {
        !self.forgetter.is_idle()
    }

    /// Addresses other than cluster IPs that clients may dial now: they are in the kernel, as far as the last transaction
    /// that it took.
    pub const fn external_addresses(&self) -> &AddressSet {
        self.programmed.addresses()
    }

    /// Of which families our tables are there, whatever is in them.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Cleanup`].
    pub fn tables(&mut self) -> Result<Vec<Family>, ApplyError> {
        let mut there = Vec::new();
        for family in Family::ALL {
            if self.connection.table(table(family)).map_err(ApplyError::Cleanup)?.is_some() {
                there.push(family);
            }
        }
        Ok(there)
    }

    /// Deletes our tables, as far as they are there, and tells which were.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Cleanup`].
    pub fn cleanup(&mut self) -> Result<Vec<Family>, ApplyError> {
        self.belief.forget();
        let there = self.tables()?;
        let _writing = self.forgetter.pen();
        self.connection.commit(&write::cleanup_batch(&there)).map_err(ApplyError::Cleanup)?;
        self.forgetter.nothing_is_left();
        self.programmed = Programmed::default();
        Ok(there)
    }

    /// Believes what is in the kernel, where it has our layout. Anything that is in the way of that only means that the
    /// table is replaced.
    fn observe(&mut self, entries: &BTreeMap<EntryKey, ForwardingEntry>) {
        self.belief.forget();
        for family in Family::ALL {
            match read::found(&mut self.connection, family, self.options) {
                Ok(found) => {
                    self.programmed.observe(family, found.as_ref());
                    if let Some(found) = found {
                        self.belief.adopt(found, entries);
                    }
                }
                Err(error) => tracing::warn!(%family, %error, "failed to read our table back, replacing it"),
            }
        }
    }

    /// Plans and commits; on failure takes the turn back, or forgets.
    fn attempt(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        scope: &Scope,
        node: &NodeForwarding,
    ) -> Result<Report, ConnectionError> {
        let is_whole = self.belief.is_nothing();
        let (mut transaction, mut refused) = self.plan(entries, scope, node);
        let is_out_of_classes =
            refused.values().any(|reason| matches!(reason, Exhausted::Classes | Exhausted::Affinity));
        let is_wasteful = is_out_of_classes && !is_whole && self.belief.wastes_classes();
        if is_wasteful && self.renewals.ask(Instant::now()) {
            self.belief.forget();
            self.quarantined
                .retain(|_, reason| !matches!(reason, Quarantine::Exhausted(Exhausted::Classes | Exhausted::Affinity)));
            (transaction, refused) = self.plan(entries, &Scope::All, node);
        }
        let is_rebuilt = transaction.tables.iter().any(|table| table.is_new);
        let _writing = self.forgetter.pen();
        if !transaction.is_empty() {
            if let Err(error) = self.connection.commit(&write::batch(&transaction, self.options)) {
                if !error.is_untouched() || !self.belief.undo() {
                    self.belief.forget();
                }
                return Err(error);
            }
            self.programmed.follow(&transaction);
        }
        self.forgetter.hand_over(&self.belief, &transaction, *scope == Scope::All);
        let was_planned = |key: &EntryKey| scope.keys().is_none_or(|keys| keys.contains(key));
        self.quarantined.retain(|key, reason| !reason.is_partial() || !was_planned(key));
        self.quarantined.extend(refused.into_iter().map(|(key, reason)| (key, reason.into())));
        let (deleted, added) = transaction.size();
        Ok(Report {
            deleted,
            added,
            is_rebuilt,
            removed: removed_frontends(&transaction),
            quarantined: self.quarantined.clone(),
        })
    }

    fn is_left_out(&self, key: &EntryKey) -> bool {
        self.quarantined.get(key).is_some_and(|reason| !reason.is_partial())
    }

    fn plan(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        scope: &Scope,
        node: &NodeForwarding,
    ) -> (Transaction, BTreeMap<EntryKey, Exhausted>) {
        let skipped = self.quarantined.keys().filter(|key| self.is_left_out(key)).cloned().collect();
        self.belief.update(entries, scope, node, &skipped)
    }
}

#[cfg(test)]
mod tests;
