//! Which node announces which address: the same answer on every node that knows the same. Pure.
//!
//! Rendezvous hashing: for each address every candidate has a rank, and the highest wins. So the loss of a node moves the
//! addresses that it had and no other, and they spread over all that are left.
//!
//! The function sees all addresses at once, since a later rule may look at how many each node has: so far nothing bounds
//! that number, and it varies as chance has it.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use siphasher::sip::SipHasher24;

use crate::names::NodeName;

/// The key of the hash. It is no secret; it must only never change, for agents of two versions elect together.
const KEY: (u64, u64) = (0x7374_6565_6c79_6172, 0x6465_6c65_6374_696f);

/// The nodes that may have an address, and how much each is preferred: the greatest preference wins before any hash.
pub type Candidates = Arc<BTreeMap<NodeName, i64>>;

/// The election for one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ballot {
    /// Addresses of one group stay together where they have the same candidates: both families of a Service, and the
    /// addresses of Services that share one. Named by its lowest address.
    pub group: IpAddr,
    /// Who may win.
    pub candidates: Candidates,
}

/// Elects one node for each address that has a candidate.
pub fn elect(ballots: &BTreeMap<IpAddr, Ballot>) -> BTreeMap<IpAddr, NodeName> {
    let winner = |ballot: &Ballot| {
        let ranked = ballot.candidates.iter().map(|(node, preference)| (*preference, rank(ballot.group, node), node));
        // Equal ranks of two nodes are next to impossible; the names decide even then.
        ranked.max().map(|(_, _, node)| node.clone())
    };
    ballots.iter().filter_map(|(address, ballot)| Some((*address, winner(ballot)?))).collect()
}

fn rank(group: IpAddr, node: &NodeName) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(KEY.0, KEY.1);
    // Fixed byte order and lengths: nothing here may depend on the machine.
    match group {
        IpAddr::V4(address) => hasher.write(&address.octets()),
        IpAddr::V6(address) => hasher.write(&address.octets()),
    }
    hasher.write(&[0]);
    hasher.write(node.as_str().as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn node(number: usize) -> NodeName {
        NodeName::new(format!("node{number}"))
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::V4((0xc000_0200 + number).into())
    }

    fn candidates(nodes: impl IntoIterator<Item = (usize, i64)>) -> Candidates {
        Arc::new(nodes.into_iter().map(|(number, preference)| (node(number), preference)).collect())
    }

    fn ballots(count: u32, nodes: &Candidates) -> BTreeMap<IpAddr, Ballot> {
        (0..count)
            .map(|number| (address(number), Ballot { group: address(number), candidates: Arc::clone(nodes) }))
            .collect()
    }

    fn even(count: usize) -> Candidates {
        candidates((0..count).map(|number| (number, 0)))
    }

    #[test]
    fn the_winners_are_those_of_every_other_version() {
        let winners: Vec<String> = elect(&ballots(6, &even(3))).into_values().map(|node| node.to_string()).collect();
        assert_eq!(winners.join(" "), "node2 node0 node2 node2 node1 node2");
    }

    #[test]
    fn the_preferred_win_before_any_hash() {
        let winners = elect(&ballots(50, &candidates([(0, 0), (1, 5), (2, 4)])));
        assert_eq!(winners.into_values().collect::<BTreeSet<_>>(), [node(1)].into());
    }

    #[test]
    fn addresses_of_a_group_stay_together() {
        let group = address(9);
        let nodes = even(20);
        let same = |address: IpAddr| (address, Ballot { group, candidates: Arc::clone(&nodes) });
        let winners = elect(&[same(group), same("2001:db8::1".parse().unwrap())].into());
        assert_eq!(winners.len(), 2);
        assert_eq!(winners.values().collect::<BTreeSet<_>>().len(), 1);
    }

    #[test]
    fn nobody_wins_without_a_candidate() {
        assert_eq!(elect(&ballots(3, &even(0))), BTreeMap::new());
    }

    #[test]
    fn addresses_spread_over_all_nodes() {
        let winners = elect(&ballots(1000, &even(10)));
        let mut counts = BTreeMap::<&NodeName, usize>::new();
        winners.values().for_each(|node| *counts.entry(node).or_default() += 1);
        assert!(counts.len() == 10 && counts.values().all(|count| (60..140).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn every_address_has_exactly_one_owner_among_its_candidates(
            sets in prop::collection::vec(prop::collection::btree_map(0usize..12, 0i64..3, 0..8), 1..30),
        ) {
            let ballots: BTreeMap<IpAddr, Ballot> = (0..).zip(sets)
                .map(|(number, set)| (address(number), Ballot { group: address(number), candidates: candidates(set) }))
                .collect();
            let winners = elect(&ballots);
            for (address, ballot) in &ballots {
                match winners.get(address) {
                    Some(winner) => {
                        let best = ballot.candidates.values().max();
                        prop_assert_eq!(ballot.candidates.get(winner), best);
                    }
                    None => prop_assert!(ballot.candidates.is_empty()),
                }
            }
            prop_assert!(winners.keys().all(|address| ballots.contains_key(address)));
        }

        #[test]
        fn a_node_that_goes_moves_only_what_it_had(count in 1u32..60, nodes in 2usize..12, gone in 0usize..12) {
            let gone = gone % nodes;
            let before = elect(&ballots(count, &even(nodes)));
            let left = candidates((0..nodes).filter(|number| *number != gone).map(|number| (number, 0)));
            let after = elect(&ballots(count, &left));
            for (address, owner) in &before {
                if *owner != node(gone) {
                    prop_assert_eq!(&after[address], owner);
                }
            }
        }

        #[test]
        fn what_happens_to_one_address_moves_no_other(count in 2u32..40, removed in 0u32..40) {
            let nodes = even(5);
            let all = ballots(count, &nodes);
            let mut fewer = all.clone();
            fewer.remove(&address(removed % count));
            let (all, fewer) = (elect(&all), elect(&fewer));
            prop_assert!(fewer.iter().all(|(address, owner)| all.get(address) == Some(owner)));
        }
    }
}
