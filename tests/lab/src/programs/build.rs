//! Runs one build, tells that it is alive, and says why it failed.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cache::Say;

/// Silence beyond this looks like a hang to a person.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Lines of output that go into an error.
const TAIL: usize = 25;

enum Event {
    Line(String),
    Ended(io::Result<ExitStatus>),
}

/// Reads along, and decides what a person who waits is told.
pub(crate) trait Watch {
    /// Takes one line of output; gives what is worth telling at once.
    fn read(&mut self, line: &str) -> Option<String>;
    /// How far it is.
    fn summary(&self) -> Option<String>;
    /// After this long without a word a person is told the summary.
    fn heartbeat(&self) -> Duration;
    /// When it has lasted too long, and is killed.
    fn limit(&self) -> Option<Duration>;
}

/// Tells the last line.
#[derive(Default)]
struct LastLine(Option<String>);

impl Watch for LastLine {
    fn read(&mut self, line: &str) -> Option<String> {
        self.0 = Some(shorten(line));
        None
    }

    fn summary(&self) -> Option<String> {
        self.0.clone()
    }

    fn heartbeat(&self) -> Duration {
        HEARTBEAT
    }

    fn limit(&self) -> Option<Duration> {
        None
    }
}

/// Runs `command` to its end. `what` names the work in progress lines and errors; all output goes to `log`.
pub(crate) fn run(command: Command, what: &str, log: &Path, progress: Say<'_>) -> Result<()> {
    run_watched(command, what, log, progress, &mut LastLine::default())
}

/// The same with somebody who reads along.
pub(crate) fn run_watched(
    mut command: Command,
    what: &str,
    log: &Path,
    progress: Say<'_>,
    watch: &mut dyn Watch,
) -> Result<()> {
    let started = Instant::now();
    let mut log_file = fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
    // One pipe for both streams keeps their lines in order.
    let (output, input) = io::pipe().context("making a pipe")?;
    let errors = input.try_clone().context("making a pipe")?;
    command.stdin(Stdio::null()).stdout(input).stderr(errors);
    let mut child =
        command.spawn().with_context(|| format!("{what}: starting {}", command.get_program().to_string_lossy()))?;
    // It holds our copies of the pipe's writing end, and would keep the reader waiting.
    drop(command);
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let (events, inbox) = mpsc::channel();
    let reader = read_lines(output, events.clone());
    thread::spawn(move || {
        let status = child.wait();
        let _ended = reader.join();
        // Nobody listens any more when `run` has failed already.
        let _unheard = events.send(Event::Ended(status));
    });
    let mut tail = VecDeque::new();
    let mut next_beat = started + watch.heartbeat();
    loop {
        match inbox.recv_timeout(next_beat.saturating_duration_since(Instant::now())) {
            Ok(Event::Line(line)) => {
                writeln!(log_file, "{line}").with_context(|| format!("writing {}", log.display()))?;
                if let Some(text) = watch.read(&line) {
                    progress(&text);
                }
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Ok(Event::Ended(status)) => {
                let status = status.with_context(|| format!("{what}: waiting for its end"))?;
                if status.success() {
                    return Ok(());
                }
                let tail: Vec<String> = tail.into();
                bail!("{what} failed ({status}); its last lines (all of them: {}):\n{}", log.display(), tail.join("\n"))
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(limit) = watch.limit().filter(|limit| started.elapsed() > *limit) {
                    kill(pid, Signal::SIGKILL).ok();
                    bail!("{what}: not done after {}, killed; see {}", duration(limit), log.display());
                }
                next_beat += watch.heartbeat();
                let doing = watch.summary().map(|text| format!(", {text}")).unwrap_or_default();
                progress(&format!("  still {what}: {}{doing}", duration(started.elapsed())));
            }
            Err(RecvTimeoutError::Disconnected) => bail!("{what}: lost sight of it"),
        }
    }
}

fn read_lines(stream: impl Read + Send + 'static, events: Sender<Event>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while let Ok(1..) = lines.read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if events.send(Event::Line(text)).is_err() {
                return;
            }
            line.clear();
        }
    })
}

fn shorten(line: &str) -> String {
    match line.char_indices().nth(90) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

/// `7 s`, `2 min 05 s`.
pub(crate) fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds / 60 {
        0 => format!("{seconds} s"),
        minutes => format!("{minutes} min {:02} s", seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, "building it", &folder.path().join("log"), &mut |_| {})
    }

    #[test]
    fn a_failure_tells_what_failed_and_its_last_lines() {
        let error = shell("seq 100; echo no such package >&2; exit 3").unwrap_err().to_string();
        assert!(error.starts_with("building it failed (exit status: 3)"), "{error}");
        assert!(error.contains("no such package") && error.contains("100"), "{error}");
        assert!(!error.contains("\n42\n"), "{error}");
    }

    #[test]
    fn a_missing_program_can_be_told_from_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let command = Command::new("steelyard-no-such-program");
        let error = run(command, "building it", &folder.path().join("log"), &mut |_| {}).unwrap_err();
        assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn success_is_silent() {
        shell("echo fine").unwrap();
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(Duration::from_secs(7)), "7 s");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 05 s");
    }
}
