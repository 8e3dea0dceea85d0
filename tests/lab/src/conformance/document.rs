//! The page that tells what the suite says of us, and of kube-proxy on the same lab.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::Proxy;
use super::causes::Causes;
use super::report::{Outcome, Spec, State};
use super::results::Results;

/// Writes the page of the last full runs with ours and with kube-proxy.
pub(super) fn markdown(ours: Option<&Results>, control: Option<&Results>, causes: &Causes) -> String {
    let runs: Vec<&Results> = ours.into_iter().chain(control).collect();
    let mut page = String::from(
        "# Conformance\n\n\
         What the e2e suite of Kubernetes itself says: its `[sig-network]` specs, run on the lab (`docs/lab.md`: three dual-stack \
         nodes in three zones,\nsix for the specs that need them) once with Steelyard and no kube-proxy, and once, as the control, \
         with kube-proxy in nftables mode, where\nSteelyard only assigns and announces load-balancer addresses \
         (`datapath.mode=off`).\n\nThis page is written by `make conformance` and `make conformance PROXY=kube-proxy`; do not edit \
         it. The numbers behind it are in `docs/conformance/`.\n\n",
    );
    summary(&mut page, &runs);
    differences(&mut page, ours, control, causes);
    not_passed(&mut page, &runs, causes);
    second_attempts(&mut page, &runs);
    left_out(&mut page, &runs);
    all(&mut page, &runs);
    page
}

fn label(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Steelyard => "Steelyard",
        Proxy::KubeProxy => "kube-proxy",
    }
}

fn summary(page: &mut String, runs: &[&Results]) {
    page.push_str(
        "| | passed | failed | skipped | Kubernetes | date | kernel | build |\n|---|---|---|---|---|---|---|---|\n",
    );
    for run in runs {
        let count = |state| run.specs.count(state);
        let build = match run.proxy {
            Proxy::Steelyard => format!("Steelyard {}", run.steelyard),
            Proxy::KubeProxy => format!("kube-proxy {}", run.kubernetes),
        };
        // Writing to a String cannot fail, here and below.
        writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} | {build} |",
            label(run.proxy),
            count(State::Passed),
            count(State::Failed),
            count(State::Skipped),
            run.kubernetes,
            run.date,
            run.kernel
        )
        .ok();
    }
    page.push('\n');
}

fn find<'a>(outcome: &'a Outcome, name: &str) -> Option<&'a Spec> {
    outcome.specs.iter().find(|spec| spec.name == name)
}

fn differences(page: &mut String, ours: Option<&Results>, control: Option<&Results>, causes: &Causes) {
    let (Some(ours), Some(control)) = (ours, control) else {
        page.push_str("Only one of the two has been run, so there is nothing to compare.\n\n");
        return;
    };
    let passes_only_with = |one: &Results, other: &Results| -> Vec<String> {
        let passed = one.specs.specs.iter().filter(|spec| spec.state == State::Passed);
        passed
            .filter_map(|spec| {
                let there = find(&other.specs, &spec.name);
                if there.is_some_and(|there| there.state == State::Passed) {
                    return None;
                }
                let why = there.map_or_else(|| "not run".to_owned(), |there| explain(there, other.proxy, causes));
                Some(format!("- {}: {why}\n", cell(&spec.name)))
            })
            .collect()
    };
    for (title, list) in [
        ("Passes with kube-proxy, not with Steelyard", passes_only_with(control, ours)),
        ("Passes with Steelyard, not with kube-proxy", passes_only_with(ours, control)),
    ] {
        writeln!(page, "## {title}\n").ok();
        page.push_str(&if list.is_empty() { "None.\n".to_owned() } else { list.concat() });
        page.push('\n');
    }
}

/// How a spec that did not pass ended, in the suite's words and in ours.
fn explain(spec: &Spec, proxy: Proxy, causes: &Causes) -> String {
    let said = cell(&spec.reason);
    match causes.of(spec, proxy) {
        Some(cause) => format!("{}; {cause}. The suite says: {said}", spec.state),
        None => format!("{}; the suite says: {said}", spec.state),
    }
}

fn not_passed(page: &mut String, runs: &[&Results], causes: &Causes) {
    page.push_str("## Not passed\n\n");
    // The same end for the same reason is told once.
    let mut told: BTreeMap<&str, Vec<(String, Vec<&str>)>> = BTreeMap::new();
    for run in runs {
        for spec in run.specs.specs.iter().filter(|spec| spec.state != State::Passed) {
            let why = match causes.of(spec, run.proxy) {
                Some(cause) => format!("{}: {cause}", spec.state),
                None => format!("{}: {}", spec.state, cell(&spec.reason)),
            };
            let reasons = told.entry(&spec.name).or_default();
            match reasons.iter_mut().find(|(known, _)| *known == why) {
                Some((_, proxies)) => proxies.push(label(run.proxy)),
                None => reasons.push((why, vec![label(run.proxy)])),
            }
        }
    }
    if told.is_empty() {
        page.push_str("Nothing.\n\n");
        return;
    }
    page.push_str("| spec | with | what and why |\n|---|---|---|\n");
    for (name, reasons) in told {
        for (why, proxies) in reasons {
            writeln!(page, "| {} | {} | {why} |", cell(name), proxies.join(", ")).ok();
        }
    }
    page.push('\n');
}

fn second_attempts(page: &mut String, runs: &[&Results]) {
    let again = runs.iter().flat_map(|run| {
        let passed = run.specs.specs.iter().filter(|spec| spec.second_attempt && spec.state == State::Passed);
        passed.map(|spec| {
            format!("- {}, {}: the first time {}\n", label(run.proxy), cell(&spec.name), cell(&spec.reason))
        })
    });
    let list: Vec<String> = again.collect();
    if !list.is_empty() {
        page.push_str(
            "## Passed on the second attempt\n\nA spec that fails is run once more with few others, since some measure time and \
             the machine is small. They count as passed:\n\n",
        );
        page.push_str(&list.concat());
        page.push('\n');
    }
}

fn left_out(page: &mut String, runs: &[&Results]) {
    page.push_str("## Not run\n\n");
    let told: BTreeSet<String> = runs
        .iter()
        .flat_map(|run| &run.left_out)
        .map(|left| format!("- {} ({}): {}\n", left.what, left.count, left.why))
        .collect();
    page.extend(told);
    page.push('\n');
}

fn all(page: &mut String, runs: &[&Results]) {
    page.push_str("## All specs\n\nWith the seconds that they took on two cores, several at once.\n\n| spec |");
    for run in runs {
        write!(page, " {} |", label(run.proxy)).ok();
    }
    page.push_str("\n|---|");
    page.push_str(&"---|".repeat(runs.len()));
    page.push('\n');
    let names: BTreeSet<&str> = runs.iter().flat_map(|run| &run.specs.specs).map(|spec| spec.name.as_str()).collect();
    for name in names {
        write!(page, "| {} |", cell(name)).ok();
        for run in runs {
            match find(&run.specs, name) {
                Some(spec) => {
                    let again = if spec.second_attempt { ", second attempt" } else { "" };
                    write!(page, " {} {}{again} |", spec.state, spec.seconds()).ok();
                }
                None => page.push_str(" – |"),
            }
        }
        page.push('\n');
    }
}

/// A text in a cell of a table; the suite's names are full of brackets, which are no links.
fn cell(text: &str) -> String {
    text.replace("[sig-network] ", "").replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::super::results::LeftOut;
    use super::*;

    fn results(proxy: Proxy, specs: &[(&str, State, &str, bool)]) -> Results {
        let spec = |(name, state, reason, second): &(&str, State, &str, bool)| Spec {
            name: format!("[sig-network] {name}"),
            state: *state,
            tenths: 123,
            reason: (*reason).into(),
            second_attempt: *second,
        };
        Results {
            proxy,
            kubernetes: "v1.36.3".into(),
            steelyard: "0.1.0 (abc)".into(),
            date: "2026-01-31".into(),
            kernel: "6.18".into(),
            left_out: vec![LeftOut { what: "Internet".into(), count: 3, why: "none in a lab".into() }],
            specs: Outcome { specs: specs.iter().map(spec).collect() },
        }
    }

    #[test]
    fn the_page_compares_the_two_and_gives_reasons() {
        let ours = results(
            Proxy::Steelyard,
            &[
                ("a", State::Passed, "", false),
                ("b", State::Failed, "no | answer", true),
                ("c", State::Passed, "slow", true),
            ],
        );
        let control = results(
            Proxy::KubeProxy,
            &[("a", State::Failed, "bad", false), ("b", State::Passed, "", false), ("c", State::Passed, "", false)],
        );
        let page = markdown(Some(&ours), Some(&control), &Causes::read().unwrap());
        for line in [
            "| Steelyard | 2 | 1 | 0 | v1.36.3 | 2026-01-31 | 6.18 | Steelyard 0.1.0 (abc) |",
            "## Passes with kube-proxy, not with Steelyard\n\n- b: failed; the suite says: no \\| answer\n",
            "## Passes with Steelyard, not with kube-proxy\n\n- a: failed; the suite says: bad\n",
            "| b | Steelyard | failed: no \\| answer |\n",
            "- Steelyard, c: the first time slow\n",
            "- Internet (3): none in a lab\n",
            "| a | passed 12.3 | failed 12.3 |\n",
            "| c | passed 12.3, second attempt | passed 12.3 |\n",
        ] {
            assert!(page.contains(line), "{line}\nis not in\n{page}");
        }
    }

    #[test]
    fn one_run_alone_makes_a_page() {
        let page = markdown(Some(&results(Proxy::Steelyard, &[])), None, &Causes::read().unwrap());
        assert!(page.contains("nothing to compare") && page.contains("Nothing."), "{page}");
    }
}
