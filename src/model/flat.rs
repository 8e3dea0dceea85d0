//! Sets and maps of a few elements: sorted, in one allocation of just their size.
//!
//! A tree takes room for eleven elements as soon as it has one. There are tens of thousands of these, nearly all with one to
//! five elements, and they are read far more often than changed.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

/// A set. Changing it costs as much as it is large.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlatSet<T>(Box<[T]>);

/// A map. Changing which keys it has costs as much as it is large.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlatMap<K, V>(Box<[(K, V)]>);

/// Puts a tree into as few nodes as it needs: one that was filled in the order of its keys has them half empty.
pub fn pack<K: Ord, V>(tree: &mut BTreeMap<K, V>) {
    *tree = std::mem::take(tree).into_iter().collect();
}

/// Gives keys their values. A tree that is empty is made of all of them at once, in as few nodes as it needs: many small
/// allocations that come between its nodes would keep what [`pack`] gives back.
pub fn fill<K: Ord, V>(tree: &mut BTreeMap<K, V>, pairs: Vec<(K, V)>) {
    if tree.is_empty() {
        *tree = pairs.into_iter().collect();
    } else {
        tree.extend(pairs);
    }
}

/// As [`pack`].
pub fn pack_set<T: Ord>(tree: &mut BTreeSet<T>) {
    *tree = std::mem::take(tree).into_iter().collect();
}

/// The pairs of a map, in the order of the keys.
pub type Pairs<'a, K, V> = std::iter::Map<std::slice::Iter<'a, (K, V)>, fn(&'a (K, V)) -> (&'a K, &'a V)>;

impl<T> Default for FlatSet<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<K, V> Default for FlatMap<K, V> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T: Ord> FlatSet<T> {
    /// One without elements.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Whether it is among them.
    pub fn contains<Q: Ord + ?Sized>(&self, element: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.binary_search_by(|known| known.borrow().cmp(element)).is_ok()
    }

    /// Takes an element in; tells whether it is new.
    pub fn insert(&mut self, element: T) -> bool {
        let Err(at) = self.0.binary_search(&element) else { return false };
        let mut elements = std::mem::take(&mut self.0).into_vec();
        elements.reserve_exact(1);
        elements.insert(at, element);
        self.0 = elements.into();
        true
    }

    /// Puts an element out; tells whether it was there.
    pub fn remove(&mut self, element: &T) -> bool {
        let Ok(at) = self.0.binary_search(element) else { return false };
        let mut elements = std::mem::take(&mut self.0).into_vec();
        elements.remove(at);
        self.0 = elements.into();
        true
    }
}

impl<T: Ord> FromIterator<T> for FlatSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let mut elements: Vec<T> = elements.into_iter().collect();
        elements.sort_unstable();
        elements.dedup();
        Self(elements.into())
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for FlatSet<T> {
    fn from(elements: [T; N]) -> Self {
        elements.into_iter().collect()
    }
}

impl<T> IntoIterator for FlatSet<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_vec().into_iter()
    }
}

impl<'a, T> IntoIterator for &'a FlatSet<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<K: Ord, V> FlatMap<K, V> {
    /// One without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many keys there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let at = self.0.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// All, in the order of the keys.
    pub fn iter(&self) -> Pairs<'_, K, V> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> + '_ {
        self.0.iter().map(|(key, _)| key)
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> + '_ {
        self.0.iter().map(|(_, value)| value)
    }

    /// Gives a key a value, and tells the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.0.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(at) => self.0.get_mut(at).map(|(_, known)| std::mem::replace(known, value)),
            Err(at) => {
                let mut pairs = std::mem::take(&mut self.0).into_vec();
                pairs.reserve_exact(1);
                pairs.insert(at, (key, value));
                self.0 = pairs.into();
                None
            }
        }
    }

    /// Keeps those for which this holds.
    pub fn retain(&mut self, is_kept: impl Fn(&K, &V) -> bool) {
        if self.iter().all(|(key, value)| is_kept(key, value)) {
            return;
        }
        let mut pairs = std::mem::take(&mut self.0).into_vec();
        pairs.retain(|(key, value)| is_kept(key, value));
        self.0 = pairs.into();
    }
}

impl<'a, K: Ord, V> IntoIterator for &'a FlatMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Pairs<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for FlatMap<K, V> {
    /// Of two values of one key the last stays.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(K, V)> = pairs.into_iter().collect();
        pairs.reverse();
        pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
        pairs.dedup_by(|(one, _), (other, _)| one == other);
        Self(pairs.into())
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for FlatMap<K, V> {
    fn from(pairs: [(K, V); N]) -> Self {
        pairs.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_is_as_a_tree(steps in prop::collection::vec((any::<bool>(), 0..12u8), 0..40), first: Vec<u8>) {
            let (mut flat, mut tree): (FlatSet<u8>, BTreeSet<u8>) =
                (first.iter().copied().collect(), first.iter().copied().collect());
            for (is_insert, element) in steps {
                if is_insert {
                    prop_assert_eq!(flat.insert(element), tree.insert(element));
                } else {
                    prop_assert_eq!(flat.remove(&element), tree.remove(&element));
                }
                prop_assert_eq!(flat.contains(&element), tree.contains(&element));
                prop_assert!(flat.iter().eq(&tree));
            }
        }

        #[test]
        fn a_map_is_as_a_tree(steps in prop::collection::vec((0..12u8, any::<u8>()), 0..40), kept: u8) {
            let (mut flat, mut tree) = (FlatMap::new(), BTreeMap::new());
            for (key, value) in steps {
                prop_assert_eq!(flat.insert(key, value), tree.insert(key, value));
                prop_assert_eq!(flat.get(&key), tree.get(&key));
                prop_assert!(flat.iter().eq(&tree));
            }
            flat.retain(|key, _| *key != kept);
            tree.retain(|key, _| *key != kept);
            prop_assert!(flat.iter().eq(&tree));
        }
    }

    #[test]
    fn of_two_values_of_one_key_the_last_stays() {
        assert_eq!(FlatMap::from([(1, 'a'), (1, 'b')]), FlatMap::from([(1, 'b')]));
    }
}
