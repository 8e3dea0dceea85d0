//! Settings of the kernel under `/proc/sys`, with a file of what was there before, so that they can be put back.
//!
//! The file is below `/run`: it goes with a reboot, and so do the settings. What was there before is written down before
//! anything is changed, and never replaced by a value of ours.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where it is written down what was there before.
pub const STATE_FILE: &str = "/run/steelyard/sysctls.json";

/// Why settings are not changed or put back.
#[derive(Debug, Error)]
pub enum SysctlsError {
    /// What an earlier run wrote down cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no account of ours.
    #[error("{} is not what was written", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// What was there before cannot be written down.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a setting is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its path below `/proc/sys`.
    pub name: &'static str,
    value: u64,
    may_be_more: bool,
}

impl Rule {
    /// This value.
    pub const fn exactly(name: &'static str, value: u64) -> Self {
        Self { name, value, may_be_more: false }
    }

    /// This value, or what is there if that is more.
    pub const fn at_least(name: &'static str, value: u64) -> Self {
        Self { name, value, may_be_more: true }
    }
}

/// What became of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was so already.
    Kept(u64),
    /// It was another value.
    Changed {
        /// What it was.
        before: u64,
        /// What it is, as the kernel has it.
        now: u64,
    },
    /// It is as it was, because of this error.
    Refused(String),
}

/// One setting in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    before: u64,
    /// What we set. If it is something else by now, somebody else set it, and it is not ours to put back.
    set: u64,
}

/// The settings and the file.
#[derive(Debug)]
pub struct Sysctls {
    root: PathBuf,
    file: PathBuf,
    changed: BTreeMap<String, Changed>,
}

impl Sysctls {
    /// Reads what earlier runs wrote down; without a file nothing was changed.
    ///
    /// # Errors
    /// When there is a file that cannot be read.
    pub fn open(file: &Path) -> Result<Self, SysctlsError> {
        Self::open_at(Path::new("/proc/sys"), file)
    }

    fn open_at(root: &Path, file: &Path) -> Result<Self, SysctlsError> {
        let changed = match fs::read(file) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| SysctlsError::Parse { path: file.to_owned(), source })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(SysctlsError::Read { path: file.to_owned(), source }),
        };
        Ok(Self { root: root.to_owned(), file: file.to_owned(), changed })
    }

    /// Whether the kernel has a setting.
    pub fn exists(&self, name: &str) -> bool {
        self.root.join(name).exists()
    }

    /// Makes a setting what the rule says.
    ///
    /// # Errors
    /// When what was there before cannot be written down; then nothing was changed.
    pub fn apply(&mut self, rule: &Rule) -> Result<Outcome, SysctlsError> {
        let before = match self.get(rule.name) {
            Ok(before) => before,
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        if before == rule.value || (rule.may_be_more && before > rule.value) {
            return Ok(Outcome::Kept(before));
        }
        let known = self.changed.get(rule.name).copied();
        let first = known.filter(|known| known.set == before).map_or(before, |known| known.before);
        self.changed.insert(rule.name.to_owned(), Changed { before: first, set: rule.value });
        self.save()?;
        let now = self.set(rule.name, rule.value).and_then(|()| self.get(rule.name));
        // The kernel may round, and may silently keep what it has.
        let entry = match &now {
            Ok(now) if *now != before => Some(Changed { before: first, set: *now }),
            Ok(_) | Err(_) => known,
        };
        match entry {
            Some(entry) => self.changed.insert(rule.name.to_owned(), entry),
            None => self.changed.remove(rule.name),
        };
        self.save()?;
        Ok(match now {
            Ok(now) if now == before => Outcome::Refused(format!("the kernel keeps {before}")),
            Ok(now) => Outcome::Changed { before, now },
            Err(error) => Outcome::Refused(error.to_string()),
        })
    }

    /// Puts back what was there before the first change, and tells what became of each setting. One that somebody else
    /// changed since is left alone.
    ///
    /// # Errors
    /// When the file cannot be written; the settings are put back all the same.
    pub fn restore(&mut self) -> Result<Vec<(String, Outcome)>, SysctlsError> {
        self.restore_but(&[])
    }

    /// As [`Self::restore`], save the settings for which there is a rule.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub fn restore_but(&mut self, rules: &[Rule]) -> Result<Vec<(String, Outcome)>, SysctlsError> {
        let has_rule = |name: &str| rules.iter().any(|rule| rule.name == name);
        let (kept, over): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.changed).into_iter().partition(|(name, _)| has_rule(name));
        self.changed = kept;
        if over.is_empty() {
            return Ok(Vec::new());
        }
        let mut outcomes = Vec::new();
        for (name, Changed { before, set }) in over {
            let outcome = match self.get(&name) {
                Ok(now) if now != set => Outcome::Kept(now),
                Ok(now) => match self.set(&name, before) {
                    Ok(()) => Outcome::Changed { before: now, now: before },
                    Err(error) => Outcome::Refused(error.to_string()),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Outcome::Refused(error.to_string()),
            };
            if matches!(outcome, Outcome::Refused(_)) {
                // For another attempt, with more rights perhaps.
                self.changed.insert(name.clone(), Changed { before, set });
            }
            outcomes.push((name, outcome));
        }
        self.save()?;
        Ok(outcomes)
    }

    fn get(&self, name: &str) -> io::Result<u64> {
        let text = fs::read_to_string(self.root.join(name))?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is no number", text.trim())))
    }

    fn set(&self, name: &str, value: u64) -> io::Result<()> {
        // Opened without creating: what the kernel does not have is not there.
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(self.root.join(name))?;
        io::Write::write_all(&mut file, value.to_string().as_bytes())
    }

    fn save(&self) -> Result<(), SysctlsError> {
        let write = || -> io::Result<()> {
            if self.changed.is_empty() {
                return match fs::remove_file(&self.file) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    Ok(()) | Err(_) => Ok(()),
                };
            }
            if let Some(folder) = self.file.parent() {
                fs::create_dir_all(folder)?;
            }
            // Whole or not at all.
            let scratch = self.file.with_extension("new");
            fs::write(&scratch, serde_json::to_vec_pretty(&self.changed)?)?;
            fs::rename(&scratch, &self.file)
        };
        write().map_err(|source| SysctlsError::Write { path: self.file.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Rule = Rule::at_least("net/max", 100);
    const TIMEOUT: Rule = Rule::exactly("net/timeout", 60);

    struct Machine {
        folder: tempfile::TempDir,
    }

    impl Machine {
        fn new(max: &str, timeout: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("net")).unwrap();
            let machine = Self { folder };
            machine.write("net/max", max);
            machine.write("net/timeout", timeout);
            machine
        }

        fn write(&self, name: &str, value: &str) {
            fs::write(self.folder.path().join(name), value).unwrap();
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.folder.path().join(name)).unwrap()
        }

        /// As another run of the program.
        fn sysctls(&self) -> Sysctls {
            Sysctls::open_at(self.folder.path(), &self.folder.path().join("run/state.json")).unwrap()
        }
    }

    #[test]
    fn what_was_there_first_is_put_back_however_often_it_was_set() {
        let machine = Machine::new("50\n", "432000\n");
        assert_eq!(machine.sysctls().apply(&MAX).unwrap(), Outcome::Changed { before: 50, now: 100 });
        assert_eq!(machine.sysctls().apply(&MAX).unwrap(), Outcome::Kept(100));
        let more = Rule::at_least("net/max", 200);
        assert_eq!(machine.sysctls().apply(&more).unwrap(), Outcome::Changed { before: 100, now: 200 });
        machine.sysctls().apply(&TIMEOUT).unwrap();
        assert_eq!(machine.sysctls().restore().unwrap().len(), 2);
        assert_eq!((machine.read("net/max"), machine.read("net/timeout")), ("50".to_owned(), "432000".to_owned()));
        assert!(machine.sysctls().restore().unwrap().is_empty());
        assert!(!machine.folder.path().join("run/state.json").exists());
    }

    #[test]
    fn what_no_rule_asks_for_any_more_is_put_back_and_the_rest_stays() {
        let machine = Machine::new("50", "432000");
        machine.sysctls().apply(&MAX).unwrap();
        machine.sysctls().apply(&TIMEOUT).unwrap();
        let put_back = machine.sysctls().restore_but(&[MAX]).unwrap();
        assert_eq!(put_back, [("net/timeout".to_owned(), Outcome::Changed { before: 60, now: 432_000 })]);
        assert_eq!((machine.read("net/max"), machine.read("net/timeout")), ("100".to_owned(), "432000".to_owned()));
        assert_eq!(machine.sysctls().restore_but(&[MAX]).unwrap(), []);
        machine.sysctls().restore().unwrap();
        assert_eq!(machine.read("net/max"), "50");
    }

    #[test]
    fn a_limit_is_never_lowered() {
        let machine = Machine::new("5000", "60");
        assert_eq!(machine.sysctls().apply(&MAX).unwrap(), Outcome::Kept(5000));
        assert_eq!(machine.sysctls().apply(&TIMEOUT).unwrap(), Outcome::Kept(60));
        assert!(machine.sysctls().restore().unwrap().is_empty());
    }

    #[test]
    fn what_somebody_else_set_since_is_left_alone() {
        let machine = Machine::new("50", "10");
        machine.sysctls().apply(&TIMEOUT).unwrap();
        machine.write("net/timeout", "77");
        assert_eq!(machine.sysctls().restore().unwrap(), [("net/timeout".to_owned(), Outcome::Kept(77))]);
        assert_eq!(machine.read("net/timeout"), "77");
        // And what they set is what was there before, if we come again.
        machine.sysctls().apply(&TIMEOUT).unwrap();
        machine.sysctls().restore().unwrap();
        assert_eq!(machine.read("net/timeout"), "77");
    }

    #[test]
    fn a_setting_that_is_not_there_or_no_number_is_no_failure() {
        let machine = Machine::new("many", "10");
        let absent = Rule::exactly("net/absent", 1);
        assert!(matches!(machine.sysctls().apply(&absent).unwrap(), Outcome::Refused(_)));
        assert!(matches!(machine.sysctls().apply(&MAX).unwrap(), Outcome::Refused(_)));
        assert!(!machine.folder.path().join("net/absent").exists());
        assert!(machine.sysctls().restore().unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_put_back_now_is_not_forgotten() {
        let machine = Machine::new("50", "10");
        machine.sysctls().apply(&TIMEOUT).unwrap();
        machine.write("net/timeout", "unreadable");
        assert!(matches!(machine.sysctls().restore().unwrap().as_slice(), [(_, Outcome::Refused(_))]));
        machine.write("net/timeout", "60");
        machine.sysctls().restore().unwrap();
        assert_eq!(machine.read("net/timeout"), "10");
    }

    #[test]
    fn a_file_that_is_not_ours_stops_everything() {
        let machine = Machine::new("50", "10");
        fs::create_dir(machine.folder.path().join("run")).unwrap();
        machine.write("run/state.json", "nonsense");
        let path = machine.folder.path().join("run/state.json");
        assert!(matches!(Sysctls::open_at(machine.folder.path(), &path), Err(SysctlsError::Parse { .. })));
    }
}
