//! Network namespaces of this bench, named after the process that made them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};
use steelyard_lab::{netns, run};

const PREFIX: &str = "steelyard-peers-";

/// Removes what runs left that died.
pub fn clear_leftovers() {
    for name in netns::list().unwrap() {
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists()) {
            netns::delete(&name).unwrap();
        }
    }
}

/// A namespace; gone when dropped.
pub struct Space {
    name: String,
}

impl Space {
    pub fn new(purpose: &str) -> Self {
        let name = format!("{PREFIX}{}-{purpose}", std::process::id());
        netns::create(&name).unwrap();
        let space = Self { name };
        space.ip("link set lo up");
        space
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of `ip` in it.
    pub fn ip(&self, lines: &str) {
        run::run_with_input(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), lines).unwrap();
    }

    /// Sets a value under `/proc/sys/net`.
    pub fn set(&self, name: &str, value: &str) {
        self.within(|| fs::write(format!("/proc/sys/net/{name}"), value).unwrap());
    }

    /// Runs something in it, in a thread of its own.
    pub fn within<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        netns::within(netns::open(&self.name).unwrap(), || Ok(job())).unwrap()
    }

    /// Moves the calling thread into it, for good.
    pub fn enter(&self) {
        setns(netns::open(&self.name).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs a program in it.
    pub fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns::path(&self.name).display())).arg(program).args(arguments);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{program} {arguments:?} in {}: {status}", self.name);
    }

    /// Joins it to another by a link; `name` is what the link is called on both sides.
    pub fn link(&self, name: &str, other: &Self, other_name: &str) {
        self.ip(&format!("link add {name} type veth peer name {other_name} netns {}\nlink set {name} up", other.name));
        other.ip(&format!("link set {other_name} up"));
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = netns::delete(&self.name);
    }
}
