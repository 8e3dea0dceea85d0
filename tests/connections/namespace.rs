//! Network namespaces, gone when dropped, and code that runs inside them.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns};

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Namespace(String);

impl Namespace {
    pub(crate) fn new(test: &str, purpose: &str) -> Self {
        let name = format!("steelyard-conns-{test}-{purpose}");
        // Left behind by a run that was killed.
        let _absent = Command::new("ip").args(["netns", "del", &name]).output();
        program("ip", &["netns", "add", &name], "");
        let namespace = Self(name);
        namespace.ip("link set lo up\n");
        namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// Runs commands of `ip`, one in a line.
    pub(crate) fn ip(&self, commands: &str) {
        program("ip", &["-n", &self.0, "-batch", "-"], commands);
    }

    /// Runs a program.
    pub(crate) fn program(&self, name: &str, arguments: &str) -> String {
        self.run(|| program(name, &arguments.split_whitespace().collect::<Vec<_>>(), ""))
    }

    /// Sets values under `/proc/sys/net`.
    pub(crate) fn set(&self, values: &[(&str, &str)]) {
        self.run(|| {
            for (name, value) in values {
                std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
            }
        });
    }

    /// Runs something inside, and waits for it.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let name = &self.0;
        thread::scope(|scope| {
            let job = || {
                enter(name);
                job()
            };
            scope.spawn(job).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs something inside, in a thread of its own.
    pub(crate) fn spawn<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let name = self.0.clone();
        thread::spawn(move || {
            enter(&name);
            job()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn enter(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).expect("these tests need root and network namespaces");
}

pub(crate) fn program(name: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(name)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}; apt-get install iproute2 nftables conntrack"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {errors} (these tests need root and network namespaces)");
    String::from_utf8(output.stdout).unwrap()
}
