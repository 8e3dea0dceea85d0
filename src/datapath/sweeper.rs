//! Deletes tracked connections that go nowhere useful any more, in a thread of its own, so that programming never waits.
//!
//! Each turn of the datapath hands over a [`View`], after its commit. Of two words on one frontend the newer one counts,
//! however long the thread takes. A packet that the old rules translated may still be on its way when the first look is
//! over, and makes an entry behind it: so each frontend gets a second and a third look shortly after.
//!
//! Where the table is large and the frontends are few, the kernel is asked for their flows alone, else for all of a
//! protocol. Entries are deleted while the others are read, by a second socket, so that memory does not grow with the table.

mod metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::metrics::Metrics;
use super::aside::{Aside, Shared, Tasks};
use super::conntrack::{Fate, Flow, Here, View};
use super::desired::FrontendKey;
use super::entry::Frontend;
use super::looks::{Looks, RETRY};
use crate::model::{Family, Protocol};
use crate::netlink::ctnetlink::{Conntrack, ConntrackError, Entry, Filter};
use crate::runtime::heap;
use crate::runtime::telemetry::chain;

/// Each question takes the kernel a walk through its table, some 10 ms where that has 262,144 buckets: as long as it takes
/// to tell of this many entries.
const WALK: usize = 10_000;
/// A look at this many frontends leaves memory to give back.
const MANY: usize = 1_000;
/// Entries deleted at once.
const BATCH: usize = 500;

/// The way to the thread, which ends when this goes.
#[derive(Debug)]
pub struct Sweeper {
    aside: Aside<Waiting>,
}

/// What the thread has to do.
#[derive(Debug, Default)]
struct Waiting {
    fates: BTreeMap<FrontendKey, Word>,
    here: Arc<Here>,
    /// When a whole view is to be looked at; its frontends are among the others.
    whole: Option<Instant>,
}

/// The word on a frontend.
#[derive(Debug)]
struct Word {
    fate: Fate,
    looks: Looks,
}

impl Sweeper {
    /// Starts the thread, in the network namespace of this one.
    ///
    /// # Errors
    /// When there is no socket, or no thread.
    pub fn start(metrics: Metrics) -> Result<Self, ConntrackError> {
        let mut broom = Broom { reader: Conntrack::open()?, writer: Conntrack::open()?, metrics, is_failing: false };
        let aside = Aside::start("sweeper", move |waiting: &Shared<Waiting>, (view, words)| {
            let result = broom.look(&view);
            waiting.with(|waiting| match &result {
                Ok(()) => waiting.looked_at(words),
                Err(_) => waiting.failed(view.is_whole, words, Instant::now()),
            });
            broom.tell(result);
            if view.fates.len() >= MANY {
                drop(view);
                heap::trim();
            }
        });
        Ok(Self { aside: aside.map_err(ConntrackError::Open)? })
    }

    /// Hands over what a turn means for flows. Never waits for the kernel.
    pub fn hand_over(&self, view: View) {
        if !view.is_empty() {
            self.aside.tell(|waiting| waiting.add(view, Instant::now()));
        }
    }

    /// Whether all that was handed over has been looked at as often as it will be.
    pub fn is_idle(&self) -> bool {
        self.aside.ask(|waiting| waiting.due().is_none())
    }
}

/// The frontends that are looked at, and since when there is the word on each.
type Words = BTreeMap<FrontendKey, Instant>;

impl Tasks for Waiting {
    type Part = (View, Words);

    fn due(&self) -> Option<Instant> {
        self.fates.values().map(|word| word.looks.due()).chain(self.whole).min()
    }

    fn take(&mut self, now: Instant) -> Self::Part {
        let is_whole = self.whole.take_if(|due| *due <= now).is_some();
        let due = self.fates.iter().filter(|(_, word)| is_whole || word.looks.due() <= now);
        let (fates, words) =
            due.map(|(frontend, word)| ((*frontend, word.fate.clone()), (*frontend, word.looks.since()))).unzip();
        (View { fates, here: Arc::clone(&self.here), is_whole }, words)
    }
}

impl Waiting {
    fn add(&mut self, view: View, now: Instant) {
        if view.is_whole {
            self.whole = Some(now);
        }
        self.here = view.here;
        for (frontend, fate) in view.fates {
            let fate = match self.fates.remove(&frontend) {
                Some(before) => before.fate.followed_by(fate),
                None => fate,
            };
            self.fates.insert(frontend, Word { fate, looks: Looks::begin(now) });
        }
    }

    /// Plans the next look at what has been looked at, unless there is a newer word on it.
    fn looked_at(&mut self, words: Words) {
        for (frontend, since) in words {
            let Some(word) = self.fates.get_mut(&frontend).filter(|word| word.looks.since() == since) else { continue };
            if !word.fate.may_meet_late_packets() || !word.looks.made() {
                self.fates.remove(&frontend);
            }
        }
    }

    fn failed(&mut self, is_whole: bool, words: Words, now: Instant) {
        if is_whole {
            self.whole.get_or_insert(now + RETRY);
        }
        for (frontend, since) in words {
            if let Some(word) = self.fates.get_mut(&frontend).filter(|word| word.looks.since() == since) {
                word.looks.failed(now);
            }
        }
    }
}

struct Broom {
    reader: Conntrack,
    writer: Conntrack,
    metrics: Metrics,
    is_failing: bool,
}

impl Broom {
    fn look(&mut self, view: &View) -> Result<(), ConntrackError> {
        let entries = if view.fates.len() > 1 { self.reader.count()? } else { 0 };
        let mut looked: BTreeMap<Family, (usize, Duration)> = BTreeMap::new();
        for filter in filters(view, entries) {
            let start = Instant::now();
            let deleted = self.delete(&filter, view)?;
            let (of_family, took) = looked.entry(filter.family).or_default();
            *of_family += deleted;
            *took += start.elapsed();
        }
        for (family, (deleted, took)) in looked {
            self.metrics.looked(family, deleted, took);
            if deleted > 0 {
                tracing::debug!(%family, deleted, ?took, "deleted stale connections");
            }
        }
        Ok(())
    }

    /// Says once that it fails.
    fn tell(&mut self, result: Result<(), ConntrackError>) {
        let had_failed = std::mem::replace(&mut self.is_failing, result.is_err());
        if let Err(error) = result
            && !had_failed
        {
            let error = chain(&error);
            tracing::warn!(error, "failed to delete stale connections, will be tried again each second");
        }
    }

    fn delete(&mut self, filter: &Filter, view: &View) -> Result<usize, ConntrackError> {
        let Self { reader, writer, .. } = self;
        let mut batch: Vec<Entry> = Vec::new();
        let mut deleted = 0;
        let mut result = Ok(());
        reader.dump(filter, |entry| {
            let flow = Flow {
                protocol: entry.protocol,
                destination: entry.destination,
                reply_source: entry.reply_source,
                is_answered: entry.is_answered,
            };
            if !view.is_stale(&flow) {
                return;
            }
            batch.push(entry);
            if batch.len() >= BATCH && result.is_ok() {
                match writer.delete(&batch) {
                    Ok(count) => deleted += count,
                    Err(error) => result = Err(error),
                }
                batch.clear();
            }
        })?;
        result?;
        if !batch.is_empty() {
            deleted += writer.delete(&batch)?;
        }
        Ok(deleted)
    }
}

/// What to ask the kernel for, given how many entries it has. UDP comes first: its clients wait for it, those of others have
/// had a period of grace.
fn filters(view: &View, entries: usize) -> Vec<Filter> {
    let mut filters = filters_of(view, entries);
    filters.sort_by_key(|filter| filter.protocol != Protocol::Udp);
    filters
}

fn filters_of(view: &View, entries: usize) -> Vec<Filter> {
    let walks = view.fates.len().saturating_sub(1).saturating_mul(WALK);
    if view.is_whole || walks > entries {
        let mut kinds: BTreeSet<(Family, Protocol)> =
            view.fates.keys().map(|frontend| (frontend.family, frontend.protocol)).collect();
        if view.is_whole {
            kinds.extend(Family::ALL.map(|family| (family, Protocol::Udp)));
        }
        let whole = |(family, protocol)| Filter { family, protocol, destination: None, port: None };
        return kinds.into_iter().map(whole).collect();
    }
    let one = |key: &FrontendKey| {
        let (destination, port) = match key.frontend {
            Frontend::Address(address) => (Some(address.ip()), address.port().try_into().ok()),
            Frontend::NodePort(port) => (None, Some(port)),
        };
        Filter { family: key.family, protocol: key.protocol, destination, port }
    };
    view.fates.keys().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    #[test]
    fn few_frontends_of_a_large_table_are_asked_for_by_themselves() {
        let key = |text: &str| FrontendKey {
            family: Family::V4,
            protocol: Protocol::Udp,
            frontend: Frontend::Address(text.parse().unwrap()),
        };
        let view = |count: u8| View {
            fates: (0..count).map(|number| (key(&format!("10.96.0.{number}:53")), Fate::Gone)).collect(),
            ..View::default()
        };
        assert_eq!(filters(&view(3), 100_000).len(), 3);
        assert_eq!(filters(&view(3), 100).len(), 1);
        assert_eq!(filters(&view(100), 100_000).len(), 1);
        assert!(filters(&view(1), 0)[0].destination.is_some());
        assert_eq!(filters(&View { is_whole: true, ..view(1) }, 1_000_000).len(), 2, "both families");
    }

    #[test]
    fn udp_comes_first_in_both_families() {
        let key = |family, protocol| FrontendKey {
            family,
            protocol,
            frontend: Frontend::NodePort(NonZeroU16::new(30053).unwrap()),
        };
        let fates = Family::ALL
            .into_iter()
            .flat_map(|family| [Protocol::Tcp, Protocol::Udp].map(|protocol| (key(family, protocol), Fate::Gone)));
        let view = View { fates: fates.collect(), ..View::default() };
        for entries in [0, 1_000_000] {
            let order: Vec<Protocol> = filters(&view, entries).iter().map(|filter| filter.protocol).collect();
            assert_eq!(order, [Protocol::Udp, Protocol::Udp, Protocol::Tcp, Protocol::Tcp]);
        }
    }
}
