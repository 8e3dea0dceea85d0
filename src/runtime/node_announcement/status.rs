//! What the status of a `NodeAnnouncement` says, from what the parts of the agent have said.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::node_announcement::{NodeAnnouncementStatus, Problem};
use crate::runtime::node_report::NodeReport;

/// How many problems one object names: it is read by people, and the API server takes no object of any size.
const MOST_PROBLEMS: usize = 100;
/// How long a message may be; the rest is cut.
const LONGEST_MESSAGE: usize = 500;

/// The status, or nothing before it is known what is announced. Times of `previous` are kept for what was so already.
pub(super) fn status(
    report: &NodeReport,
    previous: &NodeAnnouncementStatus,
    now: Timestamp,
) -> Option<NodeAnnouncementStatus> {
    let announcements = report.announcements.clone()?;
    let addresses: BTreeSet<&str> = announcements.iter().map(|announcement| announcement.address.as_str()).collect();
    Some(NodeAnnouncementStatus {
        announced: i32::try_from(addresses.len()).unwrap_or(i32::MAX),
        datapath: report.datapath.map(str::to_owned),
        service_proxy: report.service_proxy.clone(),
        problems: problems(report, &previous.problems, now),
        announcements,
    })
}

fn problems(report: &NodeReport, previous: &[Problem], now: Timestamp) -> Vec<Problem> {
    let dated = |new: Problem| {
        let is_same = |known: &&Problem| Problem { since: new.since.clone(), ..(*known).clone() } == new;
        previous.iter().find(is_same).cloned().unwrap_or(new)
    };
    // Whole seconds, which the API keeps.
    let since = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let mut all: Vec<(&'static str, &crate::model::problem::Problem)> = Vec::new();
    for (source, problems) in &report.problems {
        all.extend(problems.iter().map(|problem| (source.component, problem)));
    }
    // What concerns the whole node first; then by Service, so that none is left out by chance.
    all.sort_by(|(a, left), (b, right)| (left, a).cmp(&(right, b)));
    all.dedup();
    let mut named: Vec<Problem> = all
        .iter()
        .take(MOST_PROBLEMS)
        .map(|(component, problem)| {
            dated(Problem {
                component: (*component).to_owned(),
                service: problem.service.as_ref().map(ToString::to_string),
                reason: problem.reason.to_owned(),
                message: problem.message.chars().take(LONGEST_MESSAGE).collect(),
                since: since.clone(),
            })
        })
        .collect();
    if let Some(more) = all.len().checked_sub(MOST_PROBLEMS).filter(|more| *more > 0) {
        named.push(dated(Problem {
            component: all.get(MOST_PROBLEMS).map_or("datapath", |(component, _)| *component).to_owned(),
            service: None,
            reason: "MoreProblems".to_owned(),
            message: format!("{more} more problems are not listed; the agent's log has all of them"),
            since,
        }));
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::problem::Problem as Said;
    use crate::names::ServiceKey;
    use crate::runtime::node_report::NodeReports;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn report(problems: impl IntoIterator<Item = Said>) -> NodeReport {
        let reports = NodeReports::default();
        reports.set_announcements(Vec::new());
        let reporter = reports.reporter("datapath", "test");
        reporter.report(problems.into_iter().collect());
        reports.follow().borrow().clone()
    }

    #[test]
    fn nothing_is_said_before_it_is_known_what_is_announced() {
        assert_eq!(status(&NodeReport::default(), &NodeAnnouncementStatus::default(), at(1)), None);
    }

    #[test]
    fn a_problem_keeps_its_time_and_the_node_comes_first() {
        let web = Said::of_service(ServiceKey::new("default", "web"), "Refused", "the kernel refuses it");
        let first = status(&report([web.clone()]), &NodeAnnouncementStatus::default(), at(1)).unwrap();
        assert_eq!(first.problems[0].service.as_deref(), Some("default/web"));
        assert_eq!(first.problems[0].component, "datapath");
        let node = Said::of_node("Whole", "all of it");
        let second = status(&report([web, node]), &first, at(9)).unwrap();
        let told: Vec<_> = second.problems.iter().map(|problem| (problem.reason.as_str(), problem.since.0)).collect();
        assert_eq!(told, [("Whole", at(9)), ("Refused", at(1))]);
    }

    #[test]
    fn a_thousand_problems_are_a_hundred_and_a_line() {
        let name = |number: usize| ServiceKey::new("default", format!("web{number}"));
        let many = (0..1000).map(|number| Said::of_service(name(number), "Refused", "x".repeat(5000)));
        let status = status(&report(many), &NodeAnnouncementStatus::default(), at(1)).unwrap();
        assert_eq!(status.problems.len(), MOST_PROBLEMS + 1);
        assert_eq!(
            status.problems[MOST_PROBLEMS].message,
            "900 more problems are not listed; the agent's log has all of them"
        );
        assert!(serde_json::to_string(&status).unwrap().len() < 100_000);
    }
}
