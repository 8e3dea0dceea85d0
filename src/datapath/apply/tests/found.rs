//! What is in the kernel before a turn: others' work, and that of an agent before this one.

use super::*;

#[test]
fn a_foreign_flush_is_repaired_by_the_next_change() {
    in_new_namespace(|| {
        let before = entries();
        let mut programmer = programmed(&before);
        let expected = sorted_listing();
        nft(&["flush", "ruleset"], "");
        let web = with("web", Family::V4, Protocol::Tcp);
        let mut changed = before.clone();
        changed.remove(&web);
        let report = programmer.apply(&changed, &Scope::Keys([web].into()), &node()).unwrap();
        assert!(report.is_rebuilt);
        turn(&mut programmer, &changed, &before);
        assert_eq!(sorted_listing().lines().count(), expected.lines().count());
    });
}

#[test]
fn a_resync_restores_what_others_took_away_and_else_changes_nothing() {
    in_new_namespace(|| {
        let mut state = entries();
        // Its only frontend is another's: the kernel has nothing by which it could be known.
        state.insert(key("zero"), entry(&[("10.96.0.1:80", EXTERNAL)], "10.244.9.9:80"));
        let mut programmer = programmed(&state);
        let expected = sorted_listing();
        let web = "192.0.2.1".parse().unwrap();
        for foreign in [
            &["flush", "ruleset"][..],
            &["delete", "table", "ip6", "steelyard"],
            &["delete", "element", "ip", "steelyard", "frontends", "{ 10.96.0.1 . tcp . 80 }"],
            &["add", "element", "ip", "steelyard", "endpoints", "{ c000:77 . 0 : 9.9.9.9 . 80 }"],
            &["flush", "table", "ip", "steelyard"],
            &["flush", "chain", "ip6", "steelyard", "sticky2_60_8080"],
            &["add", "rule", "ip", "steelyard", "sticky3_10800", "drop"],
            &["insert", "rule", "ip", "steelyard", "classify", "accept"],
            &["replace", "rule", "ip", "steelyard", "unlisted", "handle", "UNLISTED", "accept"],
            &["add", "chain", "ip", "steelyard", "nat_output", "{ policy drop; }"],
            &["add", "chain", "ip", "steelyard", "more", "{ type filter hook input priority 0; }"],
            &["delete", "element", "ip", "steelyard", "slot_chains", "{ c030:0 }"],
            &["add", "table", "ip", "steelyard", "{ flags dormant; }"],
        ] {
            let handle = handle_of("unlisted");
            let foreign: Vec<&str> =
                foreign.iter().map(|word| if *word == "UNLISTED" { handle.as_str() } else { word }).collect();
            nft(&foreign, "");
            assert!(sorted_listing() != expected, "{foreign:?}");
            programmer.apply(&state, &Scope::All, &node()).unwrap();
            assert!(sorted_listing() == expected, "{foreign:?}: {}", sorted_listing());
            assert!(programmer.external_addresses().contains(web));
            let again = programmer.apply(&state, &Scope::All, &node()).unwrap();
            assert_eq!((again.deleted, again.added, again.is_rebuilt), (0, 0, false), "{foreign:?}");
        }
    });
}

#[test]
fn a_restart_with_nothing_changed_changes_nothing() {
    in_new_namespace(|| {
        let mut state = entries();
        let web = with("web", Family::V4, Protocol::Tcp);
        let mut first = programmed(&state);
        // A history that no fresh start would come to: slots and ids not in order, a frontend that moved.
        let mut before = state.clone();
        state.remove(&with("dns", Family::V4, Protocol::Udp));
        state.get_mut(&web).unwrap().cluster = target("10.244.3.5:8080 10.244.0.1:8080");
        turn(&mut first, &before, &state);
        before = state.clone();
        state.insert(with("dns", Family::V4, Protocol::Udp), entry(&[("10.96.0.2:53", INTERNAL)], "10.244.3.9:53"));
        turn(&mut first, &before, &state);
        let (listed, addresses) = (sorted_listing(), first.external_addresses().clone());
        drop(first);
        for all in [false, true] {
            let mut node = node();
            if all {
                node.node_ports = NodePorts { v4: NodePortAddresses::All, v6: NodePortAddresses::All };
                node.pod_cidrs.clear();
            }
            let mut second = Programmer::new().unwrap();
            let report = second.apply(&state, &Scope::All, &node).unwrap();
            assert!(!report.is_rebuilt);
            assert!(all || (report.deleted, report.added) == (0, 0), "{report:?}");
            assert_eq!(*second.external_addresses(), addresses);
            let mut third = Programmer::new().unwrap();
            let generation = third.connection.generation().unwrap();
            let report = third.apply(&state, &Scope::All, &node).unwrap();
            assert_eq!((report.deleted, report.added, report.is_rebuilt), (0, 0, false));
            assert_eq!(third.connection.generation().unwrap(), generation, "not even an empty transaction");
            assert!(all || sorted_listing() == listed);
        }
    });
}

#[test]
fn a_restart_corrects_what_is_not_as_it_should_be() {
    in_new_namespace(|| {
        let before = entries();
        drop(programmed(&before));
        let expected = sorted_listing();
        nft(&["delete", "element", "ip", "steelyard", "frontends", "{ 10.96.0.1 . tcp . 80 }"], "");
        nft(&["add", "element", "ip", "steelyard", "frontends", "{ 9.9.9.9 . tcp . 80 : c000:1 }"], "");
        nft(&["add", "element", "ip", "steelyard", "endpoints", "{ c000:77 . 0 : 9.9.9.9 . 80 }"], "");
        let report = programmed(&before).apply(&before, &Scope::All, &node()).unwrap();
        assert!(!report.is_rebuilt);
        assert_eq!(sorted_listing(), expected);
    });
}

#[test]
fn a_table_of_another_layout_is_replaced() {
    in_new_namespace(|| {
        nft(&["add", "table", "ip", "steelyard", "{ comment \"layout 0\" ; }"], "");
        nft(&["add", "chain", "ip", "steelyard", "old"], "");
        let report = Programmer::new().unwrap().apply(&entries(), &Scope::All, &node()).unwrap();
        assert!(report.is_rebuilt);
        assert!(!listing().contains("chain old"));
    });
}

#[test]
fn cleanup_leaves_nothing_of_ours_and_all_of_others() {
    in_new_namespace(|| {
        nft(&["add", "table", "ip", "other"], "");
        let mut programmer = programmed(&entries());
        assert_eq!(programmer.cleanup().unwrap(), Family::ALL);
        assert_eq!(listing(), "table ip other {\n}\n");
        assert!(programmer.cleanup().unwrap().is_empty());
        assert_eq!(programmer.external_addresses().iter().next(), None);
        assert!(programmer.apply(&entries(), &Scope::All, &node()).unwrap().is_rebuilt);
    });
}
