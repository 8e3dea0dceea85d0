//! Holds both kernels to each other and ours to `simulate`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use steelyard::datapath::entry::{EntryKey, Frontend};
use steelyard::datapath::simulate::{Packet, Step, Trace};

use crate::arena::Both;
use crate::deliberate::{self, Deliberate};
use crate::expected::Expected;
use crate::flows::expect::Expect;
use crate::stage::outcome::{self, Fate};

/// So many standard deviations may an endpoint's share be off: less than once in ten million flows.
const DEVIATIONS: f64 = 6.0;

/// What became of one flow, by all three.
pub struct Case<'a> {
    pub expected: &'a Expected,
    pub packet: Packet,
    pub trace: Trace,
    /// What `simulate` says.
    pub simulated: Expect,
    pub ours: Result<Expect, String>,
    pub theirs: Result<Expect, String>,
}

/// How a flow was judged.
pub enum Judgement {
    Same,
    /// Different from kube-proxy, and meant to be.
    Deliberate(&'static Deliberate),
    /// Different, and nobody says why.
    Wrong(String),
}

impl<'a> Case<'a> {
    pub fn new(expected: &'a Expected, packet: Packet, both: &Both) -> Self {
        let trace = expected.trace(packet);
        let simulated = Expect::from(&trace.verdict);
        let (ours, theirs) = (outcome::outcome(&both.ours), outcome::outcome(&both.theirs));
        Self { expected, packet, trace, simulated, ours, theirs }
    }

    /// The frontend that was dialled and whose it is, as far as it is a Service's.
    pub fn dialled(&self) -> Option<(Frontend, &EntryKey)> {
        self.trace.steps.iter().find_map(|step| match step {
            Step::Frontend { frontend, entry, .. } => Some((*frontend, entry)),
            _ => None,
        })
    }

    fn has_affinity(&self) -> bool {
        self.trace.steps.iter().any(|step| matches!(step, Step::Affinity { .. }))
    }

    /// Whether an outcome is the simulated one. With affinity a client sees one endpoint of those that there are. Whoever
    /// is led to an endpoint in the node's own network leaves no way for it to be masqueraded in.
    fn is_as_simulated(&self, outcome: &Expect) -> bool {
        match (outcome, &self.simulated) {
            (
                Expect::Dnat { endpoints, masqueraded },
                Expect::Dnat { endpoints: all, masqueraded: all_masqueraded },
            ) => {
                let is_elsewhere = |endpoint: &&SocketAddr| !self.expected.local.contains(&endpoint.ip());
                let wanted = all_masqueraded.intersection(endpoints).filter(is_elsewhere);
                let are_endpoints_right = if self.has_affinity() { endpoints.is_subset(all) } else { endpoints == all };
                are_endpoints_right && masqueraded.iter().filter(is_elsewhere).eq(wanted)
            }
            (outcome, simulated) => outcome == simulated,
        }
    }

    /// Whether both kernels treat clients of the node's own endpoints alike.
    fn agree_about_own_endpoints(&self) -> bool {
        let (
            Ok(Expect::Dnat { endpoints, masqueraded }),
            Ok(Expect::Dnat { endpoints: their_endpoints, masqueraded: their_masqueraded }),
        ) = (&self.ours, &self.theirs)
        else {
            return true;
        };
        endpoints
            .intersection(their_endpoints)
            .filter(|endpoint| self.expected.local.contains(&endpoint.ip()))
            .all(|endpoint| masqueraded.contains(endpoint) == their_masqueraded.contains(endpoint))
    }

    pub fn judge(&self, both: &Both) -> Judgement {
        match &self.ours {
            Ok(ours) if self.is_as_simulated(ours) => {}
            Ok(_) => return Judgement::Wrong("our kernel does not do what simulate says".to_owned()),
            Err(_) => return Judgement::Wrong("our kernel treats one connection so and another so".to_owned()),
        }
        if let Some(unfair) = unfair(&both.ours).filter(|_| !self.has_affinity()) {
            return Judgement::Wrong(unfair);
        }
        let is_same = self.theirs.as_ref().is_ok_and(|theirs| self.is_as_simulated(theirs));
        if is_same && self.agree_about_own_endpoints() {
            return Judgement::Same;
        }
        match deliberate::of(self) {
            Some(known) => Judgement::Deliberate(known),
            None => Judgement::Wrong("kube-proxy does something else".to_owned()),
        }
    }
}

/// Says which endpoint gets too much or too little.
fn unfair(fates: &[Fate]) -> Option<String> {
    let mut counts: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for fate in fates {
        if let Fate::Translated { to, .. } = fate {
            *counts.entry(*to).or_default() += 1;
        }
    }
    let all = counts.values().sum::<usize>() as f64;
    let share = 1.0 / counts.len().max(1) as f64;
    let deviation = (all * share * (1.0 - share)).sqrt();
    let is_off = |count: usize| (count as f64 - all * share).abs() > (deviation * DEVIATIONS).max(1.0);
    let off: BTreeSet<String> =
        counts.iter().filter(|(_, count)| is_off(**count)).map(|(to, count)| format!("{to}: {count}")).collect();
    (!off.is_empty()).then(|| format!("of {all} connections an endpoint has too many or too few: {off:?}"))
}

/// A line about an outcome.
pub fn show(outcome: &Result<Expect, String>) -> String {
    match outcome {
        Ok(outcome) => outcome.to_string(),
        Err(error) => error.clone(),
    }
}
