//! Holds the code to the picture in `lib.rs`: pure files do no I/O and read no clock, and layers point one way.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a broken checkout should end the test with a message")]

use std::fs;
use std::path::{Path, PathBuf};

/// Stations and specialists that decide; they may stand in any component.
const PURE_NAMES: [&str; 14] = [
    "allocator.rs",
    "desired.rs",
    "election.rs",
    "endpoints.rs",
    "entry.rs",
    "ids.rs",
    "index.rs",
    "plan.rs",
    "pools.rs",
    "refusal.rs",
    "request.rs",
    "seen.rs",
    "simulate.rs",
    "names.rs",
];

/// Folders in which everything is pure.
const PURE_FOLDERS: [&str; 2] = ["model", "api"];

/// What a pure file must not name, and what that would be.
const IMPURE: [(&str, &str); 22] = [
    (".await", "I/O"),
    ("async fn", "I/O"),
    ("axum::", "I/O"),
    ("kube::Api", "I/O"),
    ("kube::Client", "I/O"),
    ("kube::runtime", "I/O"),
    ("netlink_", "I/O"),
    ("nix::", "I/O"),
    ("rtnetlink", "I/O"),
    ("socket2", "I/O"),
    ("std::env", "I/O"),
    ("std::fs", "I/O"),
    ("std::io", "I/O"),
    ("std::process", "I/O"),
    ("std::thread", "I/O"),
    ("TcpStream", "I/O"),
    ("UdpSocket", "I/O"),
    ("tokio::", "I/O or a clock"),
    ("Instant::now", "a clock"),
    ("SystemTime", "a clock"),
    ("Timestamp::now", "a clock"),
    ("rand::", "randomness"),
];

/// The layers of `lib.rs`, lowest first: a file uses its own layer and those before it.
const LAYERS: [&[&str]; 5] = [
    &["names", "api", "model"],
    &["runtime", "netlink"],
    &["membership"],
    &["controller", "speaker", "datapath"],
    &["cli"],
];

fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src is there") {
            let path = entry.expect("src can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The path below `src`, with forward slashes.
fn name_of(path: &Path) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    path.strip_prefix(root).expect("below src").to_string_lossy().into_owned()
}

/// The lines of a file that ship: no tests, no comments.
fn shipped_lines(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).expect("source is readable");
    let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
    let numbered = shipped.lines().enumerate();
    numbered
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default().to_owned()))
        .filter(|(_, line)| !line.trim().is_empty())
        .collect()
}

fn is_test(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.contains("/tests/")
}

fn is_pure(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let folder = name.split('/').next().unwrap_or(name);
    let module = folder.trim_end_matches(".rs");
    !name.starts_with("cli") && (PURE_NAMES.contains(&file) || PURE_FOLDERS.contains(&module))
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

#[test]
fn pure_files_name_no_io_no_clock_and_no_randomness() {
    let mut seen = 0;
    let mut faults = Vec::new();
    for path in sources() {
        let name = name_of(&path);
        if is_test(&name) || !is_pure(&name) {
            continue;
        }
        seen += 1;
        for (number, line) in shipped_lines(&path) {
            for (word, what) in IMPURE {
                if line.contains(word) {
                    faults.push(format!("src/{name}:{number} names {word:?} ({what}): {}", line.trim()));
                }
            }
        }
    }
    assert!(seen >= 10, "only {seen} pure files found: has the layout changed?");
    assert!(faults.is_empty(), "pure files must get what they need as arguments:\n{}", faults.join("\n"));
}

#[test]
fn layers_point_one_way() {
    let mut faults = Vec::new();
    for path in sources() {
        let name = name_of(&path);
        let module = name.split(['/', '.']).next().unwrap_or_default().to_owned();
        if is_test(&name) || matches!(module.as_str(), "main" | "lib") {
            continue;
        }
        let Some(own) = layer_of(&module) else {
            faults.push(format!("src/{name} stands in no layer of lib.rs"));
            continue;
        };
        for (number, line) in shipped_lines(&path) {
            for used in line.split("crate::").skip(1) {
                let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                let is_component = own == 3 && layer_of(used) == Some(3) && used != module;
                if is_component || layer_of(used).is_some_and(|layer| layer > own) {
                    faults.push(format!("src/{name}:{number} ({module}) uses {used}: {}", line.trim()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "the layers of lib.rs are crossed:\n{}", faults.join("\n"));
}

#[test]
fn a_file_opens_by_saying_its_job() {
    let silent: Vec<_> = sources()
        .iter()
        .filter(|path| !fs::read_to_string(path).expect("source is readable").starts_with("//!"))
        .map(|path| name_of(path))
        .collect();
    assert!(silent.is_empty(), "these open without `//!`: {silent:?}");
}
