//! When the kernel's memory of something is looked at. A packet that met the old rules may still be on its way when the
//! first look is over, and is remembered behind it: so there are later ones.

use std::time::{Duration, Instant};

/// Counted from the word on it.
const AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(20), Duration::from_secs(1)];
/// After an error.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// The looks that one word has yet to bring.
#[derive(Clone, Debug)]
pub(super) struct Looks {
    since: Instant,
    made: usize,
    due: Instant,
}

impl Looks {
    /// There is a word now.
    pub(super) const fn begin(now: Instant) -> Self {
        Self { since: now, made: 0, due: now }
    }

    /// When the word was, which tells it from a later one.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// When the next one is due.
    pub(super) const fn due(&self) -> Instant {
        self.due
    }

    /// One more was made. Tells whether there is another.
    pub(super) fn made(&mut self) -> bool {
        self.made += 1;
        AFTER.get(self.made).inspect(|after| self.due = self.since + **after).is_some()
    }

    /// One failed.
    pub(super) fn failed(&mut self, now: Instant) {
        self.due = now + RETRY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_later_looks_counted_from_the_word() {
        let start = Instant::now();
        let mut looks = Looks::begin(start);
        assert_eq!(looks.due(), start);
        for after in &AFTER[1..] {
            assert!(looks.made());
            assert_eq!(looks.due(), start + *after);
        }
        assert!(!looks.made());
    }

    #[test]
    fn a_look_that_failed_is_made_again() {
        let start = Instant::now();
        let mut looks = Looks::begin(start);
        looks.failed(start + RETRY);
        assert_eq!(looks.due(), start + 2 * RETRY);
        assert!(looks.made());
        assert_eq!(looks.due(), start + AFTER[1]);
    }
}
