//! The user's cache folder: what is slow to make and the same for every lab (Go programs, images, base file systems).
//!
//! Entries are folders or files named after a key of everything that determines them, so an entry that is there is right.
//! They are made in a temporary folder beside and renamed when complete; a lock keeps two makers apart.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Takes one line of what is going on, for a person who waits.
pub(crate) type Say<'a> = &'a mut dyn FnMut(&str);

/// Temporary folders begin like this; those left behind by a kill are swept by the next holder of the lock.
const UNFINISHED: &str = "unfinished-";

/// `$STEELYARD_CACHE`, or `steelyard` below `$XDG_CACHE_HOME`, or `~/.cache/steelyard`.
///
/// # Errors
/// When none of the three variables is set.
pub fn folder() -> Result<PathBuf> {
    choose_folder(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn choose_folder(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    if let Some(own) = variable("STEELYARD_CACHE") {
        return Ok(PathBuf::from(own));
    }
    if let Some(xdg) = variable("XDG_CACHE_HOME") {
        return Ok(Path::new(&xdg).join("steelyard"));
    }
    match variable("HOME") {
        Some(home) => Ok(Path::new(&home).join(".cache/steelyard")),
        None => bail!("no cache folder: set STEELYARD_CACHE, XDG_CACHE_HOME or HOME"),
    }
}

/// One part of the cache, locked for as long as this value lives.
pub(crate) struct Part {
    folder: PathBuf,
    _lock: File,
}

impl Part {
    /// Locks the part `name`, waiting for another process that holds it.
    pub(crate) fn lock(name: &str, progress: Say<'_>) -> Result<Self> {
        let folder = folder()?.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("creating the cache folder {}", folder.display()))?;
        let path = folder.join(".lock");
        let lock = File::create(&path).with_context(|| format!("creating the lock {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress(&format!("waiting for another process that fills {}", folder.display()));
                lock.lock().with_context(|| format!("locking {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        let part = Self { folder, _lock: lock };
        part.forget(UNFINISHED, Duration::ZERO)?;
        Ok(part)
    }

    /// The entry `name` of a part, if it is there.
    pub(crate) fn find(part: &str, name: &str) -> Result<Option<PathBuf>> {
        let entry = folder()?.join(part).join(name);
        Ok(entry.exists().then_some(entry))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder `name` by `make`, which fills the temporary folder that it is handed. Nothing happens if it is there.
    pub(crate) fn make_folder(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let target = self.folder.join(name);
        if target.exists() {
            return Ok(target);
        }
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&self.folder)
            .with_context(|| format!("creating a temporary folder in {}", self.folder.display()))?;
        let content = unfinished.path().join("content");
        fs::create_dir(&content).with_context(|| format!("creating {}", content.display()))?;
        make(&content)?;
        fs::rename(&content, &target).with_context(|| format!("renaming into {}", target.display()))?;
        Ok(target)
    }

    /// Removes the entries whose names begin so and that were made longer ago than `age`.
    pub(crate) fn forget(&self, prefix: &str, age: Duration) -> Result<()> {
        let entries = fs::read_dir(&self.folder).with_context(|| format!("reading {}", self.folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", self.folder.display()))?;
            let is_old = || entry.metadata()?.modified().map(|made| made.elapsed().is_ok_and(|passed| passed >= age));
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with(prefix)
                && is_old().with_context(|| format!("looking at {}", path.display()))?
            {
                fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Collects what determines a cache entry. Parts are length-prefixed, so moving a byte between two parts changes the key.
#[derive(Clone)]
pub(crate) struct Key(Sha256);

impl Key {
    /// `version` is raised by hand when the code that makes the entry changes what it makes.
    pub(crate) fn new(kind: &str, version: u32) -> Self {
        Self(Sha256::new()).with(kind).with(version.to_be_bytes())
    }

    #[must_use]
    pub(crate) fn with(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
        self
    }

    /// Sixteen hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        hex(self.0.finalize().get(..8).unwrap_or_default())
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)]) -> PathBuf {
        choose_folder(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))).unwrap()
    }

    #[test]
    fn our_own_variable_wins_then_xdg_then_home() {
        let all = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("STEELYARD_CACHE", "/s")];
        assert_eq!(with(&all), Path::new("/s"));
        assert_eq!(with(&all[..2]), Path::new("/x/steelyard"));
        assert_eq!(with(&all[..1]), Path::new("/h/.cache/steelyard"));
        assert!(choose_folder(|_| None).is_err());
    }

    #[test]
    fn entries_appear_whole_or_not_at_all_and_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let lock = File::create(folder.path().join(".lock")).unwrap();
        let part = Part { folder: folder.path().to_owned(), _lock: lock };
        let failed = part.make_folder("entry", |inside| {
            fs::write(inside.join("half"), "").unwrap();
            bail!("no space")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no space");
        let names = || fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(), [".lock"]);
        for round in 0..2 {
            let made =
                part.make_folder("entry", |inside| Ok(fs::write(inside.join("round"), round.to_string())?)).unwrap();
            assert_eq!(fs::read_to_string(made.join("round")).unwrap(), "0");
        }
        part.forget("entry", Duration::from_secs(3600)).unwrap();
        assert_eq!(names().len(), 2);
        part.forget("entry", Duration::ZERO).unwrap();
        assert_eq!(names(), [".lock"]);
    }

    #[test]
    fn keys_follow_every_part_and_where_it_ends() {
        let key = |parts: &[&str]| parts.iter().fold(Key::new("test", 1), |key, part| key.with(part)).finish();
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        assert_eq!(key(&["ab", "c"]).len(), 16);
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["ab"]), key(&["ab", ""]));
        assert_ne!(Key::new("test", 1).finish(), Key::new("test", 2).finish());
    }
}
