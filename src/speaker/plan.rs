//! From what should be announced and what is, to what to change. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::desired::{Decision, Verdict};
use super::l2::responder::Station;
use crate::model::link::InterfaceIndex;
use crate::names::InterfaceName;

/// What each interface announces. The name belongs to it: an interface that is renamed starts afresh.
pub type Stations = BTreeMap<InterfaceIndex, (InterfaceName, Station)>;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Announce nothing on the interface any more.
    Stop(InterfaceIndex),
    /// Announce exactly this on an interface that announces already.
    Set(InterfaceIndex, Station),
    /// Begin to announce on an interface.
    Start(InterfaceIndex, InterfaceName, Station),
}

/// What the decisions mean for each interface.
pub fn stations(decisions: &BTreeMap<IpAddr, Decision>) -> Stations {
    let mut stations = Stations::new();
    for (address, decision) in decisions {
        let Verdict::Announce(interfaces) = &decision.verdict else { continue };
        for (index, usable) in interfaces {
            let new = || (usable.name.clone(), Station { mac: usable.mac, addresses: BTreeSet::new() });
            stations.entry(*index).or_insert_with(new).1.addresses.insert(*address);
        }
    }
    stations
}

/// The changes, withdrawals before announcements: an address that moves from one interface to another is never on both.
pub fn plan(desired: &Stations, actual: &Stations) -> Vec<Change> {
    let mut changes = Vec::new();
    for (index, (name, _)) in actual {
        if desired.get(index).is_none_or(|(wanted, _)| wanted != name) {
            changes.push(Change::Stop(*index));
        }
    }
    let kept = |index: &InterfaceIndex, name: &InterfaceName| {
        actual.get(index).filter(|(known, _)| known == name).map(|(_, station)| station)
    };
    let (mut shrinking, mut growing) = (Vec::new(), Vec::new());
    for (index, (name, station)) in desired {
        let Some(known) = kept(index, name) else {
            growing.push(Change::Start(*index, name.clone(), station.clone()));
            continue;
        };
        let rest = Station { mac: station.mac, addresses: &known.addresses & &station.addresses };
        let gains = rest != *station;
        if rest.addresses != known.addresses || (!gains && rest != *known) {
            shrinking.push(Change::Set(*index, rest));
        }
        if gains {
            growing.push(Change::Set(*index, station.clone()));
        }
    }
    changes.extend(shrinking.into_iter().chain(growing));
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::link::Mac;

    fn station(mac: u8, addresses: &[u8]) -> Station {
        let addresses = addresses.iter().map(|number| IpAddr::from([192, 0, 2, *number])).collect();
        Station { mac: Mac::new([2, 0, 0, 0, 0, mac]), addresses }
    }

    fn one(index: u32, name: &str, station: Station) -> (InterfaceIndex, (InterfaceName, Station)) {
        (InterfaceIndex::new(index), (name.into(), station))
    }

    /// What is there after each of the changes.
    fn steps(actual: &Stations, changes: Vec<Change>) -> Vec<Stations> {
        let mut stations = actual.clone();
        let step = |change| {
            match change {
                Change::Stop(index) => assert!(stations.remove(&index).is_some(), "stopped what was not there"),
                Change::Set(index, station) => stations.get_mut(&index).unwrap().1 = station,
                Change::Start(index, name, station) => {
                    assert!(stations.insert(index, (name, station)).is_none(), "started what was there");
                }
            }
            stations.clone()
        };
        changes.into_iter().map(step).collect()
    }

    /// What is there in the end.
    fn carry_out(actual: &Stations, changes: Vec<Change>) -> Stations {
        steps(actual, changes).pop().unwrap_or_else(|| actual.clone())
    }

    /// Which addresses are where.
    fn places(stations: &Stations) -> BTreeSet<(InterfaceIndex, &InterfaceName, IpAddr)> {
        stations
            .iter()
            .flat_map(|(index, (name, station))| station.addresses.iter().map(move |address| (*index, name, *address)))
            .collect()
    }

    #[test]
    fn withdrawals_come_first() {
        let actual = [one(1, "eth0", station(1, &[1, 2])), one(2, "eth1", station(2, &[3]))].into();
        let desired = [one(1, "eth0", station(1, &[1])), one(3, "eth2", station(3, &[2, 3]))].into();
        let expected = [
            Change::Stop(InterfaceIndex::new(2)),
            Change::Set(InterfaceIndex::new(1), station(1, &[1])),
            Change::Start(InterfaceIndex::new(3), "eth2".into(), station(3, &[2, 3])),
        ];
        assert_eq!(plan(&desired, &actual), expected);
    }

    #[test]
    fn addresses_that_change_places_are_on_neither_in_between() {
        let actual = [one(1, "eth0", station(1, &[1, 2])), one(2, "eth1", station(2, &[3]))].into();
        let desired = [one(1, "eth0", station(1, &[1, 3])), one(2, "eth1", station(2, &[2]))].into();
        let expected = [
            Change::Set(InterfaceIndex::new(1), station(1, &[1])),
            Change::Set(InterfaceIndex::new(2), station(2, &[])),
            Change::Set(InterfaceIndex::new(1), station(1, &[1, 3])),
            Change::Set(InterfaceIndex::new(2), station(2, &[2])),
        ];
        assert_eq!(plan(&desired, &actual), expected);
    }

    #[test]
    fn a_new_ethernet_address_is_set_and_a_new_name_starts_afresh() {
        let actual = [one(1, "eth0", station(1, &[1]))].into();
        let moved = [one(1, "eth0", station(9, &[1]))].into();
        assert_eq!(plan(&moved, &actual), [Change::Set(InterfaceIndex::new(1), station(9, &[1]))]);
        let renamed = [one(1, "lan0", station(1, &[1]))].into();
        assert_eq!(plan(&renamed, &actual).len(), 2);
        assert_eq!(carry_out(&actual, plan(&renamed, &actual)), renamed);
    }

    fn any_stations() -> impl Strategy<Value = Stations> {
        let entry = (0u8..2, prop::collection::vec(0u8..6, 1..4), prop::sample::select(vec!["eth0", "eth1"]));
        prop::collection::btree_map(1u32..5, entry, 0..4).prop_map(|all| {
            all.into_iter().map(|(index, (mac, addresses, name))| one(index, name, station(mac, &addresses))).collect()
        })
    }

    proptest! {
        #[test]
        fn the_changes_lead_from_what_is_to_what_should_be(desired in any_stations(), actual in any_stations()) {
            prop_assert_eq!(carry_out(&actual, plan(&desired, &actual)), desired.clone());
            prop_assert_eq!(plan(&desired, &desired), []);
        }

        /// First addresses only go, then they only come: one that moves is never on both.
        #[test]
        fn no_withdrawal_follows_an_announcement(desired in any_stations(), actual in any_stations()) {
            for step in steps(&actual, plan(&desired, &actual)) {
                let there = places(&step);
                prop_assert!(there.is_subset(&places(&actual)) || there.is_subset(&places(&desired)), "{step:?}");
            }
        }
    }
}
