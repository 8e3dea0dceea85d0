//! Network namespaces, made and deleted by `ip`. Their names carry the process that made them, so that those of a run
//! that died are known.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::unistd::{Pid, geteuid};

const PREFIX: &str = "steelyard-cases-";

/// Sees to it that this process can do its work, and clears away what earlier ones left.
pub fn prepare() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("these tests make network namespaces: run them as root".to_owned());
    }
    for leftover in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = leftover.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists()) {
            ip(&["netns", "delete", &name], "")?;
        }
    }
    Ok(())
}

/// Keeps this thread on one processor for as long as it lives. Packets are handled on the processor that sends them, one
/// after another: what was sent before has come before.
pub struct OneProcessor {
    before: CpuSet,
}

impl OneProcessor {
    pub fn take() -> Result<Self, String> {
        let take = || -> nix::Result<Self> {
            let before = sched_getaffinity(Pid::from_raw(0))?;
            let first = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu).unwrap_or(false)).unwrap_or(0);
            let mut one = CpuSet::new();
            one.set(first)?;
            sched_setaffinity(Pid::from_raw(0), &one)?;
            Ok(Self { before })
        };
        take().map_err(|error| format!("failed to stay on one processor: {error}"))
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        // A thread that stays there is slower, not wrong.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

/// A namespace, deleted when dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one; the last part of its name says what it is for.
    pub fn new(purpose: &str) -> Result<Self, String> {
        let name = format!("{PREFIX}{}-{purpose}", std::process::id());
        ip(&["netns", "add", &name], "")?;
        Ok(Self { name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs something in it, in a thread of its own, and waits for it.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let job = self.inside(job);
        let joined = thread::scope(|scope| scope.spawn(job).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs something in it, in a thread of its own.
    pub fn spawn<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        thread::spawn(self.inside(job))
    }

    /// Something that enters it first.
    fn inside<T, F: FnOnce() -> T>(&self, job: F) -> impl FnOnce() -> T + use<T, F> {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace has just been made");
        move || {
            setns(&file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            job()
        }
    }

    /// Runs commands of `ip` in it.
    pub fn ip(&self, commands: &str) -> Result<(), String> {
        ip(&["-n", &self.name, "-batch", "-"], commands)
    }

    /// Sets values under `/proc/sys/net`.
    pub fn set(&self, values: &[(&str, &str)]) -> Result<(), String> {
        self.run(|| {
            for (name, value) in values {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value).map_err(|error| format!("failed to write {value} to {path}: {error}"))?;
            }
            Ok(())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What cannot be deleted now is deleted by the next run.
        let _ = ip(&["netns", "delete", &self.name], "");
    }
}

/// Runs a program with an input.
pub fn run_program(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let failed = |what: &str| format!("{program} {}: {what}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&format!("{error}; apt-get install iproute2 nftables conntrack")))?;
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).map_err(|error| failed(&error.to_string()))?;
    let output = child.wait_with_output().map_err(|error| failed(&error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(&format!("{}, {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
    }
}

fn ip(arguments: &[&str], input: &str) -> Result<(), String> {
    run_program("ip", arguments, input).map(drop)
}
