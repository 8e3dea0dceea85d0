//! `status` and `logs`.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use steelyard_lab::{Datapath, Lab, Layout, Member, Record, machine};

/// Machines with their addresses and what is wrong with them.
pub(crate) fn status(layout: &Layout) -> Result<()> {
    let mut text = String::new();
    let record = Record::read(layout).ok();
    let up = machine::pid(layout, Member::Control).is_some();
    match (&record, up) {
        (Some(record), true) => {
            let datapath = match record.datapath {
                Datapath::None => "nobody",
                Datapath::KubeProxy => "kube-proxy",
                Datapath::Steelyard => "Steelyard",
            };
            let half = if record.complete { "" } else { "; `up` has not finished" };
            writeln!(text, "lab {} is up; {datapath} forwards Service traffic{half}", layout.name())?;
        }
        (Some(_), false) => {
            writeln!(text, "lab {} has crashed; `up` starts it anew, `down` cleans up", layout.name())?;
        }
        (None, _) => writeln!(text, "lab {} is down", layout.name())?,
    }
    if let (Some(record), true) = (record, up) {
        let lab = Lab::attach(layout.name().clone())?;
        let ready = ready_nodes(&lab);
        writeln!(text, "{:<9}{:<16}{:<20}STATE", "MACHINE", "IPV4", "IPV6")?;
        for member in Member::all(record.nodes) {
            let state = state(&lab, member, &ready);
            writeln!(text, "{:<9}{:<16}{:<20}{state}", member.to_string(), member.ipv4().to_string(), member.ipv6().to_string())?;
        }
    }
    writeln!(text, "state and logs: {}", layout.state().display())?;
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// Names of the nodes that the API server holds for ready; an error's text if it does not answer.
fn ready_nodes(lab: &Lab) -> Result<String, String> {
    let template = "{range .items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Ready\")].status} {end}";
    lab.kubectl(&["get", "nodes", "--request-timeout=3s", "-o", &format!("jsonpath={template}")])
        .map_err(|error| format!("{error:#}"))
}

fn state(lab: &Lab, member: Member, ready: &Result<String, String>) -> String {
    let Member::Node(_) = member else {
        let answers = ready.as_ref().map_or_else(|error| format!("API server does not answer: {error}"), |_| "up".to_owned());
        return if member == Member::Control { answers } else { String::new() };
    };
    let name = member.to_string();
    let is_ready = ready.as_ref().is_ok_and(|nodes| nodes.split(' ').any(|node| node == format!("{name}=True")));
    let mut state = if is_ready { "Ready" } else { "NotReady" }.to_owned();
    for failure in lab.failures(&name).unwrap_or_default() {
        state.push_str(&format!(", {failure}"));
    }
    state
}

/// The ends of the logs of a machine, of a program, or of one program of one machine.
pub(crate) fn logs(layout: &Layout, names: &[String], lines: usize) -> Result<()> {
    let mut found: Vec<(String, String, PathBuf)> = Vec::new();
    for machine in fs::read_dir(layout.logs()).into_iter().flatten().flatten() {
        for log in fs::read_dir(machine.path()).into_iter().flatten().flatten() {
            let program = log.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push((machine.file_name().to_string_lossy().into_owned(), program, log.path()));
        }
    }
    found.sort();
    found.retain(|(machine, program, _)| names.iter().all(|name| name == machine || name == program));
    if found.is_empty() {
        bail!("no such log in {}", layout.logs().display());
    }
    let mut out = std::io::stdout().lock();
    for (machine, program, path) in &found {
        if names.is_empty() {
            writeln!(out, "{machine:<9}{program:<28}{}", path.display())?;
            continue;
        }
        let text = fs::read(path)?;
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        writeln!(out, "===== {machine}: {program} ({})", path.display())?;
        for line in all.iter().skip(all.len().saturating_sub(lines)) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}
