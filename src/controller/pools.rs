//! Which pools are in force: each as it was accepted last, as long as no two share an address.
//!
//! A new pool that clashes is left out. A change that clashes, or that cannot be read, is refused, and the spec accepted
//! before stays in force: so no change of one pool ever takes another out of use.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::index::PoolObject;
use crate::api::address_pool::IPAddressPoolSpec;
use crate::api::conditions::pool as reasons;
use crate::model::Family;
use crate::model::pool::Pool;
use crate::model::range::{AddressRange, number};
use crate::names::PoolName;

/// What became of one pool's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the spec is in force as written.
    pub is_accepted: bool,
    /// The condition's reason.
    pub reason: &'static str,
    /// The condition's message.
    pub message: String,
}

/// All pools.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    in_force: BTreeMap<PoolName, Pool>,
    specs: BTreeMap<PoolName, IPAddressPoolSpec>,
    verdicts: BTreeMap<PoolName, Verdict>,
    /// The last address of each range in force, and whose it is, by the first one.
    ranges: BTreeMap<(Family, u128), (u128, PoolName)>,
}

impl Pools {
    /// Judges all pools. What was accepted before comes first; the rest by age, then name.
    pub fn judge<'a>(objects: impl IntoIterator<Item = &'a PoolObject>) -> Self {
        let mut objects: Vec<&PoolObject> = objects.into_iter().collect();
        objects.sort_by(|left, right| (left.created, &left.name).cmp(&(right.created, &right.name)));
        let mut pools = Self::default();
        for object in &objects {
            if let Some(spec) = &object.status.accepted {
                // Refused only where a foreign hand wrote the status: then the spec is judged below like a new one.
                let _verdict = pools.admit(&object.name, spec);
            }
        }
        for object in &objects {
            let accepted = pools.specs.get(&object.name);
            let verdict = if accepted == Some(&object.spec) {
                accepted_verdict()
            } else {
                match pools.admit(&object.name, &object.spec) {
                    Ok(()) => accepted_verdict(),
                    Err((reason, message)) => {
                        let message = if pools.in_force.contains_key(&object.name) {
                            format!("{message}; the spec accepted before stays in force")
                        } else {
                            message
                        };
                        Verdict { is_accepted: false, reason, message }
                    }
                }
            };
            pools.verdicts.insert(object.name.clone(), verdict);
        }
        pools
    }

    /// Puts a spec in force in place of what the pool had, or says why not.
    fn admit(&mut self, name: &PoolName, spec: &IPAddressPoolSpec) -> Result<(), (&'static str, String)> {
        let pool = Pool::new(name.clone(), spec).map_err(|error| (reasons::INVALID, error.to_string()))?;
        let clashes = self.clashes(&pool);
        if !clashes.is_empty() {
            let named: Vec<String> =
                clashes.iter().take(8).map(|(other, range)| format!("{other} ({range})")).collect();
            return Err((reasons::OVERLAPS, format!("shares addresses with pool {}", named.join(", pool "))));
        }
        self.ranges.retain(|_, (_, owner)| owner != name);
        for family in Family::ALL {
            let ranges = pool.addresses.of(family).ranges();
            self.ranges.extend(ranges.map(|(first, last)| ((family, first), (last, name.clone()))));
        }
        self.specs.insert(name.clone(), spec.clone());
        self.in_force.insert(name.clone(), pool);
        Ok(())
    }

    /// What a pool would share with the others in force. Their ranges are disjoint, so only neighbours are looked at.
    fn clashes(&self, pool: &Pool) -> BTreeMap<&PoolName, AddressRange> {
        let mut clashes = BTreeMap::new();
        for family in Family::ALL {
            for (first, last) in pool.addresses.of(family).ranges() {
                let before = self.ranges.range((family, 0)..=(family, last)).rev();
                let touching = before.take_while(|(_, (other_last, _))| *other_last >= first);
                for ((_, other_first), (other_last, owner)) in touching.filter(|(_, (_, owner))| *owner != pool.name) {
                    let shared = AddressRange::between(family, first.max(*other_first), last.min(*other_last));
                    clashes.entry(owner).or_insert(shared);
                }
            }
        }
        clashes
    }

    /// The pools in force, by name.
    pub fn in_force(&self) -> impl Iterator<Item = &Pool> + '_ {
        self.in_force.values()
    }

    /// One pool in force.
    pub fn get(&self, name: &PoolName) -> Option<&Pool> {
        self.in_force.get(name)
    }

    /// The spec in force of one pool.
    pub fn spec(&self, name: &PoolName) -> Option<&IPAddressPoolSpec> {
        self.specs.get(name)
    }

    /// What became of every pool's spec.
    pub fn verdicts(&self) -> &BTreeMap<PoolName, Verdict> {
        &self.verdicts
    }

    /// The pools that are not in force at all, with the reason.
    pub fn out_of_force(&self) -> impl Iterator<Item = (&PoolName, &'static str)> + '_ {
        let verdicts = self.verdicts.iter().filter(|(name, _)| !self.in_force.contains_key(*name));
        verdicts.map(|(name, verdict)| (name, verdict.reason))
    }

    /// The pool in force that has an address.
    pub fn containing(&self, address: IpAddr) -> Option<&Pool> {
        let (family, number) = (Family::of(address), number(address));
        let (_, (last, name)) = self.ranges.range((family, 0)..=(family, number)).next_back()?;
        if number <= *last { self.in_force.get(name) } else { None }
    }
}

fn accepted_verdict() -> Verdict {
    Verdict { is_accepted: true, reason: reasons::ACCEPTED, message: "the spec is in force".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::index::testing::pool;
    use super::*;

    fn spec(text: &str) -> IPAddressPoolSpec {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn of_two_new_pools_that_clash_the_older_is_used() {
        let pools = Pools::judge(&[pool("b", 1, "addresses: [1.2.3.0/24]"), pool("a", 2, "addresses: [1.2.3.128/25]")]);
        assert!(pools.verdicts()[&"b".into()].is_accepted);
        let refused = &pools.verdicts()[&"a".into()];
        assert_eq!((refused.is_accepted, refused.reason), (false, "Overlaps"));
        assert_eq!(refused.message, "shares addresses with pool b (1.2.3.128-1.2.3.255)");
        assert_eq!(pools.containing("1.2.3.200".parse().unwrap()).unwrap().name, "b".into());
        assert!(pools.containing("1.2.4.0".parse().unwrap()).is_none());
    }

    #[test]
    fn a_change_that_clashes_leaves_both_pools_as_they_were() {
        let mut older = pool("a", 1, "addresses: [1.2.3.0/24]");
        older.status.accepted = Some(spec("addresses: [1.2.3.0/25]"));
        let mut younger = pool("b", 2, "addresses: [1.2.3.128/25]");
        younger.status.accepted = Some(spec("addresses: [1.2.3.128/25]"));
        let pools = Pools::judge(&[older, younger]);
        assert_eq!(pools.containing("1.2.3.1".parse().unwrap()).unwrap().name, "a".into());
        assert_eq!(pools.containing("1.2.3.128".parse().unwrap()).unwrap().name, "b".into());
        let refused = &pools.verdicts()[&"a".into()];
        assert!(!refused.is_accepted && refused.message.ends_with("the spec accepted before stays in force"));
        assert!(pools.verdicts()[&"b".into()].is_accepted);
    }

    #[test]
    fn a_change_that_cannot_be_read_is_refused_too() {
        let mut object = pool("a", 1, "addresses: [1.2.3.9-1.2.3.1]");
        assert_eq!(Pools::judge([&object]).in_force().count(), 0);
        object.status.accepted = Some(spec("addresses: [1.2.3.0/25]"));
        assert_eq!(Pools::judge([&object]).in_force().count(), 1);
        assert_eq!(Pools::judge([&object]).verdicts()[&"a".into()].reason, "Invalid");
    }
}
