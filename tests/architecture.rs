//! Holds the code to the picture in `lib.rs`: pure files do no I/O and read no clock, and layers point one way.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a broken checkout should end the test with a message")]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules that decide, with all that is below them; they may stand in any component.
const PURE_MODULES: [&str; 30] = [
    "allocator",
    "api",
    "checks",
    "conntrack",
    "decode",
    "desired",
    "election",
    "elements",
    "endpoints",
    "entry",
    "forwards",
    "freshness",
    "ids",
    "index",
    "interfaces",
    "layout",
    "model",
    "names",
    "no_local",
    "plan",
    "pools",
    "refusal",
    "repairs",
    "request",
    "seen",
    "settings",
    "silence",
    "simulate",
    "triggers",
    "troubles",
];

/// Pure files whose names say too little to hold for other folders.
const PURE_FILES: [&str; 2] = ["membership/heartbeat.rs", "membership/state.rs"];

/// A point in time as an argument is no clock.
const ALLOWED: [&str; 1] = ["tokio::time::Instant"];

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

/// The lines of a file that ship: no tests, no comments. Imports are spelled out, one path in a line.
fn shipped_lines(path: &Path) -> Vec<(usize, String)> {
    spelled_out(without_tests(&fs::read_to_string(path).expect("source is readable")))
}

/// Leaves comments out, and modules of tests: `mod tests;` by itself, `mod tests {` with all that follows. Other code for
/// tests is held to the rules too.
fn without_tests(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        if line.trim().is_empty() {
            continue;
        }
        let is_for_tests = lines.last().is_some_and(|(_, before)| before.trim() == "#[cfg(test)]");
        if is_for_tests && line.trim_start().starts_with("mod test") {
            lines.pop();
            if line.trim_end().ends_with('{') {
                break;
            }
            continue;
        }
        lines.push((index + 1, line.to_owned()));
    }
    lines
}

/// Replaces each `use` with the paths that it names.
fn spelled_out(lines: Vec<(usize, String)>) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    let mut import: Option<(usize, String)> = None;
    for (number, line) in lines {
        let (first, text) = match import.take() {
            Some((first, before)) => (first, before + line.trim()),
            None if is_import(&line) => (number, line),
            None => {
                all.push((number, line));
                continue;
            }
        };
        if text.contains(';') {
            all.extend(paths(&text).into_iter().map(|path| (first, path)));
        } else {
            import = Some((first, text));
        }
    }
    all
}

fn is_import(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("use ") || line.starts_with("pub") && line.contains(" use ")
}

/// `use a::{b, c::{d, e}};` as `use a::b`, `use a::c::d` and `use a::c::e`.
fn paths(import: &str) -> Vec<String> {
    let import = import.trim().trim_end_matches(';');
    let Some((before, rest)) = import.split_once('{') else { return vec![import.to_owned()] };
    let inner = rest.strip_suffix('}').unwrap_or(rest);
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for letter in inner.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        if letter == ',' && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().expect("there is one from the start").push(letter);
        }
    }
    let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    parts.flat_map(|part| paths(&format!("{before}{part}"))).collect()
}

fn is_test(name: &str) -> bool {
    name.split('/').any(|part| matches!(part.trim_end_matches(".rs"), "test" | "tests"))
}

fn is_pure(name: &str) -> bool {
    let is_named = name.split('/').any(|part| PURE_MODULES.contains(&part.trim_end_matches(".rs")));
    !name.starts_with("cli") && (is_named || PURE_FILES.contains(&name))
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
            let line = ALLOWED.iter().fold(line, |line, allowed| line.replace(allowed, ""));
            for (word, what) in IMPURE {
                if line.contains(word) {
                    faults.push(format!("src/{name}:{number} names {word:?} ({what}): {}", line.trim()));
                }
            }
        }
    }
    assert!(seen >= 40, "only {seen} pure files found: has the layout changed?");
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

#[test]
fn imports_are_seen_however_they_are_written() {
    let text = "use std::{fs,\n    io::{self, Read},\n};\npub(super) use kube::{Api, Client};\nfn main() {}";
    let seen: Vec<_> = spelled_out(without_tests(text)).into_iter().map(|(_, line)| line).collect();
    let expected = [
        "use std::fs",
        "use std::io::self",
        "use std::io::Read",
        "pub(super) use kube::Api",
        "pub(super) use kube::Client",
        "fn main() {}",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn only_modules_of_tests_are_left_out() {
    let text =
        "#[cfg(test)]\nmod test;\nfn one() {}\n#[cfg(test)]\nfn two() {}\n#[cfg(test)]\nmod tests {\nfn three() {}\n}";
    let seen: Vec<_> = without_tests(text).into_iter().map(|(number, _)| number).collect();
    assert_eq!(seen, [3, 4, 5]);
}
