//! Lines that tell a person what is being done and how long it took.

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Writes to standard error; usable from several threads at once.
#[derive(Debug)]
pub struct Progress {
    begin: Instant,
    line: Mutex<()>,
    quiet: bool,
}

impl Progress {
    /// Time runs from now.
    pub fn new() -> Self {
        Self { begin: Instant::now(), line: Mutex::new(()), quiet: false }
    }

    /// Says nothing.
    pub fn quiet() -> Self {
        Self { quiet: true, ..Self::new() }
    }

    /// A line, with the time since the beginning.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            let _line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(std::io::stderr().lock(), "{:6.1} s  {text}", self.elapsed().as_secs_f32()).ok();
        }
    }

    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
