//! A thread that does what no turn of the datapath waits for, as turns tell it.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// What the thread has still to do.
pub(super) trait Tasks: Default + Send + 'static {
    /// What is done at one time.
    type Part;

    /// When the next part is due.
    fn due(&self) -> Option<Instant>;

    /// All that is due by now.
    fn take(&mut self, now: Instant) -> Self::Part;
}

/// The way to the thread, which ends when this goes.
#[derive(Debug)]
pub(super) struct Aside<T> {
    shared: Arc<Shared<T>>,
}

/// What the thread and those who tell it have in common.
#[derive(Debug, Default)]
pub(super) struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State<T> {
    tasks: T,
    is_over: bool,
}

impl<T: Tasks> Aside<T> {
    /// Starts it, in the network namespace of this thread.
    pub(super) fn start(name: &str, mut work: impl FnMut(&Shared<T>, T::Part) + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared<T>>::default();
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut not_before = Instant::now();
            while let Some(part) = of_thread.next(not_before) {
                let start = Instant::now();
                work(&of_thread, part);
                // Where there is so much that it takes long, half of the time is left to others.
                not_before = Instant::now() + start.elapsed();
            }
        })?;
        Ok(Self { shared })
    }

    /// Tells it something new.
    pub(super) fn tell(&self, word: impl FnOnce(&mut T)) {
        self.shared.with(word);
        self.shared.wake.notify_one();
    }

    /// Looks at what it has still to do.
    pub(super) fn ask<R>(&self, question: impl FnOnce(&T) -> R) -> R {
        question(&self.shared.state().tasks)
    }
}

impl<T> Drop for Aside<T> {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.wake.notify_one();
    }
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the tasks or changes them.
    pub(super) fn with<R>(&self, job: impl FnOnce(&mut T) -> R) -> R {
        job(&mut self.state().tasks)
    }

    /// Whether nobody wants anything any more.
    pub(super) fn is_over(&self) -> bool {
        self.state().is_over
    }
}

impl<T: Tasks> Shared<T> {
    /// Waits until something is due; nothing when it is over.
    fn next(&self, not_before: Instant) -> Option<T::Part> {
        let mut state = self.state();
        loop {
            if state.is_over {
                return None;
            }
            let now = Instant::now();
            match state.tasks.due().map(|due| due.max(not_before)) {
                Some(due) if due <= now => return Some(state.tasks.take(now)),
                Some(due) => {
                    let waited = self.wake.wait_timeout(state, due - now);
                    (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                }
                None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
