//! The Go modules that pin what is built: their files are part of this crate, so that the lab works from anywhere.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cache::Key;

/// A folder of `tests/lab/programs/`.
pub(super) struct Module {
    pub(super) name: &'static str,
    pub(super) files: &'static [(&'static str, &'static str)],
}

macro_rules! module {
    ($name:literal: $($file:literal),+) => {
        Module {
            name: $name,
            files: &[$(($file, include_str!(concat!("../../programs/", $name, "/", $file)))),+],
        }
    };
}

pub(super) const MODULES: &[Module] = &[
    module!("cni": "go.mod", "go.sum"),
    module!("containerd": "go.mod", "go.sum"),
    module!("coredns": "go.mod", "go.sum"),
    module!("etcd": "go.mod", "go.sum", "main.go"),
    module!("helm": "go.mod", "go.sum"),
    module!("kubernetes": "go.mod", "go.sum", "tools.go"),
    module!("runc": "go.mod", "go.sum"),
];

impl Module {
    /// Writes the module below `folder`.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let folder = folder.join(self.name);
        fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        for (file, content) in self.files {
            let path = folder.join(file);
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    pub(super) fn add_to(&self, key: Key) -> Key {
        self.files.iter().fold(key.with(self.name), |key, (file, content)| key.with(file).with(content))
    }

    /// The version after `go` in go.mod: the oldest Go that takes this module.
    pub(super) fn needs_go(&self) -> Option<GoVersion> {
        let (_, go_mod) = self.files.iter().find(|(file, _)| *file == "go.mod")?;
        go_mod.lines().find_map(|line| GoVersion::parse(line.strip_prefix("go ")?))
    }
}

/// The oldest Go that takes all modules, and the module that asks for it.
pub(super) fn needed_go() -> Option<(GoVersion, &'static str)> {
    MODULES.iter().filter_map(|module| Some((module.needs_go()?, module.name))).max()
}

/// A release of Go, `1.26.8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GoVersion(u32, u32, u32);

impl GoVersion {
    /// Reads `1.26`, `1.26.8`, `go1.26.8`, `go1.27rc1` (as 1.27.0).
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut numbers = text.strip_prefix("go").unwrap_or(text).split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        Some(Self(numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
    }
}

impl std::fmt::Display for GoVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_read_and_ordered() {
        let version = |text| GoVersion::parse(text).unwrap();
        assert_eq!(version("go1.26.8"), GoVersion(1, 26, 8));
        assert_eq!(version("1.26"), GoVersion(1, 26, 0));
        assert_eq!(version("go1.27rc1"), GoVersion(1, 27, 0));
        assert!(version("1.9.9") < version("1.26.0"));
        assert_eq!(GoVersion::parse("devel"), None);
    }

    #[test]
    fn every_module_says_which_go_it_needs_and_is_pinned() {
        for module in MODULES {
            assert!(module.needs_go() >= GoVersion::parse("1.26"), "{}", module.name);
            let (_, sums) = module.files.iter().find(|(file, _)| *file == "go.sum").unwrap();
            assert!(sums.lines().count() > 10, "{}: go.sum is not complete", module.name);
        }
    }

    #[test]
    fn every_folder_on_disk_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let module = MODULES.iter().find(|module| module.name == name).unwrap_or_else(|| panic!("{name}"));
            let mut on_disk: Vec<_> =
                fs::read_dir(entry.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
            on_disk.sort();
            assert_eq!(on_disk, module.files.iter().map(|(file, _)| (*file).to_owned()).collect::<Vec<_>>(), "{name}");
        }
    }
}
