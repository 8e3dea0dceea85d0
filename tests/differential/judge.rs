//! Holds both kernels to each other and ours to `simulate`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use steelyard::datapath::entry::{EntryKey, Frontend};
use steelyard::datapath::simulate::{Packet, Step, Trace};

use crate::arena::Both;
use crate::deliberate::{self, Deliberate};
use crate::expected::Views;
use crate::flows::expect::Expect;
use crate::stage::outcome::{self, Fate};

/// So many standard deviations may an endpoint's share be off: less than once in ten million flows.
const DEVIATIONS: f64 = 6.0;

/// How many of its endpoints a client sees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Affinity {
    /// All.
    None,
    /// One.
    Pinned,
    /// Some.
    Some,
}

/// What became of one flow, by all three.
pub struct Case<'a> {
    pub views: &'a Views,
    pub packet: Packet,
    pub trace: Trace,
    /// What `simulate` says.
    pub simulated: Expect,
    /// What it says of the objects as kube-proxy reads them.
    pub simulated_theirs: Expect,
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
    pub fn new(views: &'a Views, packet: Packet, both: &Both) -> Self {
        let trace = views.ours.trace(packet);
        let simulated = Expect::from(&trace.verdict);
        let simulated_theirs = views.of_kube_proxy(packet);
        let (ours, theirs) = (outcome::outcome(&both.ours), outcome::outcome(&both.theirs));
        Self { views, packet, trace, simulated, simulated_theirs, ours, theirs }
    }

    /// The frontend that was dialled and whose it is, as far as it is a Service's.
    pub fn dialled(&self) -> Option<(Frontend, &EntryKey)> {
        dialled(&self.trace)
    }

    /// Whether an outcome is a simulated one. Whoever is led to an endpoint in the node's own network leaves no way for it to
    /// be masqueraded in.
    fn is_as_simulated(&self, outcome: &Expect, simulated: &Expect, affinity: Affinity) -> bool {
        match (outcome, simulated) {
            (
                Expect::Dnat { endpoints, masqueraded },
                Expect::Dnat { endpoints: all, masqueraded: all_masqueraded },
            ) => {
                let is_elsewhere = |endpoint: &&SocketAddr| !self.views.ours.local.contains(&endpoint.ip());
                let wanted = all_masqueraded.intersection(endpoints).filter(is_elsewhere);
                let are_endpoints_right = match affinity {
                    Affinity::None => endpoints == all,
                    Affinity::Pinned => endpoints.is_subset(all) && endpoints.len() == 1,
                    Affinity::Some => endpoints.is_subset(all),
                };
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
            .filter(|endpoint| self.views.ours.local.contains(&endpoint.ip()))
            .all(|endpoint| masqueraded.contains(endpoint) == their_masqueraded.contains(endpoint))
    }

    pub fn judge(&self, both: &Both) -> Judgement {
        let affinity = match (has_affinity(&self.trace), deliberate::is_half_remembered(self)) {
            (true, true) => Affinity::Some,
            (true, false) => Affinity::Pinned,
            (false, _) => Affinity::None,
        };
        match &self.ours {
            Ok(ours) if self.is_as_simulated(ours, &self.simulated, affinity) => {}
            Ok(_) => return Judgement::Wrong("our kernel does not do what simulate says".to_owned()),
            Err(_) => return Judgement::Wrong("our kernel treats one connection so and another so".to_owned()),
        }
        if let Some(unfair) = unfair(&both.ours).filter(|_| affinity == Affinity::None) {
            return Judgement::Wrong(unfair);
        }
        let their_trace = self.views.theirs.trace(self.packet);
        let their_affinity = if has_affinity(&their_trace) { Affinity::Pinned } else { Affinity::None };
        let is_foreseen = self
            .theirs
            .as_ref()
            .is_ok_and(|theirs| self.is_as_simulated(theirs, &self.simulated_theirs, their_affinity));
        let known = match (is_foreseen, self.simulated == self.simulated_theirs) {
            (true, true) if affinity == Affinity::Some => Some(&deliberate::HALF_REMEMBERED),
            (true, true) if self.agree_about_own_endpoints() => return Judgement::Same,
            // Where it does what follows from reading objects otherwise.
            (true, false) => deliberate::of(self, deliberate::FORESEEN),
            (true, true) | (false, _) => deliberate::of(self, deliberate::DONE_OTHERWISE),
        };
        match known {
            Some(known) => Judgement::Deliberate(known),
            None => Judgement::Wrong("kube-proxy does something else".to_owned()),
        }
    }
}

/// Clients that were led to more than one endpoint of a Service port with affinity, whichever of its frontends they
/// dialled. Where they may use one set of endpoints here and another there, the memory of one need not do for the other.
pub fn unsteady(cases: &[Case<'_>]) -> Vec<String> {
    // By client: the sets that it could choose from, and what it met.
    type Met = (BTreeSet<Vec<SocketAddr>>, BTreeSet<SocketAddr>);
    let mut seen: BTreeMap<(EntryKey, IpAddr), Met> = BTreeMap::new();
    for case in cases {
        let Some((_, entry)) = case.dialled() else { continue };
        let (true, Expect::Dnat { endpoints: all, .. }, Ok(Expect::Dnat { endpoints, .. })) =
            (has_affinity(&case.trace), &case.simulated, &case.ours)
        else {
            continue;
        };
        let (sets, met) = seen.entry((entry.clone(), case.packet.source)).or_default();
        if !deliberate::is_half_remembered(case) {
            sets.insert(all.iter().copied().collect());
            met.extend(endpoints);
        }
    }
    seen.into_iter()
        .filter(|(_, (sets, met))| sets.len() == 1 && met.len() > 1)
        .map(|((entry, client), (_, met))| format!("{client} was led to all of {met:?} of {}", entry.port))
        .collect()
}

fn has_affinity(trace: &Trace) -> bool {
    trace.steps.iter().any(|step| matches!(step, Step::Affinity { .. }))
}

/// The frontend that a packet met.
pub fn dialled(trace: &Trace) -> Option<(Frontend, &EntryKey)> {
    trace.steps.iter().find_map(|step| match step {
        Step::Frontend { frontend, entry, .. } => Some((*frontend, entry)),
        _ => None,
    })
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
