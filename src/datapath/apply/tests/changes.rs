//! One turn after another.

use super::*;

#[test]
fn a_change_touches_its_own_elements() {
    in_new_namespace(|| {
        let before = entries();
        let mut programmer = programmed(&before);
        let mut after = before.clone();
        after.get_mut(&with("web", Family::V4, Protocol::Tcp)).unwrap().cluster =
            target("10.244.1.5:8080 10.244.2.5:8080 10.244.3.5:8080 10.244.4.5:8080");
        let report = turn(&mut programmer, &before, &after);
        assert_eq!((report.deleted, report.added, report.is_rebuilt), (1, 2, false));
        assert!(listing().contains("10.244.4.5 . 8080"));
        let report = turn(&mut programmer, &after, &before);
        assert_eq!((report.deleted, report.added), (2, 1));
        assert!(!listing().contains("10.244.4.5 . 8080"));
    });
}

#[test]
fn every_kind_of_change_is_taken_without_a_rebuild() {
    in_new_namespace(|| {
        let web = with("web", Family::V4, Protocol::Tcp);
        let mut state = entries();
        let mut programmer = programmed(&state);
        let mut step = |change: &dyn Fn(&mut ForwardingEntry)| {
            let mut next = state.clone();
            change(next.get_mut(&web).unwrap());
            let report = turn(&mut programmer, &state, &next);
            assert!(!report.is_rebuilt);
            state = next;
        };
        step(&|entry| entry.source_ranges = vec!["203.0.0.0/16".parse().unwrap()]);
        step(&|entry| entry.source_ranges = vec!["203.0.113.0/24".parse().unwrap()]);
        step(&|entry| entry.source_ranges = vec!["0.0.0.0/0".parse().unwrap()]);
        step(&|entry| entry.local = target("drop"));
        step(&|entry| entry.cluster = target("reject"));
        step(&|entry| {
            entry.frontends.insert(Frontend::Address("192.0.2.1:80".parse().unwrap()), EXTERNAL);
        });
        step(&|entry| entry.frontends = Default::default());
        step(&|entry| entry.frontends = entries()[&web].frontends.clone());
        step(&|entry| entry.local_addresses = Default::default());
    });
}

#[test]
fn node_settings_change_in_place() {
    in_new_namespace(|| {
        let mut programmer = programmed(&entries());
        for prefixes in [&["10.244.0.0/16"][..], &["10.244.1.0/24", "10.244.2.0/25"], &[], &["0.0.0.0/1"]] {
            let mut node = node();
            node.pod_cidrs = prefixes.iter().map(|text| text.parse().unwrap()).collect();
            node.node_ports = NodePorts { v4: NodePortAddresses::All, v6: NodePortAddresses::All };
            let report = programmer.apply(&entries(), &Scope::Keys(BTreeSet::new()), &node).unwrap();
            assert!(!report.is_rebuilt && report.added > 0, "{prefixes:?}: {report:?}");
            listing();
        }
    });
}

#[test]
fn ids_of_services_that_went_unseen_are_given_back() {
    in_new_namespace(|| {
        let mut state = entries();
        let mut programmer = programmed(&state);
        let gone = state.pop_first().unwrap().0;
        programmer.apply(&state, &Scope::All, &node()).unwrap();
        state.insert(gone, entries().pop_first().unwrap().1);
        programmer.apply(&state, &Scope::All, &node()).unwrap();
        // Given back and not taken again at once.
        assert!(listing().contains("c000:4 "), "{}", listing());
    });
}

#[test]
fn of_two_entries_that_want_one_address_the_first_has_it_and_the_other_inherits_it() {
    in_new_namespace(|| {
        let one = entry(&[("192.0.2.1:80", EXTERNAL)], "10.244.1.5:80");
        let other = entry(&[("192.0.2.1:80", INTERNAL)], "10.244.1.6:80");
        let both: Entries = [(key("a"), one.clone()), (key("b"), other.clone())].into();
        let mut programmer = programmed(&both);
        assert!(listing().contains("192.0.2.1 . tcp . 80 : c100:1 }"), "{}", listing());
        let rest: Entries = [(key("b"), other)].into();
        turn(&mut programmer, &both, &rest);
        assert!(listing().contains("192.0.2.1 . tcp . 80 : c000:2 }"), "{}", listing());
        assert!(
            !programmer.external_addresses().contains("192.0.2.1".parse().unwrap()),
            "as a cluster IP it counts not"
        );
        turn(&mut programmer, &rest, &both);
        assert!(listing().contains("192.0.2.1 . tcp . 80 : c100:3 }"), "{}", listing());
    });
}
