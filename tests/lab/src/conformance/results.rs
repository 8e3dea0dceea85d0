//! What a full run came to: kept beside the documents as data, so that a run of the one proxy is judged by the last of the other.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Proxy;
use super::causes::Causes;
use super::report::{Outcome, Spec, State};

/// A full run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Results {
    pub(super) proxy: Proxy,
    /// The suite's version, and the cluster's.
    pub(super) kubernetes: String,
    /// The version of ours, with the commit where it is known.
    pub(super) steelyard: String,
    /// The day, as 2026-01-31.
    pub(super) date: String,
    /// The kernel's release.
    pub(super) kernel: String,
    /// What of the suite was not run.
    pub(super) left_out: Vec<LeftOut>,
    pub(super) specs: Outcome,
}

/// Specs that were not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeftOut {
    pub(super) what: String,
    pub(super) count: usize,
    pub(super) why: String,
}

impl Results {
    /// The last full run with this proxy, if there ever was one.
    pub(super) fn read(folder: &Path, proxy: Proxy) -> Result<Option<Self>> {
        let path = file(folder, proxy);
        if !path.exists() {
            return Ok(None);
        }
        let json = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&json).with_context(|| format!("reading {}", path.display())).map(Some)
    }

    /// Keeps it in place of the last.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = file(folder, self.proxy);
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, json).with_context(|| format!("writing {}", path.display()))
    }
}

fn file(folder: &Path, proxy: Proxy) -> PathBuf {
    folder.join(format!("{proxy}.json"))
}

/// Why a spec speaks against this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// It passes with kube-proxy.
    PassesWithControl,
    /// It failed, and nobody knows why.
    UnknownCause,
}

/// The specs for which a run is a bad one, by name.
pub(super) fn faults<'a>(
    outcome: &'a Outcome,
    proxy: Proxy,
    control: Option<&Outcome>,
    causes: &Causes,
) -> Vec<(&'a Spec, Fault)> {
    let passes_with_control = |spec: &Spec| {
        let theirs = control.into_iter().flat_map(|control| &control.specs).find(|other| other.name == spec.name);
        theirs.is_some_and(|theirs| theirs.state == State::Passed)
    };
    let fault = |spec: &Spec| match (proxy, spec.state) {
        (_, State::Passed) => None,
        (Proxy::Steelyard, State::Failed | State::Skipped) if passes_with_control(spec) => {
            Some(Fault::PassesWithControl)
        }
        (_, State::Failed) if causes.of(spec, proxy).is_none() => Some(Fault::UnknownCause),
        (_, State::Failed | State::Skipped) => None,
    };
    outcome.specs.iter().filter_map(|spec| Some((spec, fault(spec)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(specs: &[(&str, State)]) -> Outcome {
        let spec = |(name, state): &(&str, State)| Spec {
            name: (*name).into(),
            state: *state,
            tenths: 0,
            reason: String::new(),
            second_attempt: false,
        };
        Outcome { specs: specs.iter().map(spec).collect() }
    }

    #[test]
    fn what_passes_with_the_control_must_pass_with_ours_and_other_failures_need_a_cause() {
        let causes = Causes::read().unwrap();
        let iperf = "[sig-network] Networking IPerf2 [Feature:Networking-Performance] should run iperf2";
        let control =
            outcome(&[("a", State::Passed), ("b", State::Passed), ("c", State::Failed), ("d", State::Skipped)]);
        let ours = outcome(&[
            ("a", State::Failed),
            ("b", State::Skipped),
            ("c", State::Failed),
            ("d", State::Skipped),
            ("e", State::Passed),
            (iperf, State::Failed),
        ]);
        let names = |faults: Vec<(&Spec, Fault)>| -> Vec<String> {
            faults.into_iter().map(|(spec, fault)| format!("{} {fault:?}", spec.name)).collect()
        };
        let found = names(faults(&ours, Proxy::Steelyard, Some(&control), &causes));
        assert_eq!(found, ["a PassesWithControl", "b PassesWithControl", "c UnknownCause"]);
        assert_eq!(names(faults(&control, Proxy::KubeProxy, None, &causes)), ["c UnknownCause"]);
    }
}
