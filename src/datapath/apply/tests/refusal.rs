//! Entries that find no room, or that the kernel refuses.

use super::*;
use crate::datapath::repairs::RENEWAL_PAUSE;

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
        assert!(listing().contains("10.96.0.9 . tcp"));
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
        assert!(listing().contains("10.96.8.1 . tcp"));
        let (gone, _) = state.pop_first().unwrap();
        let report = programmer.apply(&state, &Scope::Keys([gone].into()), &node()).unwrap();
        assert_eq!((report.is_rebuilt, report.quarantined), (false, expected));
        let report = programmer.apply(&state, &Scope::Keys([last.clone()].into()), &node()).unwrap();
        assert!(report.is_rebuilt && report.quarantined.is_empty(), "{report:?}");
        assert!(listing().contains("sticky1_10800"));
        assert_eq!(programmer.renewal_pause(), None);
        // The same again: the table is not made anew at each change.
        let (gone, _) = state.pop_first().unwrap();
        programmer.apply(&state, &Scope::Keys([gone].into()), &node()).unwrap();
        let next = EntryKey { port: key("sticky257").port, ..last };
        let mut entry = sticky(9).1;
        entry.affinity = Some(Duration::from_secs(7200));
        entry.frontends = [(Frontend::Address("10.96.8.2:80".parse().unwrap()), INTERNAL)].into();
        state.insert(next.clone(), entry);
        let scope = Scope::Keys([next.clone()].into());
        let report = programmer.apply(&state, &scope, &node()).unwrap();
        assert_eq!((report.is_rebuilt, report.quarantined.keys().collect::<Vec<_>>()), (false, vec![&next]));
        assert!(programmer.renewal_pause().unwrap() > RENEWAL_PAUSE / 2);
        assert!(!programmer.take_renewal());
        programmer.renewals = Renewals::default();
        let report = programmer.apply(&state, &scope, &node()).unwrap();
        assert!(report.is_rebuilt && report.quarantined.is_empty(), "{report:?}");
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
        assert!(listing().contains("10.96.1.19 . tcp"));
        assert!(!listing().contains("fd00:10:96::7 . tcp"));
        // Others go on changing, and it comes back when it is changed.
        let good = key("good3");
        state.insert(good.clone(), entry(&[("10.96.1.3:80", INTERNAL)], "reject"));
        let report = programmer.apply(&state, &Scope::Keys([good].into()), &node()).unwrap();
        assert!(!report.is_rebuilt && report.quarantined.len() == 1);
        state.insert(bad.clone(), entry(&[("10.96.0.7:80", INTERNAL)], "reject"));
        let report = programmer.apply(&state, &Scope::Keys([bad].into()), &node()).unwrap();
        assert!(report.quarantined.is_empty());
        assert!(listing().contains("10.96.0.7 . tcp"));
    });
}
