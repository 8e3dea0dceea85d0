//! The programs of a cluster, built from published Go modules that are pinned with their checksums.
//!
//! A cold build takes some ten minutes on two cores, so the results live in the user's cache folder, one entry per program
//! named after all that determines it (module files, flags, Go release and platform). Unchanged means there at once.

pub(crate) mod build;
mod modules;
mod recipes;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cache::{Key, Part, Say};
use build::duration;
use modules::MODULES;
pub(crate) use recipes::KUBERNETES_VERSION;
use recipes::{CLUSTER, CONFORMANCE, GOFLAGS, Kind, Recipe};
use tools::Go;

/// The part of the cache folder that is ours.
const PART: &str = "programs";

/// The programs that make a cluster.
#[derive(Debug, Clone)]
pub struct Programs {
    /// All of them, flat (`bin/etcd`), and the CNI plugins in `bin/cni`.
    pub bin: PathBuf,
}

impl Programs {
    /// The path of one program: `etcd`, `cni/ptp`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// The programs of the upstream e2e suite.
#[derive(Debug, Clone)]
pub struct ConformancePrograms {
    /// `e2e.test`, `ginkgo`, `regression-issue-74839`.
    pub bin: PathBuf,
    /// `localhost.crt` and `localhost.key`, which the suite expects in its agnhost image.
    pub files: PathBuf,
}

/// Makes sure that the programs of a cluster are there, building what is not.
///
/// # Errors
/// When Go, the C compiler or libseccomp is missing, or when a build fails: says which program and why.
pub fn ensure(progress: &mut dyn FnMut(&str)) -> Result<Programs> {
    let folder = ensure_set("cluster", CLUSTER, progress, |_, _| Ok(()))?;
    Ok(Programs { bin: folder.join("bin") })
}

/// Makes sure that the programs of the upstream e2e suite are there. Cold, that takes seven minutes more.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_conformance(progress: &mut dyn FnMut(&str)) -> Result<ConformancePrograms> {
    let folder = ensure_set("conformance", CONFORMANCE, progress, |workshop, set| {
        let source = workshop.module_folder("kubernetes", "k8s.io/kubernetes")?.join("test/images/agnhost/porter");
        let files = set.join("files");
        fs::create_dir(&files).with_context(|| format!("creating {}", files.display()))?;
        for name in ["localhost.crt", "localhost.key"] {
            let content = fs::read(source.join(name)).with_context(|| format!("reading {name} of agnhost"))?;
            fs::write(files.join(name), content).with_context(|| format!("writing {name}"))?;
        }
        Ok(())
    })?;
    Ok(ConformancePrograms { bin: folder.join("bin"), files: folder.join("files") })
}

/// Builds what is missing of `recipes` and links all into one folder.
fn ensure_set(
    name: &str,
    recipes: &[Recipe],
    progress: Say<'_>,
    complete: impl FnOnce(&Workshop, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let workshop = Workshop::open(progress)?;
    let keys: Vec<String> = recipes.iter().map(|recipe| recipe.key(&workshop.go.version)).collect();
    let set_key = keys.iter().fold(Key::new("set", 1), |key, part| key.with(part)).finish();
    let set = format!("{name}-{set_key}");
    // Without the lock: what is there is complete, and `up` need not wait for a long build of other programs.
    if let Some(folder) = Part::find(PART, &set)? {
        return Ok(folder);
    }
    let part = Part::lock(PART, progress)?;
    let entries: Vec<String> =
        recipes.iter().zip(&keys).map(|(recipe, key)| format!("{}-{key}", recipe.name())).collect();
    let missing: Vec<(&Recipe, &String)> =
        recipes.iter().zip(&entries).filter(|(_, entry)| !part.folder().join(entry).exists()).collect();
    if missing.iter().any(|(recipe, _)| recipe.kind == Kind::Cgo) {
        tools::check_c()?;
    }
    let started = Instant::now();
    for (number, (recipe, entry)) in missing.iter().enumerate() {
        progress(&format!(
            "building {} from its Go module ({} of {}, {} so far)",
            recipe.name(),
            number + 1,
            missing.len(),
            duration(started.elapsed())
        ));
        workshop.build(&part, recipe, entry, progress)?;
    }
    if !missing.is_empty() {
        progress(&format!("{} programs built in {}", missing.len(), duration(started.elapsed())));
    }
    part.make_folder(&set, |folder| {
        for (recipe, entry) in recipes.iter().zip(&entries) {
            let link = folder.join("bin").join(recipe.output);
            let parent = link.parent().unwrap_or(folder);
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
            fs::hard_link(part.folder().join(entry).join(recipe.name()), &link)
                .with_context(|| format!("linking {}", link.display()))?;
        }
        complete(&workshop, folder)
    })
}

/// The modules written out, and the Go that builds them.
struct Workshop {
    modules: PathBuf,
    go: Go,
}

impl Workshop {
    fn open(progress: Say<'_>) -> Result<Self> {
        let part = Part::lock("modules", progress)?;
        let key = MODULES.iter().fold(Key::new("modules", 1), |key, module| module.add_to(key)).finish();
        let modules = part.make_folder(&key, |folder| MODULES.iter().try_for_each(|module| module.write(folder)))?;
        let go = Go::find(&modules)?;
        Ok(Self { modules, go })
    }

    fn build(&self, part: &Part, recipe: &Recipe, entry: &str, progress: Say<'_>) -> Result<()> {
        let log = part.folder().join(format!("{}.log", recipe.name()));
        part.make_folder(entry, |folder| {
            let mut command = Command::new(&self.go.command);
            command
                .args(recipe.arguments(&folder.join(recipe.name())))
                .envs(recipe.environment())
                .current_dir(self.modules.join(recipe.module));
            build::run(command, &format!("building {}", recipe.name()), &log, progress)
        })?;
        Ok(())
    }

    /// Where Go keeps the unpacked sources of `path`, a dependency of our module.
    fn module_folder(&self, module: &str, path: &str) -> Result<PathBuf> {
        let output = Command::new(&self.go.command)
            .args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", path])
            .envs([("GOFLAGS", GOFLAGS), ("GOWORK", "off")])
            .current_dir(self.modules.join(module))
            .output()
            .with_context(|| format!("asking go for the sources of {path}"))?;
        let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        anyhow::ensure!(
            output.status.success() && folder.is_dir(),
            "go does not have the sources of {path}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(folder)
    }
}
