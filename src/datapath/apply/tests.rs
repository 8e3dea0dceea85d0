//! Against the real kernel, in network namespaces of their own.

use std::time::Duration;

use super::*;
use crate::datapath::entry::{NodePortAddresses, NodePorts, Treatment};
use crate::datapath::nft::compose::test::{EXTERNAL, EXTERNAL_LOCAL, INTERNAL, entry, key, target};
use crate::model::flat::{FlatMap, FlatSet};
use crate::model::service::TrafficPolicy;
use crate::model::{Family, Protocol};
use crate::netlink::nf_tables::test::{in_new_namespace, nft};

type Entries = BTreeMap<EntryKey, ForwardingEntry>;

const FILTERED_LOCAL: Treatment = Treatment::External { policy: TrafficPolicy::Local, is_filtered: true };

fn node() -> NodeForwarding {
    NodeForwarding {
        pod_cidrs: ["10.244.1.0/24", "10.244.2.0/24", "fd00:10:244::/64"].map(|text| text.parse().unwrap()).to_vec(),
        masquerade_all: false,
        node_ports: NodePorts {
            v4: NodePortAddresses::These(["192.168.0.2".parse().unwrap()].into()),
            v6: NodePortAddresses::These(["2001:db8::2".parse().unwrap()].into()),
        },
        service_cidrs: ["10.96.0.0/16", "fd00:10:96::/112"].map(|text| text.parse().unwrap()).to_vec(),
        cluster_ips: ["10.96.0.1", "10.96.0.2", "fd00:10:96::1"].iter().map(|text| text.parse().unwrap()).collect(),
        served: ["192.0.2.1", "2001:db8:1::1"].map(|text| text.parse().unwrap()).into(),
        echo_answers: ["192.168.0.2", "2001:db8::2"].map(|text| text.parse().unwrap()).into(),
        ..NodeForwarding::default()
    }
}

fn with(name: &str, family: Family, protocol: Protocol) -> EntryKey {
    let mut key = key(name);
    key.family = family;
    key.port.protocol = protocol;
    key
}

/// One of everything.
fn entries() -> Entries {
    let mut web = entry(
        &[("10.96.0.1:80", INTERNAL), ("192.0.2.1:80", FILTERED_LOCAL), ("30001", EXTERNAL_LOCAL)],
        "10.244.1.5:8080 10.244.2.5:8080 10.244.3.5:8080",
    );
    web.local = target("10.244.1.5:8080");
    web.affinity = Some(Duration::from_secs(10_800));
    web.source_ranges = ["203.0.113.0/24", "198.51.100.7/32"].map(|text| text.parse().unwrap()).to_vec();
    web.local_addresses = ["10.244.1.5".parse().unwrap()].into();
    let mut six = entry(
        &[("[fd00:10:96::1]:80", INTERNAL), ("[2001:db8:1::1]:80", FILTERED_LOCAL), ("30001", EXTERNAL)],
        "[fd00:10:244::5]:8080 [fd00:10:245::5]:8080",
    );
    six.affinity = Some(Duration::from_secs(60));
    six.source_ranges = vec!["2001:db8:2::/48".parse().unwrap()];
    six.local_addresses = ["fd00:10:244::5".parse().unwrap()].into();
    six.local = target("drop");
    [
        (with("web", Family::V4, Protocol::Tcp), web),
        (with("dns", Family::V4, Protocol::Udp), entry(&[("10.96.0.2:53", INTERNAL)], "reject")),
        (with("web", Family::V6, Protocol::Tcp), six),
    ]
    .into()
}

fn listing() -> String {
    nft(&["list", "ruleset"], "")
}

/// The listing with the elements of each set in order: the kernel gives them in the order of its hash.
fn sorted_listing() -> String {
    let mut out = String::new();
    let text = listing();
    // And the tables: one that is made anew is listed last.
    let mut tables: Vec<&str> = text.split_inclusive("\n}\n").collect();
    tables.sort_unstable();
    let text = tables.concat();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(first) = line.trim_start().strip_prefix("elements = { ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let mut list = first.to_owned();
        while !list.ends_with('}') {
            list.push_str(lines.next().unwrap().trim());
        }
        let mut elements: Vec<&str> = list.trim_end_matches(" }").split(',').map(str::trim).collect();
        elements.sort_unstable();
        for element in elements {
            out.push_str("\t\telement ");
            out.push_str(element);
            out.push('\n');
        }
    }
    out
}

/// The handle of the first rule of an IPv4 chain.
fn handle_of(chain: &str) -> String {
    let listing = nft(&["--handle", "list", "chain", "ip", "steelyard", chain], "");
    let rule = listing.lines().filter(|line| line.contains("# handle")).nth(2).unwrap();
    rule.split_once("# handle ").unwrap().1.to_owned()
}

fn programmed(entries: &Entries) -> Programmer {
    let mut programmer = Programmer::new().unwrap();
    programmer.apply(entries, &Scope::All, &node()).unwrap();
    programmer
}

/// Turns from one state to another by the keys that differ, and checks that a resync finds nothing left to do and that
/// the kernel has what it would have without a history.
fn turn(programmer: &mut Programmer, from: &Entries, to: &Entries) -> Report {
    let keys: BTreeSet<EntryKey> = from.keys().chain(to.keys()).cloned().collect();
    let keys = keys.into_iter().filter(|key| from.get(key) != to.get(key)).collect();
    let report = programmer.apply(to, &Scope::Keys(keys), &node()).unwrap();
    let again = programmer.apply(to, &Scope::All, &node()).unwrap();
    assert_eq!((again.deleted, again.added, again.is_rebuilt), (0, 0, false));
    report
}

#[test]
fn the_ruleset_is_what_it_was() {
    in_new_namespace(|| {
        programmed(&entries());
        insta::assert_snapshot!(sorted_listing());
    });
}

#[test]
fn the_listing_loads_again_and_lists_the_same() {
    in_new_namespace(|| {
        let mut node = node();
        node.node_ports = NodePorts { v4: NodePortAddresses::All, v6: NodePortAddresses::All };
        node.pod_cidrs.clear();
        Programmer::new().unwrap().apply(&entries(), &Scope::All, &node).unwrap();
        let (text, sorted) = (listing(), sorted_listing());
        in_new_namespace(|| {
            nft(&["-c", "-f", "-"], &text);
            nft(&["-f", "-"], &text);
            assert_eq!(sorted_listing(), sorted);
        });
    });
}

#[test]
fn a_listing_with_remembered_clients_loads_again() {
    in_new_namespace(|| {
        programmed(&entries());
        nft(&["-f", "-"], REMEMBERED);
        let text = listing();
        for client in ["f000:2 . 203.0.113.9 timeout 3h expires ", "f000:1 . 2001:db8:2::9 timeout 1m expires "] {
            assert!(text.contains(client), "{text}");
        }
        in_new_namespace(|| {
            nft(&["-f", "-"], &text);
            let again = listing();
            assert_eq!(again.matches(" expires ").count(), 3);
            assert_eq!(again.lines().count(), text.lines().count());
        });
    });
}

/// Clients of the web Service, the last of an endpoint that it has not.
const REMEMBERED: &str = "
    add element ip steelyard affinity { f000:2 . 203.0.113.9 timeout 3h : 10.244.2.5 . 8080 }
    add element ip6 steelyard affinity { f000:1 . 2001:db8:2::9 timeout 60s : fd00:10:245::5 }
    add element ip steelyard affinity { f000:2 . 203.0.113.10 timeout 3h : 10.244.9.5 . 8080 }
";

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
        step(&|entry| entry.frontends = FlatMap::new());
        step(&|entry| entry.frontends = entries()[&web].frontends.clone());
        step(&|entry| entry.local_addresses = FlatSet::new());
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
        let web = "10.96.0.1".parse().unwrap();
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
            assert!(programmer.is_programmed(web));
            let again = programmer.apply(&state, &Scope::All, &node()).unwrap();
            assert_eq!((again.deleted, again.added, again.is_rebuilt), (0, 0, false), "{foreign:?}");
        }
    });
}

#[test]
fn classes_that_are_not_used_any_more_are_taken_again() {
    in_new_namespace(|| {
        let mut state = entries();
        let mut programmer = programmed(&state);
        let grows = key("grows");
        let mut before = state.clone();
        let mut rebuilds = 0;
        // One more than there are classes, and never more than four in use.
        for count in 10..10 + 1022 {
            let endpoints: Vec<String> = (0..count).map(|n| format!("10.1.{}.{}:80", n / 250, n % 250)).collect();
            state.insert(grows.clone(), entry(&[("10.96.0.9:80", INTERNAL)], &endpoints.join(" ")));
            let scope = Scope::Keys([grows.clone()].into());
            let report = programmer.apply(&state, &scope, &node()).unwrap();
            assert!(report.quarantined.is_empty(), "{count}: {:?}", report.quarantined);
            rebuilds += u32::from(report.is_rebuilt);
        }
        assert_eq!(rebuilds, 1);
        assert!(programmer.is_programmed("10.96.0.9".parse().unwrap()));
        before.remove(&grows);
        turn(&mut programmer, &state, &before);
    });
}

#[test]
fn a_service_for_whose_affinity_no_class_is_left_is_served_without_until_there_is_one() {
    in_new_namespace(|| {
        let sticky = |number: u8| {
            let mut entry = entry(&[(&format!("10.96.7.{number}:80"), INTERNAL)], "10.244.1.5:80");
            entry.affinity = Some(Duration::from_secs(60 + u64::from(number)));
            (key(&format!("sticky{number:03}")), entry)
        };
        let mut state: Entries = (0..=255).map(sticky).collect();
        let (last, mut entry) = sticky(255);
        let last = EntryKey { port: key("sticky256").port, ..last };
        entry.affinity = Some(Duration::from_secs(10_800));
        entry.frontends = [(Frontend::Address("10.96.8.1:80".parse().unwrap()), INTERNAL)].into();
        state.insert(last.clone(), entry);
        let mut programmer = Programmer::new().unwrap();
        let expected = BTreeMap::from([(last.clone(), Quarantine::Exhausted(Exhausted::Affinity))]);
        assert_eq!(programmer.apply(&state, &Scope::All, &node()).unwrap().quarantined, expected);
        assert!(programmer.is_programmed("10.96.8.1".parse().unwrap()));
        let (gone, _) = state.pop_first().unwrap();
        let report = programmer.apply(&state, &Scope::Keys([gone].into()), &node()).unwrap();
        assert_eq!((report.is_rebuilt, report.quarantined), (false, expected));
        let report = programmer.apply(&state, &Scope::Keys([last].into()), &node()).unwrap();
        assert!(report.is_rebuilt && report.quarantined.is_empty(), "{report:?}");
        assert!(listing().contains("sticky1_10800"));
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
fn an_entry_that_the_kernel_refuses_is_left_out_alone() {
    in_new_namespace(|| {
        let mut state = entries();
        let mut programmer = programmed(&state);
        // No IPv6 address fits into a key of the IPv4 table.
        let bad = with("bad", Family::V4, Protocol::Tcp);
        for index in 0..20 {
            let frontend = format!("10.96.1.{index}:80");
            state.insert(key(&format!("good{index}")), entry(&[(&frontend, INTERNAL)], "10.244.1.5:80"));
        }
        state.insert(bad.clone(), entry(&[("[fd00:10:96::7]:80", INTERNAL)], "reject"));
        let scope = Scope::Keys(state.keys().cloned().collect());
        let report = programmer.apply(&state, &scope, &node()).unwrap();
        assert_eq!(report.quarantined.keys().collect::<Vec<_>>(), [&bad]);
        let reason = report.quarantined[&bad].to_string();
        assert!(reason.contains("elements of ip steelyard frontends: EINVAL"), "{reason}");
        assert!(programmer.is_programmed("10.96.1.19".parse().unwrap()));
        assert!(!programmer.is_programmed("fd00:10:96::7".parse().unwrap()));
        // Others go on changing, and it comes back when it is changed.
        let good = key("good3");
        state.insert(good.clone(), entry(&[("10.96.1.3:80", INTERNAL)], "reject"));
        let report = programmer.apply(&state, &Scope::Keys([good].into()), &node()).unwrap();
        assert!(!report.is_rebuilt && report.quarantined.len() == 1);
        state.insert(bad.clone(), entry(&[("10.96.0.7:80", INTERNAL)], "reject"));
        let report = programmer.apply(&state, &Scope::Keys([bad].into()), &node()).unwrap();
        assert!(report.quarantined.is_empty());
        assert!(programmer.is_programmed("10.96.0.7".parse().unwrap()));
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
        assert!(programmer.is_programmed("192.0.2.1".parse().unwrap()));
        turn(&mut programmer, &rest, &both);
        assert!(listing().contains("192.0.2.1 . tcp . 80 : c100:3 }"), "{}", listing());
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
        let (listed, addresses): (_, Vec<IpAddr>) = (sorted_listing(), first.programmed_addresses().collect());
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
            assert_eq!(second.programmed_addresses().collect::<Vec<_>>(), addresses);
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
        assert!(programmer.programmed_addresses().next().is_none());
        assert!(programmer.apply(&entries(), &Scope::All, &node()).unwrap().is_rebuilt);
    });
}

#[test]
fn rules_that_are_asked_for_print_load_again_and_replace_a_table_without_them() {
    in_new_namespace(|| {
        drop(programmed(&entries()));
        let options = Options { reset_mid_stream: true, drop_invalid: true };
        let mut programmer = Programmer::new().unwrap().with_options(options);
        assert!(programmer.apply(&entries(), &Scope::All, &node()).unwrap().is_rebuilt);
        let again = Programmer::new().unwrap().with_options(options).apply(&entries(), &Scope::All, &node()).unwrap();
        assert_eq!((again.deleted, again.added, again.is_rebuilt), (0, 0, false));
        let (text, sorted) = (listing(), sorted_listing());
        assert_eq!(text.matches("reject with tcp reset").count(), 2, "{text}");
        assert_eq!(text.matches("ct state invalid").count(), 4, "{text}");
        in_new_namespace(|| {
            nft(&["-f", "-"], &text);
            assert_eq!(sorted_listing(), sorted);
        });
    });
}
