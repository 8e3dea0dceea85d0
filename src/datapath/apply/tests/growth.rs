//! Maps that are full, while everything else goes on.

use super::*;
use crate::datapath::desired::Update;

/// So many Services, of one endpoint each.
fn many(count: u8) -> Entries {
    let mut state = entries();
    for number in 0..count {
        let (frontend, endpoint) = (format!("10.96.7.{number}:80"), format!("10.244.9.{number}:80"));
        state.insert(key(&format!("more-{number:03}")), entry(&[(&frontend, INTERNAL)], &endpoint));
    }
    state
}

#[test]
fn a_map_that_is_full_is_made_anew_and_the_rest_stays() {
    in_new_namespace(|| {
        let mut state = entries();
        let mut programmer = programmed(&state);
        let client = "{ f000:2 . 198.51.100.9 timeout 1h : 10.244.1.5 . 8080 }";
        nft(&["add", "element", "ip", "steelyard", "affinity", client], "");
        let mut rebuilt = 0;
        for count in [1, 20, 21, 200, 3, 0, 200] {
            let before = std::mem::replace(&mut state, many(count));
            rebuilt += usize::from(turn(&mut programmer, &before, &state).is_rebuilt);
            let listing = listing();
            assert!(listing.contains("198.51.100.9 timeout 1h"), "with {count} more");
            assert_eq!(listing.matches("10.96.7.").count(), usize::from(count));
            let restarted = Programmer::new().unwrap().apply(&state, &Scope::All, &node()).unwrap();
            assert_eq!((restarted.deleted, restarted.added, restarted.is_rebuilt), (0, 0, false));
        }
        assert_eq!(rebuilt, 0);
        let grown = sorted_listing();
        assert!(grown.contains("size 512"), "{grown}");
        // What is made anew has the same chains, rules and elements.
        programmer.cleanup().unwrap();
        programmed(&state);
        let without_sizes = |listing: &str| listing.lines().filter(|line| !line.contains("size ")).count();
        assert_eq!(without_sizes(&grown), without_sizes(&sorted_listing()) + 1, "but for the client");
    });
}

#[test]
fn a_full_map_of_which_something_goes_in_the_same_turn_tells_what_went() {
    in_new_namespace(|| {
        let mut programmer = programmed(&many(3));
        let mut after = many(60);
        let gone = key("more-001");
        after.remove(&gone);
        let report = turn(&mut programmer, &many(3), &after);
        let frontends: Vec<Frontend> = report.removed.iter().map(|removed| removed.frontend).collect();
        assert_eq!(frontends, [Frontend::Address("10.96.7.1:80".parse().unwrap())]);
    });
}

#[test]
fn a_refused_entry_is_found_also_where_a_map_is_full() {
    in_new_namespace(|| {
        let before = entries();
        let mut programmer = programmed(&before);
        let mut after = many(60);
        // The kernel alone says that an IPv6 address does not fit.
        let bad = key("more-030");
        after.insert(bad.clone(), entry(&[("[2001:db8::1]:80", INTERNAL)], "10.244.9.9:80"));
        let keys = after.keys().filter(|key| !before.contains_key(*key)).cloned().collect();
        let update = Update { entries: keys, ..Update::default() };
        let report = programmer.apply(&after, &Scope::Update(update), &node()).unwrap();
        assert_eq!((report.quarantined.keys().collect::<Vec<_>>(), report.is_rebuilt), (vec![&bad], false));
        assert_eq!(listing().matches("10.96.7.").count(), 59);
    });
}
