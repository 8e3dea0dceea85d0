//! Whether Steelyard forwards Service traffic, and how `auto` is decided: once for a cluster. Pure.
//!
//! Only a proxy that is there says `off`; that there is none is known once every agent has looked, or has had its time to.
//! A decision stays: neither a restart nor a node that joins turns it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::names::NodeName;

/// How long to wait for further agents after the first has reported that nobody else forwards.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Whether Steelyard forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does.
    On,
    /// Another service proxy does.
    Off,
}

impl Mode {
    /// As in flags and in the ConfigMap.
    pub const fn word(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }

    /// Reads [`Self::word`].
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::On, Self::Off].into_iter().find(|mode| mode.word() == word.trim())
    }
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The mode.
    pub mode: Mode,
    /// Why, for people.
    pub reason: String,
    /// When; unknown where a person wrote the ConfigMap.
    pub decided_at: Option<Timestamp>,
}

impl Decision {
    const MODE: &'static str = "mode";
    const REASON: &'static str = "reason";
    const DECIDED_AT: &'static str = "decidedAt";

    /// The data of the ConfigMap.
    pub fn data(&self) -> BTreeMap<String, String> {
        let mut data = BTreeMap::from([
            (Self::MODE.to_owned(), self.mode.word().to_owned()),
            (Self::REASON.to_owned(), self.reason.clone()),
        ]);
        if let Some(at) = self.decided_at {
            data.insert(Self::DECIDED_AT.to_owned(), format!("{at:.0}"));
        }
        data
    }

    /// Reads the data of the ConfigMap; without a mode that we know there is no decision.
    pub fn read(data: &BTreeMap<String, String>) -> Option<Self> {
        Some(Self {
            mode: Mode::from_word(data.get(Self::MODE)?)?,
            reason: data.get(Self::REASON).cloned().unwrap_or_default(),
            decided_at: data.get(Self::DECIDED_AT).and_then(|text| text.parse().ok()),
        })
    }
}

/// What is known about other service proxies.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// A DaemonSet of kube-proxy that has pods to run.
    pub daemon_set: Option<String>,
    /// What each agent has seen on its node: nothing, or what shows a proxy.
    pub agents: BTreeMap<NodeName, Option<String>>,
    /// How many agents there should be, if that is known.
    pub expected: Option<usize>,
}

impl Evidence {
    /// What shows that somebody else forwards.
    pub fn of_another(&self) -> Option<String> {
        if let Some(daemon_set) = &self.daemon_set {
            return Some(format!("DaemonSet {daemon_set} runs"));
        }
        let mut seen = self.agents.iter().filter_map(|(node, what)| Some((node, what.as_ref()?)));
        let (node, what) = seen.next()?;
        let more = if seen.next().is_some() { ", and more on other nodes" } else { "" };
        Some(format!("on node {node} {what}{more}"))
    }

    /// Whether every agent that should be there has looked.
    fn is_complete(&self) -> bool {
        self.expected.is_some_and(|expected| expected > 0 && self.agents.len() >= expected)
    }
}

/// The decision, once there is enough to decide on. `since` is when the first agent's report was seen.
pub fn decide(evidence: &Evidence, since: Option<Timestamp>, now: Timestamp) -> Option<Decision> {
    let decision = |mode, reason| Some(Decision { mode, reason, decided_at: Some(now) });
    if let Some(what) = evidence.of_another() {
        return decision(Mode::Off, format!("another service proxy is at work: {what}"));
    }
    let reported = evidence.agents.len();
    if evidence.is_complete() {
        return decision(Mode::On, format!("no other service proxy: none of {reported} agents has seen one"));
    }
    let has_waited = since
        .is_some_and(|since| now.duration_since(since) >= jiff::SignedDuration::try_from(PATIENCE).unwrap_or_default());
    if reported == 0 || !has_waited {
        return None;
    }
    let expected = evidence.expected.map_or_else(|| "an unknown number of".to_owned(), |expected| expected.to_string());
    let waited = PATIENCE.as_secs();
    decision(
        Mode::On,
        format!("no other service proxy seen by {reported} of {expected} agents, {waited} s after the first report"),
    )
}

/// What speaks against a decision by now. It changes nothing, but people should hear of it.
pub fn contradiction(decision: &Decision, evidence: &Evidence) -> Option<String> {
    match (decision.mode, evidence.of_another()) {
        (Mode::On, Some(what)) => Some(format!(
            "this datapath is on, and another service proxy is at work: {what}. Remove it, or choose datapath.mode"
        )),
        (Mode::Off, None) if evidence.is_complete() => Some(
            "this datapath is off, and no agent sees another service proxy: nobody forwards Service traffic. \
             Delete this ConfigMap to have it decided anew, or choose datapath.mode"
                .to_owned(),
        ),
        (Mode::On | Mode::Off, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn evidence(agents: &[(&str, Option<&str>)], expected: usize) -> Evidence {
        Evidence {
            daemon_set: None,
            agents: agents.iter().map(|(node, what)| ((*node).into(), what.map(str::to_owned))).collect(),
            expected: Some(expected),
        }
    }

    fn mode(evidence: &Evidence, since: Option<i64>, now: i64) -> Option<Mode> {
        decide(evidence, since.map(at), at(now)).map(|decision| decision.mode)
    }

    #[test]
    fn one_proxy_is_enough_for_off_and_takes_no_time() {
        let with_daemon_set = Evidence { daemon_set: Some("kube-system/kube-proxy".into()), ..Evidence::default() };
        assert_eq!(mode(&with_daemon_set, None, 1), Some(Mode::Off));
        assert_eq!(mode(&evidence(&[("n1", None), ("n2", Some("somebody listens"))], 3), Some(1), 1), Some(Mode::Off));
    }

    #[test]
    fn on_takes_every_agent_or_ten_seconds() {
        let none = |count: usize| evidence(&[("n1", None), ("n2", None), ("n3", None)][..count], 3);
        assert_eq!(mode(&none(0), None, 100), None);
        assert_eq!(mode(&none(2), Some(1), 10), None);
        assert_eq!(mode(&none(3), Some(1), 1), Some(Mode::On));
        let late = decide(&none(2), Some(at(1)), at(11)).unwrap();
        assert_eq!((late.mode, late.decided_at), (Mode::On, Some(at(11))));
        assert_eq!(late.reason, "no other service proxy seen by 2 of 3 agents, 10 s after the first report");
        assert_eq!(mode(&Evidence { expected: Some(0), ..none(1) }, Some(1), 2), None, "not counted yet");
    }

    #[test]
    fn a_decision_is_read_as_it_was_written() {
        let decision = Decision { mode: Mode::Off, reason: "because".into(), decided_at: Some(at(7)) };
        assert_eq!(Decision::read(&decision.data()), Some(decision));
        assert_eq!(Decision::read(&BTreeMap::from([("mode".to_owned(), "perhaps".to_owned())])), None);
    }

    #[test]
    fn what_speaks_against_a_decision_is_told() {
        let decided = |mode| Decision { mode, reason: String::new(), decided_at: None };
        let (none, seen) = (evidence(&[("n1", None)], 1), evidence(&[("n1", Some("x"))], 1));
        assert_eq!(contradiction(&decided(Mode::On), &none), None);
        assert_eq!(contradiction(&decided(Mode::Off), &seen), None);
        assert!(contradiction(&decided(Mode::On), &seen).is_some());
        assert!(contradiction(&decided(Mode::Off), &none).is_some());
        assert_eq!(contradiction(&decided(Mode::Off), &evidence(&[], 1)), None, "agents may be starting");
    }
}
