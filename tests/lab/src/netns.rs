//! Network namespaces that have a name: make, open, enter, remove.
//!
//! They are kept where `ip netns` looks for them, so that `ip -n steelyard-lab-node1 addr` works by hand.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

const FOLDER: &str = "/run/netns";

/// The file of the namespace `name`.
pub fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Names of all namespaces.
pub fn list() -> Result<Vec<String>> {
    let entries = match fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("failed to list {FOLDER}")),
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// Make a namespace, loopback up.
pub fn create(name: &str) -> Result<()> {
    make_folder()?;
    let path = path(name);
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    file.with_context(|| format!("failed to create {}", path.display()))?;
    let made = thread(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("failed to make a network namespace (are you root?)")?;
        mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("failed to mount {}", path.display()))
    });
    if made.is_err() {
        delete(name).ok();
    }
    made
}

/// Remove a namespace; one that does not exist is fine.
pub fn delete(name: &str) -> Result<()> {
    let path = path(name);
    // Not a mount point: made by a run that was killed before it mounted.
    while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Leave the folder as it was before the first namespace, once it is empty.
pub fn tidy_folder() {
    if list().is_ok_and(|names| names.is_empty()) {
        while umount2(FOLDER, MntFlags::empty()).is_ok() {}
        fs::remove_dir(FOLDER).ok();
    }
}

/// What `ip netns add` does before the first namespace: mounts below become visible in other mount namespaces.
fn make_folder() -> Result<()> {
    fs::create_dir_all(FOLDER).with_context(|| format!("failed to create {FOLDER}"))?;
    let shared = || mount(None::<&str>, FOLDER, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    if shared().is_err() {
        mount(Some(FOLDER), FOLDER, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .and_then(|()| shared())
            .with_context(|| format!("failed to mount {FOLDER} (are you root?)"))?;
    }
    Ok(())
}

/// Open a namespace, to enter it later even if its name is gone.
pub fn open(name: &str) -> Result<File> {
    File::open(path(name)).with_context(|| format!("no network namespace {name}: is the lab up?"))
}

/// Run `work` in a thread of its own inside the namespace.
pub fn within<T: Send>(netns: impl AsFd + Send, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).context("failed to enter the network namespace")?;
        work()
    })
}

/// Run `work` in a thread that ends with it: what it unshares or enters is nobody else's.
pub(crate) fn thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(anyhow!("the thread panicked: {}", text.unwrap_or("no message")))
        })
    })
}
