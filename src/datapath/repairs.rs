//! How often to try again what did not last. Pure: the loop's clock is an argument.
//!
//! Others may make us look at everything: at once as a rule, but who goes on fighting us for our own tables must not keep
//! the agent busy. And what the kernel refused it may take later, when there is memory again, say.

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

/// Before entries that the kernel refused are tried again for the first time; then twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// The longest pause: every resync tries them too.
const LAST_RETRY: Duration = Duration::from_secs(3600);

/// When entries that the kernel refused are tried again.
#[derive(Debug, Default)]
pub struct Retry {
    next: Option<(Instant, Duration)>,
}

impl Retry {
    /// Whether now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|(at, _)| now >= at)
    }

    /// How long until then, if there are any.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        self.next.map(|(at, _)| at.saturating_duration_since(now))
    }

    /// Takes in whether a turn left any out.
    pub fn follow(&mut self, are_any_left: bool, now: Instant) {
        self.next = match self.next {
            _ if !are_any_left => None,
            None => Some((now + FIRST_RETRY, FIRST_RETRY)),
            Some((at, pause)) if now >= at => {
                let pause = (pause * 2).min(LAST_RETRY);
                Some((now + pause, pause))
            }
            waiting @ Some(_) => waiting,
        };
    }
}

/// Between two tables that are made anew for want of numbers.
pub const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// When a table may be made anew because there are no numbers left of a kind, and some of them are in no use any more. It
/// loses the memory of session affinity by that: a cluster that has almost all of them in use must not bring it about at
/// each change. Who needs a number meanwhile goes without.
#[derive(Debug, Default)]
pub struct Renewals {
    last: Option<Instant>,
    is_wanted: bool,
}

impl Renewals {
    /// Somebody needs a number: whether now. If not, it is wanted later.
    pub fn ask(&mut self, now: Instant) -> bool {
        let may_be = self.remaining(now).is_zero();
        self.is_wanted = !may_be;
        if may_be {
            self.last = Some(now);
        }
        may_be
    }

    /// How long until one may be that is wanted.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        self.is_wanted.then(|| self.remaining(now))
    }

    /// Whether one that was wanted may be now; whoever goes without is to ask again.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.is_wanted && self.remaining(now).is_zero();
        self.is_wanted &= !is_due;
        is_due
    }

    fn remaining(&self, now: Instant) -> Duration {
        self.last.map_or(Duration::ZERO, |last| (last + RENEWAL_PAUSE).saturating_duration_since(now))
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
                second == 12,
                "{second}"
            );
        }
        repairs.notice();
        assert_eq!(repairs.due(at(start, 13_000)), Due::After(Duration::from_secs(4)));
    }

    #[test]
    fn a_table_is_made_anew_for_want_of_numbers_once_a_minute() {
        let start = Instant::now();
        let mut renewals = Renewals::default();
        assert!(renewals.ask(start));
        assert_eq!(renewals.pause(start), None);
        let asked: Vec<u64> = (1..200).filter(|second| renewals.ask(at(start, second * 1000))).collect();
        assert_eq!(asked, [60, 120, 180]);
        assert_eq!(renewals.pause(at(start, 200_000)), Some(Duration::from_secs(40)));
        assert!(!renewals.take_due(at(start, 239_000)));
        assert!(renewals.take_due(at(start, 240_000)));
        assert!(!renewals.take_due(at(start, 240_000)), "nobody wants it any more");
        assert!(renewals.ask(at(start, 240_000)));
    }

    #[test]
    fn what_was_refused_is_tried_again_ever_more_rarely() {
        let start = Instant::now();
        let mut retry = Retry::default();
        assert_eq!(retry.pause(start), None);
        let (mut tries, mut second) = (Vec::new(), 0);
        while second < 20_000 {
            // Some turn every second leaves them out.
            tries.extend(retry.is_due(at(start, second * 1000)).then_some(second));
            retry.follow(true, at(start, second * 1000));
            second += 1;
        }
        assert_eq!(tries, [60, 180, 420, 900, 1860, 3780, 7380, 10_980, 14_580, 18_180]);
        retry.follow(false, at(start, second * 1000));
        assert_eq!(retry.pause(start), None);
    }
}
