//! The loop, written once for controller, speaker and datapath.
//!
//! ```text
//!   events ──▶ observe ──▶ (synced?) ──▶ turn ──▶ wait for the next event, a deadline, or a pause after a failure
//!                ▲                         │
//!                └──── more events first ──┘
//! ```
//!
//! # Guarantees
//!
//! * No turn before the component says that every watch has delivered its first list.
//! * A burst is one turn: all events that wait are observed before it. There is no minimum period: a single change goes
//!   out at once.
//! * A failed turn is followed by a [`Scope::Resync`], after a pause that doubles from 50 ms to 5 s; new events do not
//!   shorten the pause.
//! * Shutdown is looked at between turns, never within one.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::shutdown::Shutdown;
use super::telemetry::chain;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How much a turn looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The keys that changed since the last turn.
    Changed,
    /// All keys, desired and actual: after start, after a failure, and on [`Component::resync_every`].
    Resync,
}

/// What the loop's clock says; handed to everything that needs a time.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For what is written and read by others.
    pub wall: Timestamp,
    /// For spans; never goes back.
    pub monotonic: Instant,
}

impl Now {
    fn read() -> Self {
        Self { wall: Timestamp::now(), monotonic: Instant::now() }
    }
}

/// When the component wants its next turn if nothing happens before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not before the next event.
    OnEvent,
    /// At the latest after this span.
    After(Duration),
}

/// One of the three components, as the loop sees it.
pub trait Component: Send {
    /// One observation.
    type Event: Send + 'static;
    /// Why a turn failed.
    type Error: Error + Send;

    /// The component's name in logs.
    const NAME: &'static str;

    /// Feeds one observation to the index. Cheap; does no I/O.
    fn observe(&mut self, event: Self::Event);

    /// Whether every source has delivered its first list.
    fn is_synced(&self) -> bool;

    /// Desired, plan, apply: makes the world what the index says it should be.
    ///
    /// # Errors
    /// When something could not be applied. The component forgets what it believed of the world; the loop then asks for a
    /// resync. A single bad object is no error: it is isolated and reported on the object.
    fn turn(&mut self, scope: Scope, now: Now) -> impl Future<Output = Result<Next, Self::Error>> + Send;

    /// How often to look at everything though nothing changed.
    fn resync_every(&self) -> Duration {
        Duration::from_secs(3600)
    }
}

/// Runs a component until shutdown is requested or its last event source is gone.
pub async fn run<C: Component>(component: &mut C, mut events: mpsc::Receiver<C::Event>, mut shutdown: Shutdown) {
    let mut state = LoopState::new(Instant::now(), component.resync_every());
    loop {
        let wake = state.wake(component.is_synced());
        tokio::select! {
            biased;
            () = shutdown.requested() => return,
            event = events.recv() => match event {
                Some(event) => {
                    component.observe(event);
                    state.is_changed = true;
                }
                None => return,
            },
            () = sleep_until(wake) => {}
        }
        while let Ok(event) = events.try_recv() {
            component.observe(event);
            state.is_changed = true;
        }
        let now = Now::read();
        let Some(scope) = state.due(component.is_synced(), now.monotonic) else { continue };
        match component.turn(scope, now).await {
            Ok(next) => state.succeeded(scope, next, Instant::now(), component.resync_every()),
            Err(error) => {
                let pause = state.failed(Instant::now());
                let error = chain(&error);
                tracing::warn!(component = C::NAME, error, ?pause, "turn failed, everything will be looked at again");
            }
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// When the next turn is due and how much it looks at.
#[derive(Debug)]
struct LoopState {
    is_changed: bool,
    needs_resync: bool,
    deadline: Option<Instant>,
    resync_at: Instant,
    retry_at: Option<Instant>,
    pause: Duration,
}

impl LoopState {
    fn new(now: Instant, resync_every: Duration) -> Self {
        Self {
            is_changed: false,
            needs_resync: true,
            deadline: None,
            resync_at: now + resync_every,
            retry_at: None,
            pause: FIRST_PAUSE,
        }
    }

    /// How long to sleep if no event comes; without end while nothing but an event can make a turn due.
    fn wake(&self, is_synced: bool) -> Option<Instant> {
        let far = self.resync_at;
        match (is_synced, self.retry_at) {
            (false, _) => None,
            (true, Some(retry)) => Some(retry),
            (true, None) => Some(self.deadline.map_or(far, |deadline| deadline.min(far))),
        }
    }

    fn due(&self, is_synced: bool, now: Instant) -> Option<Scope> {
        if !is_synced || self.retry_at.is_some_and(|retry| now < retry) {
            return None;
        }
        if self.needs_resync || now >= self.resync_at {
            return Some(Scope::Resync);
        }
        (self.is_changed || self.deadline.is_some_and(|deadline| now >= deadline)).then_some(Scope::Changed)
    }

    fn succeeded(&mut self, scope: Scope, next: Next, now: Instant, resync_every: Duration) {
        self.is_changed = false;
        self.retry_at = None;
        self.pause = FIRST_PAUSE;
        self.deadline = match next {
            Next::OnEvent => None,
            Next::After(span) => Some(now + span),
        };
        if scope == Scope::Resync {
            self.needs_resync = false;
            self.resync_at = now + resync_every;
        }
    }

    fn failed(&mut self, now: Instant) -> Duration {
        let pause = self.pause;
        self.needs_resync = true;
        self.retry_at = Some(now + pause);
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests;
