//! What `nft` lists of our tables.

use super::*;

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
