//! How often others may make us look at everything: at once as a rule, but who goes on fighting us for our own tables must
//! not keep the agent busy. Pure: the loop's clock is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// So many repairs may follow each other without a pause.
pub const BURST: usize = 10;
/// One more may follow each time that this has passed.
pub const REFILL: Duration = Duration::from_millis(500);
/// A repair that took long counts for longer: so many times what it took.
const SHARE: u32 = 4;

/// Whether to look at everything now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nobody touched anything.
    No,
    /// Now.
    Now,
    /// Not before this span has passed.
    After(Duration),
}

/// What others did since the last repair, and how many repairs there were lately.
#[derive(Debug, Default)]
pub struct Repairs {
    is_touched: bool,
    /// When each of the last repairs will be forgotten.
    recent: VecDeque<Instant>,
    not_before: Option<Instant>,
}

impl Repairs {
    /// Somebody touched our tables.
    pub const fn notice(&mut self) {
        self.is_touched = true;
    }

    /// Whether a repair is due.
    pub fn due(&self, now: Instant) -> Due {
        match self.not_before.map(|from| from.saturating_duration_since(now)) {
            _ if !self.is_touched => Due::No,
            Some(pause) if !pause.is_zero() => Due::After(pause),
            Some(_) | None => Due::Now,
        }
    }

    /// Everything was looked at, which took from one time to another. Says whether the next repair has to wait.
    pub fn done(&mut self, from: Instant, to: Instant) -> bool {
        if !std::mem::take(&mut self.is_touched) {
            return false;
        }
        let cost = REFILL.max(to.saturating_duration_since(from) * SHARE);
        self.recent.push_back(self.recent.back().map_or(from, |last| *last.max(&from)) + cost);
        self.recent.retain(|forgotten_at| *forgotten_at > to);
        let is_burst_over = self.recent.len() >= BURST;
        self.not_before = is_burst_over.then(|| to + cost);
        is_burst_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn nothing_is_due_before_somebody_comes() {
        let start = Instant::now();
        let mut repairs = Repairs::default();
        assert_eq!(repairs.due(start), Due::No);
        repairs.notice();
        assert_eq!(repairs.due(start), Due::Now);
        assert!(!repairs.done(start, start));
        assert_eq!(repairs.due(start), Due::No);
        assert!(!repairs.done(start, start), "a resync by itself is no repair");
        assert_eq!(repairs.recent, [start + REFILL]);
    }

    #[test]
    fn a_burst_is_repaired_at_once_and_a_fight_is_slowed_down() {
        let start = Instant::now();
        let mut repairs = Repairs::default();
        let mut done = Vec::new();
        // Somebody comes every millisecond, and each repair takes one.
        for millis in 0..10_000 {
            repairs.notice();
            if repairs.due(at(start, millis)) == Due::Now {
                done.push(millis);
                repairs.done(at(start, millis), at(start, millis + 1));
            }
        }
        assert_eq!(done[..10], (0..10).collect::<Vec<_>>());
        assert!((25..35).contains(&done.len()), "{done:?}");
        // After a rest it is as at the start.
        for repair in 0..BURST as u64 - 1 {
            repairs.notice();
            assert_eq!(repairs.due(at(start, 20_000 + repair)), Due::Now);
            assert!(!repairs.done(at(start, 20_000 + repair), at(start, 20_000 + repair)));
        }
    }

    #[test]
    fn long_repairs_pause_longer() {
        let start = Instant::now();
        let mut repairs = Repairs::default();
        for second in 0..13 {
            repairs.notice();
            assert_eq!(repairs.due(at(start, second * 1000)), Due::Now);
            assert_eq!(
                repairs.done(at(start, second * 1000), at(start, second * 1000 + 1000)),
                second == 9,
                "{second}"
            );
        }
        repairs.notice();
        assert_eq!(repairs.due(at(start, 13_000)), Due::After(Duration::from_secs(4)));
    }
}
