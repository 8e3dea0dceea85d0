//! Take a lab down, whoever brought it up and however far it came.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cgroup::{self, Hierarchies};
use crate::layout::{Layout, MOST_NODES, Member};
use crate::wait::wait;
use crate::{machine, netns};

/// Take a lab down, also one that crashed or is half up. Nothing is left but logs.
pub fn down(layout: &Layout) -> Result<()> {
    if !layout.state().exists() {
        return take_down(layout).map(drop);
    }
    let _lock = Lock::take(layout)?;
    take_down(layout).map(drop)
}

/// As [`down`], and remove the lab's folder too.
pub fn purge(layout: &Layout) -> Result<()> {
    if !layout.state().exists() {
        return take_down(layout).map(drop);
    }
    let _lock = Lock::take(layout)?;
    take_down(layout)?;
    remove_folder(layout.state())?;
    // The folder of all labs, if this was the last.
    layout.state().parent().map(fs::remove_dir);
    Ok(())
}

/// Remove everything of a lab, whoever made it; whether there was anything.
pub(crate) fn take_down(layout: &Layout) -> Result<bool> {
    let hierarchies = Hierarchies::detect()?;
    let namespaces: Vec<String> = netns::list()?.into_iter().filter(|name| layout.owns_netns(name)).collect();
    let found = hierarchies.exists(&layout.cgroup()) || !namespaces.is_empty() || layout.record().exists();

    kill_inhabitants(&namespaces)?;
    hierarchies.remove(&layout.cgroup())?;
    // An init that was just being started had not joined the cgroup when we looked.
    kill_inhabitants(&namespaces)?;
    hierarchies.remove(&layout.cgroup())?;
    for member in Member::all(MOST_NODES) {
        let ended = || Ok(machine::pid(layout, member).is_none().then_some(()));
        wait(&format!("{member} to end"), Duration::from_secs(10), ended)?;
        // Whoever collects orphans on this machine does so soon, or never: that is nothing to fail for.
        let gone = || Ok(machine::is_gone(layout, member).then_some(()));
        wait("the machine's init to be collected", Duration::from_secs(2), gone).ok();
    }
    for name in &namespaces {
        netns::delete(name)?;
    }
    netns::tidy_folder();
    let entries = match fs::read_dir(layout.state()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error).context(format!("failed to read {}", layout.state().display())),
    };
    for entry in entries {
        let path = entry?.path();
        if path != layout.logs() && path != layout.lock() {
            remove_folder(&path)?;
        }
    }
    Ok(found)
}

/// Kill whoever is in one of these network namespaces, and wait until all are gone.
fn kill_inhabitants(namespaces: &[String]) -> Result<()> {
    let ours: Vec<(u64, u64)> =
        namespaces.iter().filter_map(|name| fs::metadata(netns::path(name)).ok()).map(|m| (m.dev(), m.ino())).collect();
    wait("the processes in the lab's namespaces to end", Duration::from_secs(30), || {
        let mut inhabitants = BTreeSet::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            // A process that ended meanwhile, or a kernel thread, has none.
            let Ok(namespace) = fs::metadata(entry.path().join("ns/net")) else { continue };
            if ours.contains(&(namespace.dev(), namespace.ino())) {
                inhabitants.insert(pid);
            }
        }
        cgroup::kill_all(&inhabitants)?;
        Ok(inhabitants.is_empty().then_some(()))
    })
}

pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    let removed = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// How long to wait for somebody else who brings the same lab up or down.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Held by whoever brings the lab up, takes it down or changes its machines.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Take it to change something of a lab that is up.
    pub(crate) fn take_of_running(layout: &Layout) -> Result<Self> {
        // Looked for first, since taking the lock makes the folder; and after, since who had the lock may have ended it.
        let recorded = || layout.record().exists();
        let lock = recorded().then(|| Self::take(layout)).transpose()?;
        lock.filter(|_| recorded()).with_context(|| format!("lab {} is not up", layout.name()))
    }

    /// Take it, waiting a while for somebody else to finish.
    pub(crate) fn take(layout: &Layout) -> Result<Self> {
        let path = layout.lock();
        wait(&format!("whoever changes lab {}", layout.name()), LOCK_LIMIT, || {
            fs::create_dir_all(layout.state())
                .with_context(|| format!("failed to create {}", layout.state().display()))?;
            // Keys of the cluster's administrator are below.
            fs::set_permissions(layout.state(), fs::Permissions::from_mode(0o700))?;
            let mut file = File::options().create(true).append(true).open(&path)?;
            if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                bail!("process {} is at it", holder.trim());
            }
            if file.metadata()?.nlink() == 0 {
                // Its holder removed the lab's folder meanwhile.
                return Ok(None);
            }
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            Ok(Some(Self { _file: file }))
        })
    }
}
