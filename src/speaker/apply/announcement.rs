//! What the node's `NodeAnnouncement` says of the speaker: what is announced, and what should be and cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::ApplyError;
use crate::api::node_announcement::Announcement;
use crate::model::problem::Problem;
use crate::runtime::telemetry::chain;
use crate::speaker::desired::{Decision, Verdict};
use crate::speaker::plan::Stations;
use crate::speaker::silence::Silence;

/// Why a node announces: it won the election.
const ELECTED: &str = "Elected";

/// What is announced now. What was so already keeps its time.
pub fn announcements(actual: &Stations, previous: &[Announcement], now: Timestamp) -> Vec<Announcement> {
    let mut announcements = Vec::new();
    for (interface, station) in actual.values() {
        for address in &station.addresses {
            let new = Announcement {
                address: address.to_string(),
                interface: interface.to_string(),
                mac: station.mac.to_string(),
                since: MicroTime(now),
                reason: ELECTED.to_owned(),
            };
            let is_same = |known: &&Announcement| Announcement { since: new.since.clone(), ..(*known).clone() } == new;
            announcements.push(previous.iter().find(is_same).cloned().unwrap_or(new));
        }
    }
    announcements.sort_by(|a, b| (&a.address, &a.interface).cmp(&(&b.address, &b.interface)));
    announcements
}

/// What this node should do and cannot.
pub fn problems<'a>(
    decisions: &BTreeMap<IpAddr, Decision>,
    errors: impl IntoIterator<Item = &'a ApplyError>,
) -> BTreeSet<Problem> {
    let defects = decisions.iter().flat_map(|(address, decision)| defects(*address, decision));
    errors.into_iter().map(failure).chain(defects).collect()
}

/// An address that this node was elected for and cannot announce: no other node will.
fn defects(address: IpAddr, decision: &Decision) -> Vec<Problem> {
    let Verdict::Silent(silence @ Silence::NoUsableInterface(_)) = &decision.verdict else { return Vec::new() };
    let message = format!("{address} is not announced: {silence}");
    let problem = |service| Problem::of_service(service, silence.reason(), message.clone());
    decision.services.iter().cloned().map(problem).collect()
}

fn failure(error: &ApplyError) -> Problem {
    let reason = match error {
        ApplyError::OpenSockets { .. } => "OpenSockets",
        ApplyError::Ended { .. } => "ResponderEnded",
    };
    Problem::of_node(reason, chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::link::{InterfaceIndex, Mac};
    use crate::names::ServiceKey;
    use crate::speaker::interfaces::NoInterface;
    use crate::speaker::l2::responder::Station;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn stations(mac: u8, addresses: &[&str]) -> Stations {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let station = Station { mac: Mac::new([2, 0, 0, 0, 0, mac]), addresses };
        [(InterfaceIndex::new(2), ("eth0".into(), station))].into()
    }

    #[test]
    fn what_goes_on_keeps_its_time() {
        let first = announcements(&stations(1, &["192.0.2.1", "2001:db8::1"]), &[], at(1));
        assert_eq!(first.len(), 2);
        let again = announcements(&stations(1, &["192.0.2.1", "2001:db8::1"]), &first, at(9));
        assert_eq!(again, first, "so that nothing is written");
        let other_mac = announcements(&stations(7, &["192.0.2.1"]), &first, at(9));
        assert_eq!(other_mac[0].since, MicroTime(at(9)));
    }

    #[test]
    fn an_elected_node_without_an_interface_says_so() {
        let silence = Silence::NoUsableInterface(NoInterface::NoneMatches);
        let decision =
            Decision { services: vec![ServiceKey::new("default", "web")], verdict: Verdict::Silent(silence) };
        let other = Decision {
            services: vec![ServiceKey::new("default", "db")],
            verdict: Verdict::Silent(Silence::NotElected { by: "node2".into() }),
        };
        let decisions = [("192.0.2.1".parse().unwrap(), decision), ("192.0.2.2".parse().unwrap(), other)].into();
        let problems: Vec<Problem> = problems(&decisions, &[]).into_iter().collect();
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!(problem.service, Some(ServiceKey::new("default", "web")));
        assert_eq!(problem.message, "192.0.2.1 is not announced: no interface matches");
    }
}
