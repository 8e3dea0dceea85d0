//! Control groups of a lab, v1 and v2.
//!
//! Every process of a lab is below `/steelyard-<lab>` in every hierarchy, so whatever happened to the run that
//! started them, they can be found, frozen and killed. A machine's programs sit in `<machine>/system`, its pods in
//! `<machine>/kubepods`: with v2 only leaves may hold processes once controllers are handed down.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait;

/// The folder of a machine's own programs below its cgroup.
const SYSTEM: &str = "system";

/// Where the hierarchies of this machine are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// v1: mount point and its controllers (or `name=systemd`).
    v1: Vec<(PathBuf, BTreeSet<String>)>,
    /// The one v2 hierarchy; beside v1 ones (hybrid) it has no controllers.
    v2: Option<PathBuf>,
}

impl Hierarchies {
    /// Read the mount table.
    pub fn detect() -> Result<Self> {
        let found = Self::from_mountinfo(
            &fs::read_to_string("/proc/self/mountinfo").context("failed to read the mount table")?,
        );
        if found.v1.is_empty() && found.v2.is_none() {
            bail!("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup");
        }
        Ok(found)
    }

    /// From lines of proc(5) mountinfo: `36 35 98:0 /root /mount/point rw - type source super,options`.
    pub fn from_mountinfo(mountinfo: &str) -> Self {
        let mut found = Self { v1: Vec::new(), v2: None };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) if found.v2.is_none() => found.v2 = Some(point),
                (Some("cgroup"), Some(options)) => {
                    let controllers: BTreeSet<String> = options
                        .split(',')
                        .filter(|o| !matches!(*o, "rw" | "ro" | "xattr"))
                        .map(str::to_owned)
                        .collect();
                    if !found.v1.iter().any(|(_, known)| *known == controllers) {
                        found.v1.push((point, controllers));
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Whether controllers are on v2.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }

    fn roots(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().map(|(point, _)| point.as_path()).chain(self.v2.as_deref())
    }

    /// Make the folders of one machine (`<lab>/<machine>`, relative).
    pub fn create(&self, cgroup: &str) -> Result<()> {
        for (root, controllers) in &self.v1 {
            let mut folder = root.clone();
            for part in Path::new(cgroup).iter().chain([SYSTEM.as_ref()]) {
                let parent = folder.clone();
                folder.push(part);
                make(&folder)?;
                if controllers.contains("cpuset") {
                    // A cpuset without CPUs or memory nodes takes no process.
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let value = fs::read_to_string(parent.join(file))?;
                        fs::write(folder.join(file), value.trim())
                            .with_context(|| format!("failed to set {file} of {}", folder.display()))?;
                    }
                }
            }
        }
        if let Some(root) = &self.v2 {
            let mut folder = root.clone();
            for part in Path::new(cgroup) {
                delegate(&folder)?;
                folder.push(part);
                make(&folder)?;
            }
            delegate(&folder)?;
            make(&folder.join(SYSTEM))?;
        }
        Ok(())
    }

    /// Put the calling process into a machine's `system` folder.
    pub fn join(&self, cgroup: &str) -> Result<()> {
        // 0 is whoever writes it.
        self.put(cgroup, 0)
    }

    /// Put a process into a machine's `system` folder.
    pub fn put(&self, cgroup: &str, pid: i32) -> Result<()> {
        for root in self.roots() {
            let procs = root.join(cgroup).join(SYSTEM).join("cgroup.procs");
            fs::write(&procs, pid.to_string()).with_context(|| format!("failed to enter {}", procs.display()))?;
        }
        Ok(())
    }

    /// Stop every process below `cgroup`, until thawed.
    pub fn freeze(&self, cgroup: &str) -> Result<()> {
        self.set_frozen(cgroup, true)
    }

    /// Undo [`Hierarchies::freeze`].
    pub fn thaw(&self, cgroup: &str) -> Result<()> {
        self.set_frozen(cgroup, false)
    }

    /// Whether `cgroup` is frozen.
    pub fn is_frozen(&self, cgroup: &str) -> bool {
        self.freezer(cgroup).is_some_and(|(file, frozen, _)| {
            fs::read_to_string(file).is_ok_and(|state| matches!(state.trim(), "FREEZING") || state.trim() == frozen)
        })
    }

    /// The file that freezes, what to write into it to freeze, and to thaw.
    fn freezer(&self, cgroup: &str) -> Option<(PathBuf, &'static str, &'static str)> {
        match self.v1.iter().find(|(_, controllers)| controllers.contains("freezer")) {
            Some((root, _)) => Some((root.join(cgroup).join("freezer.state"), "FROZEN", "THAWED")),
            None => Some((self.v2.as_ref()?.join(cgroup).join("cgroup.freeze"), "1", "0")),
        }
    }

    fn set_frozen(&self, cgroup: &str, frozen: bool) -> Result<()> {
        let (file, freeze, thaw) = self.freezer(cgroup).context("no cgroup hierarchy here can freeze processes")?;
        fs::write(&file, if frozen { freeze } else { thaw })
            .with_context(|| format!("failed to write {}", file.display()))
    }

    /// Processes anywhere below `cgroup`, in any hierarchy.
    pub fn processes(&self, cgroup: &str) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for folder in self.folders(cgroup) {
            // A folder that just went away holds no process.
            let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            // 0: a process that this PID namespace cannot see.
            found.extend(procs.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
        found
    }

    /// Kill every process below `cgroup`, wait until they are gone, and remove the folders.
    pub fn remove(&self, cgroup: &str) -> Result<()> {
        // A frozen process does not die: thaw whatever was frozen, by us or by a container engine.
        for folder in self.folders(cgroup) {
            fs::write(folder.join("freezer.state"), "THAWED").ok();
            fs::write(folder.join("cgroup.freeze"), "0").ok();
        }
        wait(&format!("the processes of {cgroup} to end"), Duration::from_secs(30), || {
            let processes = self.processes(cgroup);
            kill_all(&processes)?;
            Ok(processes.is_empty().then_some(()))
        })?;
        wait(&format!("the folders of cgroup {cgroup} to go"), Duration::from_secs(10), || {
            let mut gone = true;
            for folder in self.folders(cgroup) {
                match fs::remove_dir(&folder) {
                    Err(error) if error.kind() != ErrorKind::NotFound => gone = false,
                    _ => {}
                }
            }
            Ok(gone.then_some(()))
        })
    }

    /// Whether anything of `cgroup` is there.
    pub fn exists(&self, cgroup: &str) -> bool {
        self.roots().any(|root| root.join(cgroup).exists())
    }

    /// Folders of a pod (named after its UID) below a machine's cgroup.
    pub(crate) fn pod_processes(&self, cgroup: &str, uid: &str) -> BTreeSet<i32> {
        let pod =
            self.folders(cgroup).into_iter().filter(|f| f.file_name().is_some_and(|n| n == &*format!("pod{uid}")));
        let roots: Vec<PathBuf> = self.roots().map(Path::to_owned).collect();
        let mut found = BTreeSet::new();
        for folder in pod {
            for root in &roots {
                if let Ok(relative) = folder.strip_prefix(root) {
                    found.extend(self.processes(&relative.to_string_lossy()));
                }
            }
        }
        found
    }

    /// `cgroup` and all below it, children first, in every hierarchy.
    fn folders(&self, cgroup: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for root in self.roots() {
            descend(&root.join(cgroup), &mut found);
        }
        found
    }
}

/// SIGKILL; a process that is gone is fine.
pub fn kill_all(processes: &BTreeSet<i32>) -> Result<()> {
    for pid in processes {
        match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("failed to kill process {pid}")),
        }
    }
    Ok(())
}

fn descend(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        descend(&entry.path(), found);
    }
    found.push(folder.to_owned());
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("failed to create cgroup {} (are you root?)", folder.display()))
}

/// What a kubelet needs. The root's controllers stay on when the lab is gone, so no others.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// Hand the controllers that the lab needs down to the children of a v2 folder.
fn delegate(folder: &Path) -> Result<()> {
    let available = fs::read_to_string(folder.join("cgroup.controllers"))?;
    let handed_down = fs::read_to_string(folder.join("cgroup.subtree_control"))?;
    let handed_down: BTreeSet<&str> = handed_down.split_whitespace().collect();
    let wanted = available.split_whitespace().filter(|c| CONTROLLERS.contains(c) && !handed_down.contains(c));
    for controller in wanted {
        // `io` and `hugetlb` may refuse; without them only limits on those are missing.
        let done = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        if let (Err(error), "cpu" | "cpuset" | "memory" | "pids") = (done, controller) {
            return Err(error).with_context(|| {
                format!(
                    "failed to enable the {controller} controller below {}: if it holds processes of its own \
                     (a container without a cgroup of its own), move them into a child first",
                    folder.display()
                )
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_mounts_are_read() {
        let found = Hierarchies::from_mountinfo(
            "30 22 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
             31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
             32 30 0:27 / /elsewhere rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             33 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             34 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        let points: Vec<_> = found.roots().map(|root| root.to_str().unwrap()).collect();
        assert_eq!(points, ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"]);
        assert!(!found.is_v2());
    }

    #[test]
    fn unified_mounts_are_read() {
        let found =
            Hierarchies::from_mountinfo("29 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(found.is_v2());
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup")));
    }
}
