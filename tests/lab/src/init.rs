//! PID 1 of a machine (the control plane, a node): the hidden sub-command `steelyard-lab init SPEC`.
//!
//! It runs in mount, PID, UTS, IPC and network namespaces that its parent made. It gives the machine a view of the
//! file system in which nothing can be written outside the lab's state folder, starts the programs of its
//! specification as their conditions come true, starts those anew that die, and reaps orphans (the kubelet does not).
//! Killing it is a power cut: the kernel kills everything else in the PID namespace and drops all mounts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname, setsid};
use serde::{Deserialize, Serialize};

use crate::cgroup::Hierarchies;
use crate::layout::MASKED;
use crate::mounts;

/// A program that died is started again after this time.
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// Between two looks at conditions that programs wait for.
const PERIOD_MS: u16 = 50;

/// Kernel settings that are the whole machine's, and the values that the kubelet insists on. It gets to see files with
/// these values, so that it does not change the settings of the machine.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1\n"),
    ("vm/panic_on_oom", "0\n"),
    ("kernel/panic", "10\n"),
    ("kernel/panic_on_oops", "1\n"),
    ("kernel/keys/root_maxkeys", "1000000\n"),
    ("kernel/keys/root_maxbytes", "25000000\n"),
];

/// What a machine runs and sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its host name.
    pub hostname: String,
    /// Its cgroup, relative to each hierarchy's root.
    pub cgroup: String,
    /// The only folder on the host's file systems that it can write to.
    pub writable: PathBuf,
    /// Folders of the host (source) that appear in the masked places (target).
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Where the output of its programs goes.
    pub logs: PathBuf,
    /// What it runs.
    pub programs: Vec<Program>,
}

/// One program of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Names its log file.
    pub name: String,
    /// Path and arguments.
    pub command: Vec<String>,
    /// Variables beside those of the init.
    pub env: Vec<(String, String)>,
    /// It is started once all of these hold.
    pub after: Vec<Condition>,
    /// Whether its end is expected, and no reason to start it again unless it failed.
    pub once: bool,
}

/// What a program waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// A file or socket is there.
    Exists(PathBuf),
    /// Somebody accepts connections.
    Accepts(SocketAddr),
    /// A program with `once` ended well.
    Done(String),
}

impl Program {
    /// A program that runs for ever.
    pub fn new(name: &str, command: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let command = command.into_iter().map(Into::into).collect();
        Self { name: name.to_owned(), command, env: Vec::new(), after: Vec::new(), once: false }
    }

    /// Start it only once this holds too.
    #[must_use]
    pub fn after(mut self, condition: Condition) -> Self {
        self.after.push(condition);
        self
    }

    /// A program that ends.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// Set a variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.to_owned(), value.into()));
        self
    }
}

/// Be PID 1. Returns only if the machine could not be set up.
pub fn main(spec: &Path) -> Result<()> {
    if std::process::id() != 1 {
        bail!("init is what the lab runs as PID 1 of its machines; it is of no use by hand");
    }
    let spec: Spec = serde_json::from_slice(&fs::read(spec)?).context("failed to read the specification")?;
    setsid().ok();
    Hierarchies::detect()?.join(&spec.cgroup)?;
    sethostname(&spec.hostname)?;
    set_up_mounts(&spec)?;
    std::env::set_current_dir("/")?;
    supervise(&spec)
}

fn set_up_mounts(spec: &Spec) -> Result<()> {
    let none = None::<&str>;
    let apply = |what: &str, source: Option<&Path>, target: &Path, kind: Option<&str>, flags: MsFlags| {
        mount(source, target, kind, flags, none).with_context(|| format!("failed to {what} {}", target.display()))
    };
    let bind =
        |source: &Path, target: &Path| apply("bind to", Some(source), target, None, MsFlags::MS_BIND | MsFlags::MS_REC);
    let root = Path::new("/");
    apply("make private", None, root, None, MsFlags::MS_PRIVATE | MsFlags::MS_REC)?;
    apply("mount", Some(Path::new("proc")), Path::new("/proc"), Some("proc"), MsFlags::empty())?;

    // Before anything is masked: the state folder stays writable while the rest of the file system does not.
    bind(&spec.writable, &spec.writable)?;
    for masked in MASKED.map(Path::new) {
        if masked.is_dir() {
            apply("mount", Some(Path::new("tmpfs")), masked, Some("tmpfs"), MsFlags::empty())?;
        }
    }
    // The network part of /sys is that of the namespace of whoever mounts it; the cgroups below move over.
    let (sys, cgroups, aside) = (Path::new("/sys"), Path::new("/sys/fs/cgroup"), Path::new("/run/cgroup"));
    fs::create_dir_all(aside)?;
    bind(cgroups, aside)?;
    apply("mount", Some(Path::new("sysfs")), sys, Some("sysfs"), MsFlags::empty())?;
    bind(aside, cgroups)?;
    umount2(aside, MntFlags::MNT_DETACH)?;
    fs::remove_dir(aside)?;

    let settings = Path::new("/run/kernel-settings");
    for (key, value) in KERNEL_SETTINGS {
        let (file, target) = (settings.join(key.replace('/', ".")), Path::new("/proc/sys").join(key));
        fs::create_dir_all(settings)?;
        fs::write(&file, value)?;
        if target.exists() {
            bind(&file, &target)?;
        }
    }
    for (source, target) in &spec.binds {
        fs::create_dir_all(source)?;
        fs::create_dir_all(target)?;
        bind(source, target)?;
    }
    let mut kept: Vec<PathBuf> = ["/dev", "/proc", "/sys"].into_iter().chain(MASKED).map(PathBuf::from).collect();
    kept.extend(spec.binds.iter().map(|(_, target)| target.clone()));
    // The mount table names it without symbolic links.
    kept.push(fs::canonicalize(&spec.writable)?);
    mounts::make_read_only(&kept)?;
    // As systemd leaves it: containers may ask for mounts that propagate.
    apply("make shared", None, root, None, MsFlags::MS_SHARED | MsFlags::MS_REC)
}

/// Where a program stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// For its conditions, and not before this time.
    Waits(Instant),
    Runs(Pid),
    Done,
}

fn supervise(spec: &Spec) -> Result<()> {
    fs::create_dir_all(&spec.logs)?;
    // Children do not inherit this: `Command` clears the mask.
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let now = Instant::now();
    let mut states: BTreeMap<&str, State> =
        spec.programs.iter().map(|p| (p.name.as_str(), State::Waits(now))).collect();
    loop {
        while signals.read_signal()?.is_some() {}
        reap(spec, &mut states);
        for program in &spec.programs {
            let Some(State::Waits(until)) = states.get(program.name.as_str()).copied() else { continue };
            if Instant::now() < until || !program.after.iter().all(|condition| holds(condition, &states)) {
                continue;
            }
            let state = match start(program, &spec.logs) {
                Ok(pid) => {
                    say(&format!("{} runs as process {pid}", program.name));
                    State::Runs(pid)
                }
                Err(error) => {
                    say(&format!("{error:#}"));
                    State::Waits(Instant::now() + RESTART_DELAY)
                }
            };
            states.insert(&program.name, state);
        }
        let waiting = states.values().any(|state| matches!(state, State::Waits(_)));
        let timeout = if waiting { PollTimeout::from(PERIOD_MS) } else { PollTimeout::NONE };
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("failed to wait for signals"),
        }
    }
}

/// Collect whoever ended: our programs and the orphans of others.
fn reap<'a>(spec: &'a Spec, states: &mut BTreeMap<&'a str, State>) {
    loop {
        let (pid, ending, well) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}"), code == 0),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal.to_string(), false),
            _ => return,
        };
        let Some(program) = spec.programs.iter().find(|p| states.get(p.name.as_str()) == Some(&State::Runs(pid)))
        else {
            continue;
        };
        say(&format!("{} ended: {ending}", program.name));
        let next = if program.once && well { State::Done } else { State::Waits(Instant::now() + RESTART_DELAY) };
        states.insert(&program.name, next);
    }
}

fn holds(condition: &Condition, states: &BTreeMap<&str, State>) -> bool {
    match condition {
        Condition::Exists(path) => path.exists(),
        Condition::Accepts(address) => TcpStream::connect_timeout(address, Duration::from_millis(200)).is_ok(),
        Condition::Done(name) => states.get(name.as_str()) == Some(&State::Done),
    }
}

fn start(program: &Program, logs: &Path) -> Result<Pid> {
    let path = logs.join(format!("{}.log", program.name));
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("failed to open {}", path.display()))?;
    let (file, arguments) = program.command.split_first().context("a program without a path")?;
    let mut command = Command::new(file);
    command.args(arguments).envs(program.env.iter().map(|(key, value)| (key, value)));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("failed to start {file}"))?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// A line in the log of the machine's init.
fn say(line: &str) {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    writeln!(std::io::stderr().lock(), "{}.{:03} {line}", time.as_secs(), time.subsec_millis()).ok();
}
