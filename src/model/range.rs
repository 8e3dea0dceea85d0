//! Sets of addresses as ranges of numbers: a /64 costs as much as a single address.

use std::fmt;
use std::net::IpAddr;

use thiserror::Error;

use super::Family;
use super::address::{parse_address, parse_prefix};

/// Why a text names no range of addresses.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RangeError {
    /// It is neither an address, nor a CIDR, nor two addresses with a dash.
    #[error("{0:?} is neither an address, nor a CIDR, nor a range FIRST-LAST")]
    Unreadable(String),
    /// The two ends are of different families.
    #[error("{0:?} begins in one address family and ends in the other")]
    Families(String),
    /// The first address comes after the last.
    #[error("{0:?} ends before it begins")]
    Backwards(String),
}

/// An address as a number within its family.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of a number, if the family has so many.
pub fn address(family: Family, number: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => u32::try_from(number).ok().map(|bits| IpAddr::V4(bits.into())),
        Family::V6 => Some(IpAddr::V6(number.into())),
    }
}

/// Addresses from a first to a last one, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    family: Family,
    first: u128,
    last: u128,
}

impl AddressRange {
    /// Reads an address, a CIDR or `FIRST-LAST`; host bits of a CIDR are cleared.
    ///
    /// # Errors
    /// When the text is none of these, or a range is of two families or backwards.
    pub fn parse(text: &str) -> Result<Self, RangeError> {
        let unreadable = || RangeError::Unreadable(text.to_owned());
        if let Some((first, last)) = text.split_once('-') {
            let first = parse_address(first).ok_or_else(unreadable)?;
            let last = parse_address(last).ok_or_else(unreadable)?;
            if Family::of(first) != Family::of(last) {
                return Err(RangeError::Families(text.to_owned()));
            }
            if last < first {
                return Err(RangeError::Backwards(text.to_owned()));
            }
            return Ok(Self { family: Family::of(first), first: number(first), last: number(last) });
        }
        if let Some(prefix) = parse_prefix(text) {
            let (first, last) = (prefix.network(), prefix.broadcast());
            return Ok(Self { family: Family::of(first), first: number(first), last: number(last) });
        }
        parse_address(text).map(Self::single).ok_or_else(unreadable)
    }

    /// The range of one address.
    pub fn single(address: IpAddr) -> Self {
        Self { family: Family::of(address), first: number(address), last: number(address) }
    }

    /// The range between two numbers of a family.
    pub fn between(family: Family, first: u128, last: u128) -> Self {
        Self { family, first, last }
    }

    /// The family.
    pub fn family(self) -> Family {
        self.family
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (address(self.family, self.first), address(self.family, self.last)) {
            (Some(first), Some(last)) if first == last => write!(f, "{first}"),
            (Some(first), Some(last)) => write!(f, "{first}-{last}"),
            (None, _) | (_, None) => f.write_str("no address"),
        }
    }
}

/// Addresses of one family: ranges in ascending order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumberSet(Vec<(u128, u128)>);

impl NumberSet {
    /// Brings ranges into order and joins those that overlap or touch.
    pub fn new(mut ranges: Vec<(u128, u128)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                Some(_) | None => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.0.iter().copied()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a number is in the set.
    pub fn contains(&self, number: u128) -> bool {
        self.at_or_after(number) == Some(number)
    }

    /// The lowest number of the set that is not below this one.
    pub fn at_or_after(&self, number: u128) -> Option<u128> {
        let position = self.0.partition_point(|(_, last)| *last < number);
        self.0.get(position).map(|(first, _)| number.max(*first))
    }

    /// How many numbers there are; all of IPv6 counts as one less than it has.
    pub fn count(&self) -> u128 {
        self.0.iter().fold(0, |sum: u128, (first, last)| sum.saturating_add(last - first).saturating_add(1))
    }

    /// The first range that this set shares with another.
    pub fn overlap(&self, other: &Self) -> Option<(u128, u128)> {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            let ((first, last), (other_first, other_last)) = (*left.peek()?, *right.peek()?);
            let shared = (*first.max(other_first), *last.min(other_last));
            if shared.0 <= shared.1 {
                return Some(shared);
            }
            if last < other_last {
                left.next()
            } else {
                right.next()
            };
        }
    }

    /// What is in this set but not in another.
    pub fn without(&self, other: &Self) -> Self {
        let mut kept = Vec::new();
        for (first, last) in self.ranges() {
            let mut next = Some(first);
            let position = other.0.partition_point(|(_, other_last)| *other_last < first);
            for (cut_first, cut_last) in other.0.iter().skip(position).take_while(|(cut, _)| *cut <= last) {
                if let Some(start) = next.filter(|start| start < cut_first) {
                    kept.push((start, cut_first - 1));
                }
                next = cut_last.checked_add(1);
            }
            if let Some(start) = next.filter(|start| *start <= last) {
                kept.push((start, last));
            }
        }
        Self(kept)
    }
}

/// Addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    v4: NumberSet,
    v6: NumberSet,
}

impl AddressSet {
    /// The union of ranges.
    pub fn new(ranges: impl IntoIterator<Item = AddressRange>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for AddressRange { family, first, last } in ranges {
            match family {
                Family::V4 => v4.push((first, last)),
                Family::V6 => v6.push((first, last)),
            }
        }
        Self { v4: NumberSet::new(v4), v6: NumberSet::new(v6) }
    }

    /// The addresses of one family.
    pub fn of(&self, family: Family) -> &NumberSet {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Whether an address is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.of(Family::of(address)).contains(number(address))
    }

    /// What is in this set but not in another.
    pub fn without(&self, other: &Self) -> Self {
        Self { v4: self.v4.without(&other.v4), v6: self.v6.without(&other.v6) }
    }

    /// The first range that this set shares with another.
    pub fn overlap(&self, other: &Self) -> Option<AddressRange> {
        Family::ALL.into_iter().find_map(|family| {
            let (first, last) = self.of(family).overlap(other.of(family))?;
            Some(AddressRange { family, first, last })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> AddressRange {
        AddressRange::parse(text).unwrap()
    }

    #[test]
    fn prefixes_ranges_and_addresses_are_read() {
        for (text, expected) in [
            ("192.0.2.0/30", "192.0.2.0-192.0.2.3"),
            ("192.0.2.77/24", "192.0.2.0-192.0.2.255"),
            ("192.0.2.1 - 192.0.2.9", "192.0.2.1-192.0.2.9"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::/126", "2001:db8::-2001:db8::3"),
            ("::/0", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(range(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        let text = |text: &str| text.to_owned();
        for (input, expected) in [
            ("all", RangeError::Unreadable(text("all"))),
            ("1.2.3.0/33", RangeError::Unreadable(text("1.2.3.0/33"))),
            ("1.2.3.4-::1", RangeError::Families(text("1.2.3.4-::1"))),
            ("1.2.3.4-1.2.3.3", RangeError::Backwards(text("1.2.3.4-1.2.3.3"))),
        ] {
            assert_eq!(AddressRange::parse(input), Err(expected));
        }
    }

    #[test]
    fn counts_do_not_overflow() {
        assert_eq!(AddressSet::new([range("::/0")]).of(Family::V6).count(), u128::MAX);
        let set = AddressSet::new([range("1.2.3.0/24"), range("2.3.4.128/25"), range("1.2.3.128/25")]);
        assert_eq!(set.of(Family::V4).count(), 384);
    }

    /// A small model: sets of numbers below 64, and one range up to the end of all numbers.
    fn set() -> impl Strategy<Value = NumberSet> {
        prop::collection::vec((0u128..64, 0u128..8), 0..6)
            .prop_map(|list| NumberSet::new(list.into_iter().map(|(first, length)| (first, first + length)).collect()))
    }

    fn members(set: &NumberSet) -> Vec<u128> {
        (0..80).filter(|number| set.contains(*number)).collect()
    }

    proptest! {
        #[test]
        fn sets_behave_as_sets_do(left in set(), right in set()) {
            let (in_left, in_right) = (members(&left), members(&right));
            let difference: Vec<u128> = in_left.iter().copied().filter(|n| !in_right.contains(n)).collect();
            prop_assert_eq!(members(&left.without(&right)), difference);
            let shared = in_left.iter().copied().find(|n| in_right.contains(n));
            prop_assert_eq!(left.overlap(&right).map(|(first, _)| first), shared);
            prop_assert_eq!(left.count(), in_left.len() as u128);
            for number in 0..80 {
                prop_assert_eq!(left.at_or_after(number), in_left.iter().copied().find(|n| *n >= number));
            }
        }
    }
}
