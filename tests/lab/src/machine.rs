//! Start and stop a machine of the lab: a set of namespaces with our own init as PID 1.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::cgroup::Hierarchies;
use crate::init::Spec;
use crate::layout::{Layout, Member};
use crate::netns;
use crate::wait::wait;

/// Start a machine as `spec` says. Its network namespace must be there.
pub fn start(layout: &Layout, member: Member, spec: &Spec) -> Result<()> {
    let folder = layout.machine(member);
    fs::create_dir_all(&folder)?;
    let spec_file = folder.join("init.json");
    fs::write(&spec_file, serde_json::to_vec_pretty(spec)?)?;
    boot(layout, member)
}

/// Start a machine that was started before, as after a power cut.
pub fn boot(layout: &Layout, member: Member) -> Result<()> {
    if let Some(pid) = pid(layout, member) {
        bail!("{member} runs already, as process {pid}");
    }
    Hierarchies::detect()?.create(&layout.machine_cgroup(member))?;
    let logs = layout.machine_logs(member);
    fs::create_dir_all(&logs)?;
    let log = File::options().create(true).append(true).open(logs.join("init.log"))?;
    let netns = netns::open(&layout.netns(member))?;
    let mut init = Command::new(binary()?);
    init.arg("init").arg(layout.machine(member).join("init.json"));
    // What the person who started the lab has in the environment is none of its machines' business.
    init.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
    init.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = netns::thread(move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        let namespaces =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
        unshare(namespaces).context("failed to make namespaces (are you root?)")?;
        init.spawn().context("failed to start the machine's init")
    })?;
    let pid = i32::try_from(child.id())?;
    let born = born(pid).with_context(|| format!("{member} ended at once; see {}", logs.join("init.log").display()))?;
    fs::write(pid_file(layout, member), format!("{pid} {born}\n"))?;
    Ok(())
}

/// Cut the power: kill PID 1, and with it all processes of the machine.
pub fn kill_machine(layout: &Layout, member: Member) -> Result<()> {
    let hierarchies = Hierarchies::detect()?;
    let cgroup = layout.machine_cgroup(member);
    if let Some(pid) = pid(layout, member) {
        // A frozen process does not die.
        hierarchies.thaw(&cgroup)?;
        match kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("failed to kill {member}")),
        }
    }
    wait(&format!("{member} to end"), Duration::from_secs(30), || Ok(pid(layout, member).is_none().then_some(())))?;
    hierarchies.remove(&cgroup)
}

/// The machine's PID 1 as the host sees it, if it runs.
pub fn pid(layout: &Layout, member: Member) -> Option<Pid> {
    let text = fs::read_to_string(pid_file(layout, member)).ok()?;
    let (pid, then) = text.trim().split_once(' ')?;
    let pid = Pid::from_raw(pid.parse().ok()?);
    // The number may belong to somebody else by now.
    if born(pid.as_raw()).is_some_and(|born| born == then) {
        return Some(pid);
    }
    // If this very process started it, it must also collect it.
    waitpid(pid, Some(WaitPidFlag::WNOHANG)).ok();
    None
}

/// When a process was started (proc(5) stat, field 22), unless it is dead.
fn born(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state is the first field after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18).map(str::to_owned)).flatten()
}

fn pid_file(layout: &Layout, member: Member) -> PathBuf {
    layout.machine(member).join("pid")
}

/// The lab's own program, which also is the init of its machines and the guardian of its tests.
pub fn binary() -> Result<PathBuf> {
    const NAME: &str = "steelyard-lab";
    if let Some(path) = std::env::var_os("STEELYARD_LAB_BIN").map(PathBuf::from) {
        if path.is_file() {
            return Ok(path);
        }
        bail!("STEELYARD_LAB_BIN names {}, which is no file", path.display());
    }
    let own = std::env::current_exe()?;
    if own.file_name().is_some_and(|name| name == NAME) {
        return Ok(own);
    }
    // A test: target/<profile>/deps/<test>; cargo puts the program into target/<profile>.
    own.ancestors().skip(1).take(2).map(|folder| folder.join(NAME)).find(|path| path.is_file()).with_context(|| {
        format!(
            "the lab's program is not built beside {}; run `cargo build -p steelyard-lab` or set STEELYARD_LAB_BIN",
            own.display()
        )
    })
}
