//! Entries to test with, and what they come to.

use super::*;
use crate::model::Protocol;
use crate::names::{PortName, ServiceKey, ServicePortKey};

/// The key of a TCP port of `default/NAME` in IPv4.
pub(crate) fn key(name: &str) -> EntryKey {
    EntryKey {
        port: ServicePortKey {
            service: ServiceKey::new("default", name),
            port: PortName::new(""),
            protocol: Protocol::Tcp,
        },
        family: Family::V4,
    }
}

/// `Target::Endpoints` of these, or what the word says.
pub(crate) fn target(text: &str) -> Target {
    match text {
        "reject" => Target::Reject,
        "drop" => Target::Drop,
        endpoints => Target::Endpoints(endpoints.split_whitespace().map(|text| text.parse().unwrap()).collect()),
    }
}

/// An entry with these frontends and endpoints of policy `Cluster`.
pub(crate) fn entry(frontends: &[(&str, Treatment)], cluster: &str) -> ForwardingEntry {
    let frontends = frontends
        .iter()
        .map(|(text, treatment)| {
            let frontend = text.parse().map_or_else(|_| Frontend::NodePort(text.parse().unwrap()), Frontend::Address);
            (frontend, *treatment)
        })
        .collect();
    ForwardingEntry {
        frontends,
        cluster: target(cluster),
        local: Target::Reject,
        affinity: None,
        source_ranges: Vec::new(),
        local_addresses: FlatSet::new(),
    }
}

pub(crate) const INTERNAL: Treatment = Treatment::Internal(TrafficPolicy::Cluster);
pub(crate) const EXTERNAL: Treatment = Treatment::External { policy: TrafficPolicy::Cluster, is_filtered: false };
pub(crate) const EXTERNAL_LOCAL: Treatment = Treatment::External { policy: TrafficPolicy::Local, is_filtered: false };

fn slots(elements: &[Element]) -> Vec<(u32, String)> {
    elements
        .iter()
        .filter_map(
            |element| {
                if let Element::Endpoint { slot, to, .. } = element { Some((*slot, to.to_string())) } else { None }
            },
        )
        .collect()
}

/// The elements that a change of endpoints deletes and adds.
fn change(before: &str, after: &str) -> (usize, usize) {
    let (mut ids, mut classes) = (Ids::default(), Classes::default());
    let frontends = [("10.96.0.1:80", INTERNAL), ("192.0.2.1:80", EXTERNAL), ("30001", EXTERNAL)];
    let before = elements_of(&key("a"), &entry(&frontends, before), &mut ids, &mut classes, &[]).unwrap();
    let after = elements_of(&key("a"), &entry(&frontends, after), &mut ids, &mut classes, &before).unwrap();
    let count = slots(&after).len();
    assert_eq!(slots(&after).iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), (0..count as u32).collect::<Vec<_>>());
    (
        before.iter().filter(|element| !after.contains(element)).count(),
        after.iter().filter(|element| !before.contains(element)).count(),
    )
}

#[test]
fn a_change_of_endpoints_is_a_handful_of_elements() {
    assert_eq!(change("10.0.0.1:80 10.0.0.2:80 10.0.0.3:80", "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80"), (0, 0));
    assert_eq!(change("10.0.0.2:80 10.0.0.3:80", "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80"), (1, 2), "class and slot");
    assert_eq!(change("10.0.0.1:80 10.0.0.2:80 10.0.0.3:80", "10.0.0.2:80 10.0.0.3:80"), (3, 2), "class and two slots");
    assert_eq!(change("10.0.0.1:80 10.0.0.2:80 10.0.0.3:80", "10.0.0.9:80 10.0.0.2:80 10.0.0.3:80"), (1, 1));
    assert_eq!(change("10.0.0.1:80", "reject"), (2, 1));
    assert_eq!(change("drop", "10.0.0.1:80"), (1, 2));
}

#[test]
fn frontends_lead_to_the_id_of_their_policy_and_inside_clients_to_the_other() {
    let (mut ids, mut classes) = (Ids::default(), Classes::default());
    let mut entry = entry(&[("192.0.2.1:80", EXTERNAL_LOCAL), ("30001", EXTERNAL_LOCAL)], "10.0.0.1:80");
    entry.local = Target::Drop;
    let elements = elements_of(&key("a"), &entry, &mut ids, &mut classes, &[]).unwrap();
    let cluster = ids.get(&key("a"), TrafficPolicy::Cluster).unwrap();
    let local = ids.get(&key("a"), TrafficPolicy::Local).unwrap();
    let value = FrontendValue::new(EXTERNAL_LOCAL, local);
    let class = classes.take(1, None).unwrap();
    assert_eq!(
        elements,
        [
            Element::Endpoint { id: cluster, memory: None, slot: 0, to: "10.0.0.1:80".parse().unwrap() },
            Element::Service { id: cluster, class },
            Element::Service { id: local, class: Class::DROP },
            Element::Inside { local: value, cluster },
            Element::NodePort { port: 30001.try_into().unwrap(), protocol: Protocol::Tcp, value },
            Element::Frontend { address: "192.0.2.1:80".parse().unwrap(), protocol: Protocol::Tcp, value },
        ]
    );
}

#[test]
fn source_ranges_do_not_overlap_and_are_of_the_family() {
    let (mut ids, mut classes) = (Ids::default(), Classes::default());
    let filtered = Treatment::External { policy: TrafficPolicy::Cluster, is_filtered: true };
    let mut entry = entry(&[("192.0.2.1:80", filtered), ("192.0.2.2:80", filtered)], "reject");
    entry.source_ranges = ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"].map(|text| text.parse().unwrap()).to_vec();
    let elements = elements_of(&key("a"), &entry, &mut ids, &mut classes, &[]).unwrap();
    let ranges: Vec<_> = elements.iter().filter(|element| matches!(element, Element::SourceRange { .. })).collect();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
}

#[test]
fn without_prefixes_of_pods_nobody_is_masqueraded() {
    let mut node = NodeForwarding::default();
    assert_eq!(node_elements(&node, Family::V4), [Element::Unmasqueraded(Range::all_of(Family::V4))]);
    node.masquerade_all = true;
    assert_eq!(node_elements(&node, Family::V4), []);
    node.masquerade_all = false;
    node.pod_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
    let range = Range::from(node.pod_cidrs[0]);
    assert_eq!(node_elements(&node, Family::V4), [Element::PodCidr(range), Element::Unmasqueraded(range)]);
    assert_eq!(node_elements(&node, Family::V6), [Element::Unmasqueraded(Range::all_of(Family::V6))]);
}

#[test]
fn clients_of_one_policy_are_known_to_the_other_where_it_may_use_the_endpoint() {
    let (mut ids, mut classes) = (Ids::default(), Classes::default());
    let mut entry = entry(&[("192.0.2.1:80", EXTERNAL_LOCAL)], "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80");
    entry.local = target("10.0.0.2:80 10.0.0.9:80");
    entry.affinity = Some(std::time::Duration::from_secs(10));
    let elements = elements_of(&key("a"), &entry, &mut ids, &mut classes, &[]).unwrap();
    let [cluster, local] =
        [TrafficPolicy::Cluster, TrafficPolicy::Local].map(|policy| ids.get(&key("a"), policy).unwrap());
    let memory = classes.take_memory(Recall { seconds: 10, port: None }).unwrap().class;
    let to = "10.0.0.2:80".parse().unwrap();
    let twins: Vec<_> = elements.iter().filter(|element| matches!(element, Element::Twin { .. })).copied().collect();
    let expected = [
        Element::Twin { id: cluster, memory, to, other: local },
        Element::Twin { id: local, memory, to, other: cluster },
    ];
    assert_eq!(twins, expected);
    entry.affinity = None;
    let elements = elements_of(&key("a"), &entry, &mut ids, &mut classes, &elements).unwrap();
    assert!(!elements.iter().any(|element| matches!(element, Element::Twin { .. })));
}

#[test]
fn the_port_that_most_have_is_the_one_that_is_remembered() {
    let port = |text: &str| {
        let Target::Endpoints(endpoints) = target(text) else { panic!("{text}") };
        most_common_port(&endpoints)
    };
    assert_eq!(port("[fd00::1]:80 [fd00::2]:90 [fd00::3]:90"), Some(90));
    assert_eq!(port("[fd00::1]:90 [fd00::2]:80"), Some(80));
}
