//! The loop's guarantees, with the clock stopped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::runtime::shutdown::shutdown;

#[derive(Debug, thiserror::Error)]
#[error("not today")]
struct Fault;

/// Records its turns: scope and how many events it had seen.
struct Recorder {
    seen: usize,
    synced_after: usize,
    fail_turns: usize,
    turns: Arc<Mutex<Vec<(Scope, usize, Instant)>>>,
    next: Next,
    /// How often the loop asked whether it may begin.
    asked: Arc<AtomicUsize>,
}

impl Component for Recorder {
    type Event = ();
    type Error = Fault;
    const NAME: &'static str = "recorder";

    fn observe(&mut self, (): ()) {
        self.seen += 1;
    }

    fn is_synced(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.seen >= self.synced_after
    }

    async fn turn(&mut self, scope: Scope, now: Now) -> Result<Next, Fault> {
        self.turns.lock().unwrap().push((scope, self.seen, now.monotonic));
        if self.fail_turns > 0 {
            self.fail_turns -= 1;
            return Err(Fault);
        }
        Ok(self.next)
    }
}

/// Runs a recorder for a virtual span with `initial` events waiting; gives its turns.
async fn run_for(span: Duration, mut recorder: Recorder, initial: usize) -> Vec<(Scope, usize, Instant)> {
    let (sender, receiver) = mpsc::channel(64);
    for _ in 0..initial {
        sender.send(()).await.unwrap();
    }
    let (trigger, handle) = shutdown();
    let turns = Arc::clone(&recorder.turns);
    let task = tokio::spawn(async move { run(&mut recorder, receiver, handle).await });
    tokio::time::sleep(span).await;
    trigger.request();
    task.await.unwrap();
    drop(sender);
    let turns = turns.lock().unwrap();
    turns.clone()
}

fn recorder() -> Recorder {
    Recorder {
        seen: 0,
        synced_after: 1,
        fail_turns: 0,
        turns: Arc::default(),
        next: Next::OnEvent,
        asked: Arc::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn no_turn_before_the_first_lists() {
    let turns = run_for(Duration::from_secs(10), Recorder { synced_after: 3, ..recorder() }, 2).await;
    assert_eq!(turns, []);
}

#[tokio::test(start_paused = true)]
async fn lists_that_come_hours_late_are_waited_for_asleep() {
    let waiting = Arc::new(AtomicUsize::new(0));
    let (sender, receiver) = mpsc::channel(1);
    let (trigger, handle) = shutdown();
    let mut recorder = Recorder { asked: Arc::clone(&waiting), ..recorder() };
    let turns = Arc::clone(&recorder.turns);
    let task = tokio::spawn(async move { run(&mut recorder, receiver, handle).await });
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!(waiting.load(Ordering::Relaxed), 1, "the loop looked though nothing had come");
    sender.send(()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    trigger.request();
    task.await.unwrap();
    assert_eq!(turns.lock().unwrap().iter().map(|(scope, ..)| *scope).collect::<Vec<_>>(), [Scope::Resync]);
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_turn_and_the_first_is_a_resync() {
    let turns = run_for(Duration::from_secs(10), recorder(), 20).await;
    assert_eq!(turns.iter().map(|(scope, seen, _)| (*scope, *seen)).collect::<Vec<_>>(), [(Scope::Resync, 20)]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_as_resyncs_with_doubling_pauses() {
    let turns = run_for(Duration::from_secs(10), Recorder { fail_turns: 3, ..recorder() }, 1).await;
    assert!(turns.iter().all(|(scope, ..)| *scope == Scope::Resync));
    let pauses: Vec<_> = turns.windows(2).map(|pair| pair[1].2 - pair[0].2).map(|span| span.as_millis()).collect();
    assert_eq!(pauses, [50, 100, 200]);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_brings_a_turn_without_an_event() {
    let next = Next::After(Duration::from_secs(4));
    let turns = run_for(Duration::from_secs(10), Recorder { next, ..recorder() }, 1).await;
    let scopes: Vec<_> = turns.iter().map(|(scope, ..)| *scope).collect();
    assert_eq!(scopes, [Scope::Resync, Scope::Changed, Scope::Changed]);
}
