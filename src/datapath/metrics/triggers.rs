//! When what is waiting for the kernel was set off, as EndpointSlices tell it: for the time from a pod's change to the
//! kernel's.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::Family;

/// How many are kept while the kernel takes nothing: more would say no more, and would grow without end.
const MOST: usize = 10_000;

/// Triggers of changes that the kernel does not have yet.
#[derive(Debug)]
pub struct Triggers {
    /// What was set off before is old news that this process only reads: it says nothing about this process.
    start: Timestamp,
    pending: Vec<(Family, Timestamp)>,
}

impl Triggers {
    /// Nothing is waiting.
    pub const fn new(start: Timestamp) -> Self {
        Self { start, pending: Vec::new() }
    }

    /// Sees when a change of a slice was set off, beside when the one known before was: the same trigger counts once.
    pub fn see(&mut self, family: Family, trigger: Option<Timestamp>, known: Option<Timestamp>) {
        let news = trigger.filter(|it| *it > self.start && trigger != known);
        if self.pending.len() < MOST {
            self.pending.extend(news.map(|it| (family, it)));
        }
    }

    /// The kernel has everything: how long each took. Clocks differ, so a trigger may seem to lie ahead.
    pub fn settle(&mut self, now: Timestamp) -> impl Iterator<Item = (Family, Duration)> {
        let took = move |trigger| Duration::try_from(now.duration_since(trigger)).unwrap_or_default();
        std::mem::take(&mut self.pending).into_iter().map(move |(family, trigger)| (family, took(trigger)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn old_news_and_repetitions_do_not_count() {
        let mut triggers = Triggers::new(at(100));
        triggers.see(Family::V4, None, None);
        triggers.see(Family::V4, Some(at(99)), None);
        triggers.see(Family::V4, Some(at(101)), Some(at(101)));
        triggers.see(Family::V6, Some(at(101)), Some(at(90)));
        triggers.see(Family::V4, Some(at(105)), None);
        let took: Vec<_> = triggers.settle(at(103)).collect();
        assert_eq!(took, [(Family::V6, Duration::from_secs(2)), (Family::V4, Duration::ZERO)]);
        assert_eq!(triggers.settle(at(103)).count(), 0);
    }
}
