//! Run another program and tell what it said when it fails.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Run to the end; the text of standard output.
///
/// # Errors
/// If it cannot be started or fails; the error holds its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null());
    let output = command.output().with_context(|| format!("failed to run {}", describe(command)))?;
    checked(command, output)
}

/// Run to the end with `input` as standard input; the text of standard output.
///
/// # Errors
/// If it cannot be started or fails; the error holds its standard error.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("failed to run {}", describe(command)))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let output = std::thread::scope(|scope| {
        // A program that stops reading early fails with a reason of its own.
        scope.spawn(move || stdin.write_all(input.as_bytes()).ok());
        child.wait_with_output()
    })?;
    checked(command, output)
}

/// Run to the end with a file as standard input; the text of standard output.
///
/// # Errors
/// If it cannot be started or fails; the error holds its standard error.
pub fn run_from_file(command: &mut Command, input: &Path) -> Result<String> {
    command.stdin(File::open(input).with_context(|| format!("failed to open {}", input.display()))?);
    let output = command.output().with_context(|| format!("failed to run {}", describe(command)))?;
    checked(command, output)
}

fn checked(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{} failed ({}): {}", describe(command), output.status, [err.trim(), out.trim()].join("\n").trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it, shortened.
fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut text = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = text.char_indices().nth(300) {
        text.truncate(end);
        text.push('…');
    }
    text
}
