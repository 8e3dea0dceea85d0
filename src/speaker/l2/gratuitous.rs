//! When to announce an address unasked. Pure: time and jitter are arguments.
//!
//! At once when it is taken over, then a burst that backs off for links that were not ready or caches that take one
//! update per second, then a slow refresh for switches that forget (300 s) and clients that never ask again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// The burst after a take-over, each counted from the one before: at 0, 50 ms, 200 ms, 1 s and 2 s.
const BURST: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(800), Duration::from_secs(1)];

/// The default of the refresh.
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(60);

/// Which addresses are due when.
#[derive(Debug)]
pub struct Schedule {
    refresh: Duration,
    /// How often each was announced, and when it is due again.
    addresses: BTreeMap<IpAddr, (u32, Instant)>,
    /// The same, by time.
    queue: BTreeSet<(Instant, IpAddr)>,
}

impl Schedule {
    /// Nothing to announce yet.
    pub fn new(refresh: Duration) -> Self {
        Self { refresh, addresses: BTreeMap::new(), queue: BTreeSet::new() }
    }

    /// Announces exactly these from now on: new ones at once, others go on as they are.
    pub fn set(&mut self, wanted: &BTreeSet<IpAddr>, now: Instant) {
        let gone: Vec<IpAddr> = self.addresses.keys().filter(|known| !wanted.contains(known)).copied().collect();
        for address in gone {
            if let Some((_, at)) = self.addresses.remove(&address) {
                self.queue.remove(&(at, address));
            }
        }
        for address in wanted {
            if !self.addresses.contains_key(address) {
                self.put(*address, 0, now);
            }
        }
    }

    /// Announces everything as if just taken over: the interface's Ethernet address changed, or the wire came back.
    pub fn restart(&mut self, now: Instant) {
        self.queue.clear();
        let all: Vec<IpAddr> = self.addresses.keys().copied().collect();
        for address in all {
            self.put(address, 0, now);
        }
    }

    /// The addresses to announce now, those that wait longest first, at most `limit`. `jitter` gives a span for an
    /// address and the number of its announcement, which is added to the refresh.
    pub fn take_due(&mut self, now: Instant, limit: usize, jitter: impl Fn(IpAddr, u32) -> Duration) -> Vec<IpAddr> {
        let due: Vec<(Instant, IpAddr)> =
            self.queue.iter().take_while(|(at, _)| *at <= now).take(limit).copied().collect();
        for entry in &due {
            self.queue.remove(entry);
            let (_, address) = *entry;
            let count = self.addresses.get(&address).map_or(0, |(count, _)| *count);
            let pause = usize::try_from(count)
                .ok()
                .and_then(|round| BURST.get(round).copied())
                .unwrap_or_else(|| self.refresh + jitter(address, count));
            self.put(address, count.saturating_add(1), now + pause);
        }
        due.into_iter().map(|(_, address)| address).collect()
    }

    /// When the next is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    fn put(&mut self, address: IpAddr, count: u32, at: Instant) {
        self.addresses.insert(address, (count, at));
        self.queue.insert((at, address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn addresses(count: u8) -> BTreeSet<IpAddr> {
        (0..count).map(|number| IpAddr::from([192, 0, 2, number])).collect()
    }

    fn no_jitter(_: IpAddr, _: u32) -> Duration {
        Duration::ZERO
    }

    /// When announcements go out over a span, each as soon as it is due.
    fn times(
        schedule: &mut Schedule,
        start: Instant,
        span: Duration,
        jitter: fn(IpAddr, u32) -> Duration,
    ) -> Vec<u128> {
        let mut sent = Vec::new();
        while let Some(at) = schedule.next_due().filter(|at| *at <= start + span) {
            let due = schedule.take_due(at, 10, jitter);
            sent.extend(due.iter().map(|_| (at - start).as_millis()));
        }
        sent
    }

    #[test]
    fn a_take_over_is_a_burst_and_then_a_refresh() {
        let start = Instant::now();
        let mut schedule = Schedule::new(DEFAULT_REFRESH);
        schedule.set(&addresses(1), start);
        let sent = times(&mut schedule, start, Duration::from_secs(130), no_jitter);
        assert_eq!(sent, [0, 50, 200, 1000, 2000, 62_000, 122_000]);
    }

    #[test]
    fn jitter_moves_the_refresh_and_not_the_burst() {
        let start = Instant::now();
        let mut schedule = Schedule::new(DEFAULT_REFRESH);
        schedule.set(&addresses(1), start);
        let sent = times(&mut schedule, start, Duration::from_secs(70), |_, count| MS * count);
        assert_eq!(sent, [0, 50, 200, 1000, 2000, 62_004]);
    }

    #[test]
    fn what_stays_is_not_announced_again_and_what_goes_is_not_announced() {
        let start = Instant::now();
        let mut schedule = Schedule::new(DEFAULT_REFRESH);
        schedule.set(&addresses(2), start);
        assert_eq!(schedule.take_due(start, 10, no_jitter).len(), 2);
        schedule.set(&addresses(3), start);
        assert_eq!(schedule.take_due(start, 10, no_jitter), [IpAddr::from([192, 0, 2, 2])]);
        schedule.set(&addresses(0), start);
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn a_restart_announces_all_at_once_again() {
        let start = Instant::now();
        let mut schedule = Schedule::new(DEFAULT_REFRESH);
        schedule.set(&addresses(3), start);
        times(&mut schedule, start, Duration::from_secs(10), no_jitter);
        let later = start + Duration::from_secs(11);
        schedule.restart(later);
        assert_eq!(times(&mut schedule, later, 60 * MS, no_jitter), [0, 0, 0, 50, 50, 50]);
    }

    #[test]
    fn a_mass_take_over_comes_in_portions() {
        let start = Instant::now();
        let mut schedule = Schedule::new(DEFAULT_REFRESH);
        schedule.set(&addresses(200), start);
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            let due = schedule.take_due(start, 50, no_jitter);
            assert_eq!(due.len(), 50);
            seen.extend(due);
        }
        assert_eq!(seen.len(), 200);
        assert_eq!(schedule.next_due(), Some(start + 50 * MS));
    }
}
