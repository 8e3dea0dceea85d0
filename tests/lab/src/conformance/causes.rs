//! Why a spec does not pass, where we know: our words beside the suite's.

use anyhow::{Context, Result};
use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::Proxy;
use super::report::{Spec, State};

/// The file that is kept by hand.
const CAUSES: &str = include_str!("causes.json");

/// A reason why a spec is skipped or fails that is not the service proxy's fault, or is a known one of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cause {
    /// The spec's full name.
    spec: String,
    /// How it ends for this reason.
    state: State,
    /// With which service proxy; with any, if not said.
    with: Option<Proxy>,
    /// What this machine has not got; where it has it, the cause does not count.
    lacking: Option<Lacking>,
    why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Lacking {
    SctpSockets,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Causes {
    causes: Vec<Cause>,
    has_sctp: bool,
}

impl Causes {
    /// Reads our file, and looks what this machine has.
    pub(super) fn read() -> Result<Self> {
        let causes = serde_json::from_str(CAUSES).context("reading the known causes")?;
        let sctp = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(nix::libc::IPPROTO_SCTP)));
        Ok(Self { causes, has_sctp: sctp.is_ok() })
    }

    /// Why this spec ended so with this proxy, if we know.
    pub(super) fn of(&self, spec: &Spec, proxy: Proxy) -> Option<&str> {
        let applies = |cause: &&Cause| {
            cause.spec == spec.name
                && cause.state == spec.state
                && cause.with.is_none_or(|with| with == proxy)
                && match cause.lacking {
                    Some(Lacking::SctpSockets) => !self.has_sctp,
                    None => true,
                }
        };
        self.causes.iter().find(applies).map(|cause| cause.why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_holds_for_its_spec_its_end_its_proxy_and_where_something_is_lacking() {
        let causes = r#"[
            {"spec": "a", "state": "failed", "with": "kube-proxy", "why": "theirs"},
            {"spec": "b", "state": "failed", "lacking": "sctp-sockets", "why": "kernel"}
        ]"#;
        let mut causes = Causes { causes: serde_json::from_str(causes).unwrap(), has_sctp: false };
        let spec = |name: &str, state| Spec {
            name: name.into(),
            state,
            tenths: 0,
            reason: String::new(),
            second_attempt: false,
        };
        assert_eq!(causes.of(&spec("a", State::Failed), Proxy::KubeProxy), Some("theirs"));
        assert_eq!(causes.of(&spec("a", State::Failed), Proxy::Steelyard), None);
        assert_eq!(causes.of(&spec("a", State::Skipped), Proxy::KubeProxy), None);
        assert_eq!(causes.of(&spec("b", State::Failed), Proxy::Steelyard), Some("kernel"));
        causes.has_sctp = true;
        assert_eq!(causes.of(&spec("b", State::Failed), Proxy::Steelyard), None);
    }

    #[test]
    fn our_file_can_be_read_and_no_two_causes_are_for_the_same() {
        let causes = Causes::read().unwrap().causes;
        for (at, cause) in causes.iter().enumerate() {
            assert!(cause.spec.starts_with("[sig-network] ") && !cause.why.is_empty(), "{cause:?}");
            let twin = causes.iter().skip(at + 1).find(|other| {
                other.spec == cause.spec
                    && other.state == cause.state
                    && (other.with == cause.with || other.with.is_none())
            });
            assert_eq!(twin, None);
        }
    }
}
