//! The report as people read it.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::report::{Considered, Outcome, Report, Traced};

/// All of it.
pub(super) fn text(report: &Report) -> String {
    let mut out = String::new();
    for warning in &report.warnings {
        line(&mut out, format_args!("warning: {warning}"));
    }
    for traced in &report.traces {
        if !out.is_empty() {
            line(&mut out, format_args!(""));
        }
        one(&mut out, traced);
    }
    out
}

fn one(out: &mut String, traced: &Traced) {
    let to = SocketAddr::new(traced.destination, traced.port);
    line(out, format_args!("{} → {to}/{}", traced.source, traced.protocol));
    line(out, format_args!("on node {} ({})", traced.node, traced.node_reason));
    line(out, format_args!(""));
    let width = traced.steps.iter().map(|step| step.rule.len()).max().unwrap_or_default();
    for (number, step) in (1..).zip(&traced.steps) {
        line(out, format_args!("  {number}. {:width$}  {}", step.rule, step.text));
    }
    if !traced.endpoints.is_empty() {
        line(out, format_args!(""));
        endpoints(out, &traced.endpoints);
    }
    if !traced.notes.is_empty() {
        line(out, format_args!(""));
        for note in &traced.notes {
            line(out, format_args!("  note: {note}"));
        }
    }
    line(out, format_args!(""));
    line(out, format_args!("{}", outcome(traced)));
}

fn endpoints(out: &mut String, endpoints: &[Considered]) {
    const SHOWN: usize = 50;
    let node = |endpoint: &Considered| endpoint.node.clone().unwrap_or_else(|| "(unknown)".to_owned());
    let shown = || endpoints.iter().take(SHOWN);
    let width = shown().map(|endpoint| endpoint.address.len()).max().unwrap_or_default().max("ENDPOINT".len());
    let node_width = shown().map(|endpoint| node(endpoint).len()).max().unwrap_or_default().max("NODE".len());
    line(out, format_args!("  {:width$}  {:node_width$}  WHY", "ENDPOINT", "NODE"));
    for endpoint in shown() {
        line(out, format_args!("  {:width$}  {:node_width$}  {}", endpoint.address, node(endpoint), endpoint.standing));
    }
    if endpoints.len() > SHOWN {
        line(out, format_args!("  … and {} more; -o json has all", endpoints.len() - SHOWN));
    }
}

fn outcome(traced: &Traced) -> String {
    match traced.outcome {
        Outcome::Forwarded => {
            let used: Vec<&Considered> = traced.endpoints.iter().filter(|endpoint| endpoint.is_used).collect();
            let masqueraded = used.iter().filter(|endpoint| endpoint.is_masqueraded).count();
            let sees = match masqueraded {
                0 => format!("it sees the client {}", traced.source),
                count if count == used.len() => "it sees an address of the node as the client".to_owned(),
                _ => format!("it sees the client {}, or the node where that is the endpoint itself", traced.source),
            };
            match used.as_slice() {
                [only] => format!("FORWARDED to {}; {sees}", only.address),
                many => format!("FORWARDED to one of {} endpoints, each as likely; {sees}", many.len()),
            }
        }
        Outcome::Dropped => "DROPPED: the client hears nothing and waits until it gives up".to_owned(),
        Outcome::Rejected => "REJECTED: the client is told by ICMP port unreachable (connection refused)".to_owned(),
        Outcome::NotServed if traced.goes_on_to.is_some() => {
            let next = traced.goes_on_to.as_deref().unwrap_or_default();
            format!("NOT SERVED here; the packet goes on to node {next}, which has the address")
        }
        Outcome::NotServed => {
            "NOT SERVED: no Service of ours; the packet follows the node's routes like any other".to_owned()
        }
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _written = writeln!(out, "{text}");
}
