//! What must be on the machine before anything can be built: a Go that is new enough, a C compiler and libseccomp for runc.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::modules::{GoVersion, needed_go};

/// Where go.dev's own instructions put it: works though a PATH (that of sudo, say) does not name it.
const GO_FALLBACK: &str = "/usr/local/go/bin/go";

/// The `go` command, checked.
#[derive(Debug, Clone)]
pub(super) struct Go {
    pub(super) command: PathBuf,
    /// What `go version` prints: release and platform, part of every key.
    pub(super) version: String,
}

impl Go {
    /// Finds `go` and checks its version inside `modules`, where the user's own toolchain switching is in force.
    pub(super) fn find(modules: &Path) -> Result<Self> {
        let Some((needed, module)) = needed_go() else { bail!("no go.mod says which Go it needs") };
        for command in ["go", GO_FALLBACK] {
            let output = Command::new(command).arg("version").current_dir(modules.join(module)).output();
            let Ok(output) = output else { continue };
            let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let found = version.split_whitespace().nth(2).and_then(GoVersion::parse);
            return match found {
                Some(found) if output.status.success() && found >= needed => {
                    Ok(Self { command: command.into(), version })
                }
                Some(found) => bail!("Go {needed} or newer is needed, {command} is {found}: {}", how_to_get(needed)),
                None => bail!(
                    "`{command} version` says neither yes nor no ({}): {}",
                    String::from_utf8_lossy(&output.stderr).trim(),
                    how_to_get(needed)
                ),
            };
        }
        bail!("Go is not installed, or not on PATH: {}", how_to_get(needed))
    }
}

fn how_to_get(needed: GoVersion) -> String {
    format!(
        "unpack the release {needed} (or newer) of go.dev/dl into /usr/local, so that {GO_FALLBACK} is there \
         (Debian's package golang-go is too old)"
    )
}

/// Checks what cgo needs for runc, naming every missing thing at once.
pub(super) fn check_c() -> Result<()> {
    let wanted: [(&str, &str, &[&str], &str); 3] = [
        ("a C compiler", "gcc", &["--version"], "build-essential"),
        ("pkg-config", "pkg-config", &["--version"], "pkg-config"),
        ("the headers of libseccomp", "pkg-config", &["--exists", "libseccomp"], "libseccomp-dev"),
    ];
    let missing: Vec<_> = wanted.iter().filter(|(_, command, arguments, _)| !succeeds(command, arguments)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let things: Vec<_> = missing.iter().map(|(thing, ..)| *thing).collect();
    let packages: Vec<_> = missing.iter().map(|(.., package)| *package).collect();
    bail!("runc cannot be built without {}: apt-get install {}", things.join(", "), packages.join(" "))
}

fn succeeds(command: &str, arguments: &[&str]) -> bool {
    let status = Command::new(command).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
