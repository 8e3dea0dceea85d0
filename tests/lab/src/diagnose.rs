//! What a failed test prints: logs, events, and rules of everything concerned.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::lab::Lab;
use crate::layout::Member;
use crate::place::Place;

/// Lines of each log.
const LOG_LINES: usize = 40;

impl Lab {
    /// The state of the cluster and of everything in these namespaces, as text. What cannot be had says why.
    pub fn diagnose(&self, namespaces: &[&str]) -> String {
        let mut text = String::new();
        let mut kubectl = |arguments: &[&str]| {
            let said = self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
            // Writing to a String cannot fail.
            write!(text, "\n===== kubectl {}\n{said}", arguments.join(" ")).ok();
        };
        kubectl(&["get", "nodes,pods,services,endpointslices", "-A", "-o", "wide"]);
        // Our own objects, of the kinds that are there: a lab may run without Steelyard.
        let kinds = self.kubectl(&["api-resources", "--api-group=steelyard.dev", "--output=name"]).unwrap_or_default();
        let kinds: Vec<&str> = kinds.lines().collect();
        if !kinds.is_empty() {
            kubectl(&["get", &kinds.join(","), "-o", "yaml"]);
        }
        kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        for namespace in namespaces {
            kubectl(&["-n", namespace, "describe", "services,pods"]);
            for pod in self.pods_of(namespace) {
                let lines = format!("--tail={LOG_LINES}");
                kubectl(&["-n", namespace, "logs", &pod, "--all-containers", "--prefix", &lines]);
            }
        }
        for node in self.nodes() {
            let place = Place::from(node);
            for (program, arguments) in
                [("ip", &["address"][..]), ("ip", &["neighbour"]), ("ip", &["route"]), ("nft", &["list", "ruleset"])]
            {
                let said = self.at(&place).and_then(|place| place.run(program, arguments));
                let said = said.unwrap_or_else(|error| format!("{error:#}\n"));
                write!(text, "\n===== {node}: {program} {}\n{said}", arguments.join(" ")).ok();
            }
        }
        for member in self.nodes().chain([Member::Control]) {
            let broken = self.failures(&member.to_string()).unwrap_or_default();
            if !broken.is_empty() {
                write!(text, "\n===== {member} is broken: {broken:?}\n").ok();
            }
            text.push_str(&self.log_tails(member, LOG_LINES));
        }
        text
    }

    /// The last lines of every log of a machine.
    pub fn log_tails(&self, member: Member, lines: usize) -> String {
        let mut text = String::new();
        let mut logs: Vec<_> = fs::read_dir(self.layout().machine_logs(member))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        logs.sort();
        for log in logs {
            let name = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let tail = tail(&log, lines);
            if !tail.is_empty() {
                write!(text, "\n===== {member}: {name} (end of {})\n{tail}", log.display()).ok();
            }
        }
        text
    }

    /// A value that prints [`Lab::diagnose`] if the test panics while it lives.
    pub fn diagnose_on_panic<'a>(&'a self, namespaces: &'a [&'a str]) -> DiagnoseOnPanic<'a> {
        DiagnoseOnPanic { lab: self, namespaces }
    }

    fn pods_of(&self, namespace: &str) -> Vec<String> {
        let list = self.get_raw(&format!("/api/v1/namespaces/{namespace}/pods")).unwrap_or_default();
        let pods = list.get("items").and_then(|items| items.as_array()).cloned().unwrap_or_default();
        pods.iter().filter_map(|pod| Some(pod.pointer("/metadata/name")?.as_str()?.to_owned())).collect()
    }
}

/// See [`Lab::diagnose_on_panic`].
#[derive(Debug)]
pub struct DiagnoseOnPanic<'a> {
    lab: &'a Lab,
    namespaces: &'a [&'a str],
}

impl Drop for DiagnoseOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The macro, since that is what a test's output is made of.
            eprintln!("{}", self.lab.diagnose(self.namespaces));
        }
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let Ok(bytes) = fs::read(path) else { return String::new() };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let skipped = all.len().saturating_sub(lines);
    all.iter().skip(skipped).fold(String::new(), |text, line| text + line + "\n")
}
