//! What should become of a packet, and whether a verdict is that.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::Deserialize;
use steelyard::datapath::simulate::Verdict;

/// The outcome that a case states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Any of the endpoints, and which of them mean that the source is masqueraded.
    Dnat {
        endpoints: BTreeSet<SocketAddr>,
        masqueraded: BTreeSet<SocketAddr>,
    },
    Drop,
    Reject,
    Passthrough,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectForm {
    #[serde(default)]
    dnat: Option<Vec<String>>,
    #[serde(default)]
    masq: Option<bool>,
    #[serde(default)]
    masq_when_dnat_to: Option<Vec<String>>,
    #[serde(default)]
    drop: Option<bool>,
    #[serde(default)]
    reject: Option<bool>,
    #[serde(default)]
    passthrough: Option<bool>,
}

impl TryFrom<ExpectForm> for Expect {
    type Error = String;

    fn try_from(form: ExpectForm) -> Result<Self, String> {
        let ExpectForm { dnat, masq, masq_when_dnat_to, drop, reject, passthrough } = form;
        let [drop, reject, passthrough] = [drop, reject, passthrough].map(Option::unwrap_or_default);
        match (dnat, drop, reject, passthrough) {
            (Some(list), false, false, false) => dnat_of(&list, masq, masq_when_dnat_to),
            (None, true, false, false) => Ok(Self::Drop),
            (None, false, true, false) => Ok(Self::Reject),
            (None, false, false, true) => Ok(Self::Passthrough),
            _ => Err("expect must hold exactly one of dnat, drop, reject and passthrough".to_owned()),
        }
    }
}

fn dnat_of(list: &[String], masq: Option<bool>, when: Option<Vec<String>>) -> Result<Expect, String> {
    let endpoints = addresses(list)?;
    if endpoints.is_empty() {
        return Err("expect.dnat is empty".to_owned());
    }
    // The list, where there is one, says it more exactly than `masq`, which then covers the other endpoints.
    let masqueraded = match (when, masq) {
        (Some(when), _) => addresses(&when)?,
        (None, Some(true)) => endpoints.clone(),
        (None, Some(false)) => BTreeSet::new(),
        (None, None) => return Err("expect.dnat needs masq or masq_when_dnat_to".to_owned()),
    };
    if !masqueraded.is_subset(&endpoints) {
        return Err("expect.masq_when_dnat_to names endpoints that expect.dnat does not".to_owned());
    }
    Ok(Expect::Dnat { endpoints, masqueraded })
}

/// Reads `IP:PORT` and `[IP]:PORT`.
pub fn addresses(list: &[String]) -> Result<BTreeSet<SocketAddr>, String> {
    list.iter().map(|text| socket_address(text)).collect()
}

/// Reads `IP:PORT`, `[IP]:PORT`, and the bare `IPv6:PORT` that some tables have.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let read = || {
        let (address, port) = text.rsplit_once(':')?;
        let address = address.trim_start_matches('[').trim_end_matches(']');
        Some(SocketAddr::new(super::form::address(address).ok()?, port.parse().ok()?))
    };
    read().ok_or_else(|| format!("{text:?} is no address and port"))
}

impl Expect {
    /// Says what is wrong with a verdict.
    pub fn check(&self, verdict: &Verdict) -> Result<(), String> {
        let actual = Self::from(verdict);
        if actual == *self { Ok(()) } else { Err(format!("expected {self}, got {actual}")) }
    }
}

impl From<&Verdict> for Expect {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Dnat { endpoints, masquerade, masquerade_when } => Self::Dnat {
                endpoints: endpoints.clone(),
                masqueraded: if *masquerade { endpoints } else { masquerade_when }.clone(),
            },
            Verdict::Drop => Self::Drop,
            Verdict::Reject => Self::Reject,
            Verdict::Passthrough => Self::Passthrough,
        }
    }
}

impl std::fmt::Display for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dnat { endpoints, masqueraded } => {
                write!(f, "dnat to {endpoints:?}")?;
                match masqueraded.len() {
                    0 => f.write_str(", not masqueraded"),
                    count if count == endpoints.len() => f.write_str(", masqueraded"),
                    _ => write!(f, ", masqueraded if to {masqueraded:?}"),
                }
            }
            Self::Drop => f.write_str("drop"),
            Self::Reject => f.write_str("reject"),
            Self::Passthrough => f.write_str("passthrough"),
        }
    }
}
