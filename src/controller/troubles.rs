//! What nodes cannot do for a Service: many nodes' reports become one condition, of bounded length.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::DesiredCondition;
use super::index::{Index, Trouble};
use crate::api::conditions::PROGRAMMED;
use crate::model::problem::FIELD_IGNORED;
use crate::names::{NodeName, ServiceKey};

/// How many nodes a message names. More are "others", without their number: a Service is not written anew for each node
/// of a large cluster that comes to the same conclusion.
const NAMED_NODES: usize = 3;
/// How many different messages one condition carries.
const MESSAGES: usize = 3;
/// How much of a message is told. Agents keep to it; one that does not must not fill the Service's object, which every node
/// watches.
const LONGEST_MESSAGE: usize = 500;
/// The reason where a node gave one that the API server would not take.
const UNREADABLE: &str = "Problem";

/// The condition of each Service that some node cannot program.
pub fn troubles(index: &Index) -> BTreeMap<ServiceKey, DesiredCondition> {
    let mut told: BTreeMap<&ServiceKey, BTreeMap<&Trouble, BTreeSet<&NodeName>>> = BTreeMap::new();
    for node in index.nodes.values() {
        for trouble in &node.troubles {
            told.entry(&trouble.service).or_default().entry(trouble).or_default().insert(&node.node);
        }
    }
    told.into_iter().map(|(service, troubles)| (service.clone(), condition(&troubles))).collect()
}

fn condition(troubles: &BTreeMap<&Trouble, BTreeSet<&NodeName>>) -> DesiredCondition {
    // What most nodes say comes first; between equals the first by reason. A field that is ignored hides nothing else.
    let mut order: Vec<(&Trouble, &BTreeSet<&NodeName>)> = troubles.iter().map(|(a, b)| (*a, b)).collect();
    let is_minor = |trouble: &Trouble| trouble.reason == FIELD_IGNORED;
    order
        .sort_by_key(|(trouble, nodes)| (is_minor(trouble), std::cmp::Reverse(nodes.len().min(NAMED_NODES)), *trouble));
    let reason = order.first().map(|(trouble, _)| trouble.reason.as_str()).filter(|reason| is_reason(reason));
    let mut parts: Vec<String> = order
        .iter()
        .take(MESSAGES)
        .map(|(trouble, nodes)| {
            let message: String = trouble.message.chars().take(LONGEST_MESSAGE).collect();
            format!("{}: {message}", list(nodes))
        })
        .collect();
    if order.len() > MESSAGES {
        parts.push("and more, see the NodeAnnouncements".to_owned());
    }
    DesiredCondition {
        kind: PROGRAMMED,
        is_true: false,
        reason: reason.unwrap_or(UNREADABLE).to_owned().into(),
        message: parts.join("; "),
    }
}

fn list(nodes: &BTreeSet<&NodeName>) -> String {
    let named: Vec<&str> = nodes.iter().take(NAMED_NODES).map(|node| node.as_str()).collect();
    let others = if nodes.len() > NAMED_NODES { " and others" } else { "" };
    format!("on {}{others}", named.join(", "))
}

/// What the API server takes for a reason.
fn is_reason(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.len() <= 128
        && text.chars().all(|letter| letter.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::index::NodeObject;

    fn index(troubles: &[(&str, &str, &str)]) -> Index {
        let mut nodes: BTreeMap<&str, NodeObject> = BTreeMap::new();
        for (node, reason, message) in troubles {
            let object = nodes.entry(node).or_insert_with(|| NodeObject {
                node: (*node).into(),
                resource_version: "1".into(),
                announcements: Vec::new(),
                troubles: BTreeSet::new(),
            });
            object.troubles.insert(Trouble {
                service: ServiceKey::new("default", "web"),
                reason: (*reason).to_owned(),
                message: (*message).to_owned(),
            });
        }
        let mut index = Index::default();
        index.nodes.replaced(nodes.into_values().collect());
        index
    }

    fn told(index: &Index) -> (String, String) {
        let troubles = troubles(index);
        let condition = &troubles[&ServiceKey::new("default", "web")];
        (condition.reason.to_string(), condition.message.clone())
    }

    #[test]
    fn many_nodes_make_one_condition_that_stays_the_same() {
        let names: Vec<String> = (1..=9).map(|number| format!("node{number}")).collect();
        let all: Vec<_> = names.iter().map(|name| (name.as_str(), "Refused", "no")).collect();
        let of_four = told(&index(&all[..4]));
        assert_eq!(of_four, ("Refused".to_owned(), "on node1, node2, node3 and others: no".to_owned()));
        assert_eq!(told(&index(&all)), of_four);
        assert_eq!(told(&index(&all[..1])).1, "on node1: no");
    }

    #[test]
    fn different_troubles_are_told_apart_up_to_a_bound() {
        let two = index(&[("a", "Refused", "x"), ("b", "Refused", "x"), ("c", "Exhausted", "y")]);
        assert_eq!(told(&two), ("Refused".to_owned(), "on a, b: x; on c: y".to_owned()));
        let many = index(&[("a", "A", "1"), ("a", "B", "2"), ("a", "C", "3"), ("a", "D", "4")]);
        assert!(told(&many).1.ends_with("on a: 3; and more, see the NodeAnnouncements"));
        let hidden = index(&[("a", FIELD_IGNORED, "x"), ("b", FIELD_IGNORED, "x"), ("b", "Refused", "y")]);
        assert_eq!(told(&hidden), ("Refused".to_owned(), "on b: y; on a, b: x".to_owned()));
    }

    #[test]
    fn a_message_of_any_length_is_cut() {
        let message = "x".repeat(50_000);
        assert_eq!(told(&index(&[("a", "Refused", &message)])).1.len(), "on a: ".len() + LONGEST_MESSAGE);
    }

    #[test]
    fn a_reason_that_the_api_server_would_refuse_is_replaced() {
        assert_eq!(told(&index(&[("a", "no reason", "x")])).0, "Problem");
    }

    #[test]
    fn without_troubles_there_is_no_condition() {
        assert!(troubles(&index(&[])).is_empty());
    }
}
