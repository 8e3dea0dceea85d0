//! Our own binary as it is shipped: release, static, for this machine's architecture.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::programs::build;

/// How the variables begin that describe the package which cargo runs.
const PACKAGE_VARIABLES: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];

/// Builds `steelyard` as it is shipped and returns where it is. Cargo decides whether there is anything to do.
///
/// # Errors
/// When this is no checkout of the sources, when the build fails, and when its result needs a dynamic linker after all.
pub fn steelyard_binary(progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let root = source_root()?;
    let cargo = cargo();
    let host = host_triple()?;
    let target = target_folder(&cargo, &root)?;
    fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
    let mut command = Command::new(&cargo);
    command
        .args(["build", "--locked", "--release", "--bin", "steelyard", "--target", &host])
        // With --target these reach our code alone, not build scripts and macros, which must stay dynamic.
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(&root);
    // `cargo run` tells us about our own package, and build scripts that look there would run anew each time.
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in
        ours.filter(|name| name.to_str().is_some_and(|name| PACKAGE_VARIABLES.iter().any(|p| name.starts_with(p))))
    {
        command.env_remove(name);
    }
    progress("building the static steelyard binary");
    build::run(command, "building steelyard", &target.join("steelyard-image.log"), progress)?;
    let binary = target.join(&host).join("release/steelyard");
    let bytes = fs::read(&binary).with_context(|| format!("reading {}", binary.display()))?;
    ensure!(is_static(&bytes)?, "{} asks for a dynamic linker: it would not start in an empty image", binary.display());
    Ok(binary)
}

/// The workspace that this crate was built from.
pub(crate) fn source_root() -> Result<PathBuf> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    match lab.ancestors().nth(2) {
        Some(root) if root.join("src/main.rs").exists() => Ok(root.to_owned()),
        _ => {
            bail!("the sources of steelyard are not at {} any more: build the lab again from a checkout", lab.display())
        }
    }
}

/// Cargo hands itself to what it runs; else the one on PATH.
fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// `x86_64-unknown-linux-gnu`, asked from rustc: the target that is installed on every machine.
fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc).arg("-vV").output().context("running rustc: is Rust installed and on PATH?")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` does not name its host")
}

fn target_folder(cargo: &OsString, root: &Path) -> Result<PathBuf> {
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("running cargo: is Rust installed and on PATH?")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: Value = serde_json::from_slice(&output.stdout).context("reading cargo's metadata")?;
    let folder = metadata.get("target_directory").and_then(Value::as_str);
    folder.map(PathBuf::from).context("cargo's metadata do not name the target folder")
}

/// Does this ELF file start without a dynamic linker? That is what `ldd` calls "statically linked": no `PT_INTERP` segment.
pub(crate) fn is_static(elf: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    // ELF-64, little-endian: both architectures that we ship for.
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "no 64-bit little-endian ELF file");
    let table = u64::from_le_bytes(field(elf, 32)?) as usize;
    let entry_size = usize::from(u16::from_le_bytes(field(elf, 54)?));
    let entries = usize::from(u16::from_le_bytes(field(elf, 56)?));
    for entry in 0..entries {
        if u32::from_le_bytes(field(elf, table + entry * entry_size)?) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

fn field<const N: usize>(elf: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = elf.get(at..at.saturating_add(N)).context("the ELF file ends early")?;
    Ok(bytes.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header and program headers of the given types.
    fn elf(types: &[u32]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = types.len() as u8;
        for kind in types {
            let mut entry = kind.to_le_bytes().to_vec();
            entry.resize(56, 0);
            bytes.extend(entry);
        }
        bytes
    }

    #[test]
    fn an_interpreter_makes_it_dynamic() {
        assert!(is_static(&elf(&[1, 2, 6])).unwrap());
        assert!(!is_static(&elf(&[1, 3, 2])).unwrap());
    }

    #[test]
    fn what_is_no_elf_file_or_ends_early_is_an_error() {
        assert!(is_static(b"#!/bin/sh").is_err());
        let mut short = elf(&[1, 1]);
        short.truncate(100);
        assert!(is_static(&short).is_err());
    }

    #[test]
    fn this_test_itself_is_dynamic() {
        assert!(!is_static(&fs::read("/proc/self/exe").unwrap()).unwrap());
    }
}
