//! Whether the datapath keeps up with what it is told, and what `/healthz` and `/livez` say of it: pure, with the time as an
//! argument.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::model::Family;
use crate::runtime::http::Answer;

/// How long a change may wait for the kernel. A turn takes milliseconds, the first of a large cluster a few seconds, and one
/// that fails is repeated every 5 s at the latest: what waits longer waits for a person. (kube-proxy allows two sync periods,
/// a minute.)
pub const LATE_AFTER: Duration = Duration::from_secs(30);

/// What Go writes for a time that never was; readers of kube-proxy's answer know it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What is known of the datapath's turns and of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// The oldest change that is not in the kernel yet.
    pending_since: Option<Instant>,
    /// When the kernel last had everything.
    updated: Option<Timestamp>,
    /// Whether load balancers may use the node, as its object says.
    is_node_eligible: bool,
}

/// The two questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// `/healthz`, of load balancers: shall this node get traffic?
    Healthy,
    /// `/livez`, of whoever restarts processes: does this one still work?
    Live,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<Family, FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

impl Freshness {
    /// A change was seen that the kernel does not have.
    pub fn queue(&mut self, now: Instant) {
        self.pending_since.get_or_insert(now);
    }

    /// The kernel has everything that was seen. Both families are programmed together.
    pub fn update(&mut self, now: Timestamp) {
        self.pending_since = None;
        self.updated = Some(now);
    }

    /// The node's object was seen: a node that is about to go, or whose object is gone, is no place for new traffic.
    pub const fn see_node(&mut self, is_eligible: bool) {
        self.is_node_eligible = is_eligible;
    }

    /// Whether what was seen is in the kernel or has not waited long.
    pub fn keeps_up(&self, now: Instant) -> bool {
        self.pending_since.is_none_or(|since| now.duration_since(since) < LATE_AFTER)
    }

    /// The answer to a question. Before the kernel has had everything once the node is not healthy, but nothing is wrong with
    /// the process: it waits for the API server, perhaps.
    pub fn answer(&self, question: Question, now: Instant, wall: Timestamp) -> Answer {
        let keeps_up = self.keeps_up(now);
        let (node_eligible, is_good) = match question {
            Question::Healthy => {
                (Some(self.is_node_eligible), keeps_up && self.is_node_eligible && self.updated.is_some())
            }
            Question::Live => (None, keeps_up),
        };
        let updated = self.updated.map_or_else(|| NEVER.to_owned(), |time| time.to_string());
        let families = Family::ALL.into_iter().filter(|_| self.updated.is_some());
        let of_family = |family: Family| (family, FamilyBody { last_updated: updated.clone(), healthy: keeps_up });
        let body = Body {
            // Readers take an old time for a datapath that hangs, while it may be that nothing changes.
            last_updated: if is_good { wall.to_string() } else { updated.clone() },
            current_time: wall.to_string(),
            node_eligible,
            healthy: keeps_up && (question == Question::Live || self.updated.is_some()),
            status: families.map(of_family).collect(),
        };
        Answer::json(Answer::status_of(is_good), &body)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ask(freshness: &Freshness, question: Question, now: Instant) -> (u16, Value) {
        let wall = "2026-01-02T03:04:05.5Z".parse().unwrap();
        let answer = freshness.answer(question, now, wall);
        (answer.status, serde_json::from_str(&answer.body).unwrap())
    }

    fn statuses(freshness: &Freshness, now: Instant) -> (u16, u16) {
        (ask(freshness, Question::Healthy, now).0, ask(freshness, Question::Live, now).0)
    }

    fn settled() -> Freshness {
        let mut freshness = Freshness::default();
        freshness.see_node(true);
        freshness.update("2026-01-02T03:00:00Z".parse().unwrap());
        freshness
    }

    #[test]
    fn a_process_that_waits_for_its_first_lists_is_alive_and_not_healthy() {
        let mut freshness = Freshness::default();
        let now = Instant::now();
        assert_eq!(statuses(&freshness, now), (503, 200));
        freshness.see_node(true);
        let (status, body) = ask(&freshness, Question::Healthy, now);
        assert_eq!((status, &body["healthy"], &body["lastUpdated"]), (503, &json!(false), &json!(NEVER)));
        freshness.update(Timestamp::UNIX_EPOCH);
        assert_eq!(statuses(&freshness, now), (200, 200));
    }

    #[test]
    fn a_change_that_waits_too_long_is_ill_until_it_is_in_the_kernel() {
        let mut freshness = settled();
        let start = Instant::now();
        freshness.queue(start);
        freshness.queue(start + LATE_AFTER / 2);
        assert_eq!(statuses(&freshness, start + LATE_AFTER - Duration::from_millis(1)), (200, 200));
        let late = start + LATE_AFTER;
        assert_eq!(statuses(&freshness, late), (503, 503));
        let (_, body) = ask(&freshness, Question::Healthy, late);
        assert_eq!(body["status"]["IPv4"], json!({"lastUpdated": "2026-01-02T03:00:00Z", "healthy": false}));
        freshness.update(Timestamp::UNIX_EPOCH);
        assert_eq!(statuses(&freshness, late), (200, 200));
    }

    #[test]
    fn a_node_that_leaves_is_not_healthy_and_its_process_is_alive() {
        let mut freshness = settled();
        freshness.see_node(false);
        let now = Instant::now();
        assert_eq!(statuses(&freshness, now), (503, 200));
        let (_, body) = ask(&freshness, Question::Healthy, now);
        assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(false), &json!(true)));
    }

    #[test]
    fn answers_have_the_fields_of_kube_proxy() {
        let freshness = settled();
        let of_family = json!({"lastUpdated": "2026-01-02T03:00:00Z", "healthy": true});
        let mut expected = json!({
            "lastUpdated": "2026-01-02T03:04:05.5Z", "currentTime": "2026-01-02T03:04:05.5Z", "nodeEligible": true,
            "healthy": true, "status": {"IPv4": of_family, "IPv6": of_family},
        });
        assert_eq!(ask(&freshness, Question::Healthy, Instant::now()), (200, expected.clone()));
        expected.as_object_mut().unwrap().remove("nodeEligible");
        assert_eq!(ask(&freshness, Question::Live, Instant::now()), (200, expected));
    }
}
