//! What has been seen of one kind, from the watch and from the answers to our own writes.
//!
//! A watch lags behind our writes. Acting on it alone, the controller would give a second address to a Service whose claim
//! it has just created. So the answer to each write goes in here at once, and what the watch still has to say about the
//! time before is not listened to.

use std::collections::BTreeMap;

/// Something that is known by a key and changes under a version.
pub trait Versioned {
    /// What tells two of them apart.
    type Key: Ord + Clone;

    /// The key.
    fn key(&self) -> Self::Key;

    /// `metadata.resourceVersion`.
    fn resource_version(&self) -> &str;
}

/// An object that is no more, and the version at which it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone<K> {
    /// Its key.
    pub key: K,
    /// The version of its end.
    pub resource_version: String,
}

#[derive(Clone, Debug)]
struct Entry<V> {
    value: V,
    /// Known from an answer to a write; the watch has not shown it yet.
    is_ahead: bool,
}

/// All objects of a kind.
#[derive(Clone, Debug)]
pub struct Seen<V: Versioned> {
    entries: BTreeMap<V::Key, Entry<V>>,
    is_listed: bool,
}

impl<V: Versioned> Default for Seen<V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), is_listed: false }
    }
}

impl<V: Versioned> Seen<V> {
    /// Whether the first list is in.
    pub fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// One object.
    pub fn get(&self, key: &V::Key) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// All objects, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> + '_ {
        self.entries.values().map(|entry| &entry.value)
    }

    /// Takes a whole list. What we wrote and the list does not show stays, unless the list is younger: then it is gone.
    pub fn replaced(&mut self, values: Vec<V>) {
        let newest = values.iter().map(|value| age(value.resource_version())).max().unwrap_or_default();
        let old = std::mem::take(&mut self.entries);
        self.entries = values.into_iter().map(|value| (value.key(), Entry { value, is_ahead: false })).collect();
        for (key, entry) in old {
            let shown = self.entries.get(&key).map_or(newest, |shown| age(shown.value.resource_version()));
            if entry.is_ahead && shown < age(entry.value.resource_version()) {
                self.entries.insert(key, entry);
            }
        }
        self.is_listed = true;
    }

    /// Takes one object from the watch.
    pub fn applied(&mut self, value: V) {
        if !self.is_past(&value.key(), value.resource_version()) {
            self.entries.insert(value.key(), Entry { value, is_ahead: false });
        }
    }

    /// Takes the end of one object from the watch.
    pub fn removed(&mut self, gone: &Gone<V::Key>) {
        if !self.is_past(&gone.key, &gone.resource_version) {
            self.entries.remove(&gone.key);
        }
    }

    /// Takes the answer to a write or to a read of one object.
    pub fn answered(&mut self, value: V) {
        if !self.is_past(&value.key(), value.resource_version()) {
            self.entries.insert(value.key(), Entry { value, is_ahead: true });
        }
    }

    /// Forgets one object that we have deleted, or that an answer says is gone.
    pub fn forget(&mut self, key: &V::Key) {
        self.entries.remove(key);
    }

    fn is_past(&self, key: &V::Key, resource_version: &str) -> bool {
        self.entries
            .get(key)
            .is_some_and(|entry| entry.is_ahead && age(resource_version) < age(entry.value.resource_version()))
    }
}

/// Versions of one kind compare as numbers (KEP-5504). One that is no number counts as the newest, so that the watch is
/// believed.
fn age(resource_version: &str) -> u128 {
    resource_version.parse().unwrap_or(u128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Thing(&'static str, &'static str);

    impl Versioned for Thing {
        type Key = &'static str;
        fn key(&self) -> &'static str {
            self.0
        }
        fn resource_version(&self) -> &str {
            self.1
        }
    }

    fn all(seen: &Seen<Thing>) -> Vec<(&'static str, &'static str)> {
        seen.values().map(|thing| (thing.0, thing.1)).collect()
    }

    #[test]
    fn a_late_watch_does_not_undo_our_write() {
        let mut seen = Seen::default();
        seen.replaced(vec![Thing("a", "5")]);
        seen.answered(Thing("a", "9"));
        seen.applied(Thing("a", "7"));
        seen.removed(&Gone { key: "a", resource_version: "8".into() });
        assert_eq!(all(&seen), [("a", "9")]);
        seen.applied(Thing("a", "9"));
        seen.removed(&Gone { key: "a", resource_version: "10".into() });
        assert_eq!(all(&seen), []);
    }

    #[test]
    fn an_old_list_keeps_what_we_wrote_and_a_young_one_ends_it() {
        let mut seen = Seen::default();
        seen.answered(Thing("a", "9"));
        seen.replaced(vec![Thing("b", "8")]);
        assert_eq!(all(&seen), [("a", "9"), ("b", "8")]);
        seen.replaced(vec![Thing("b", "12")]);
        assert_eq!(all(&seen), [("b", "12")]);
    }

    #[test]
    fn a_late_answer_does_not_undo_a_younger_one() {
        let mut seen = Seen::default();
        seen.answered(Thing("a", "9"));
        seen.answered(Thing("a", "8"));
        assert_eq!(all(&seen), [("a", "9")]);
    }
}
