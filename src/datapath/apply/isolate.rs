//! Finds the entries that the kernel refuses, by dry runs: the rest is programmed without them.

use std::collections::{BTreeMap, BTreeSet};

use super::{ApplyError, Programmer, Quarantine};
use crate::datapath::desired::Update;
use crate::datapath::entry::{EntryKey, ForwardingEntry, NodeForwarding};
use crate::datapath::nft::write;
use crate::datapath::plan::{Belief, Scope};
use crate::netlink::nf_tables::ConnectionError;

/// What a dry run said; nothing where it says nothing about the entries.
type Checked = Option<Result<(), ConnectionError>>;

impl Programmer {
    /// Quarantines those entries among the ones that changed which the kernel refuses, and tells whether there are any. There
    /// are none where what we believe is not what the kernel has.
    pub(super) fn isolate_among(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        keys: &BTreeSet<EntryKey>,
        node: &NodeForwarding,
    ) -> bool {
        let suspects: Vec<&EntryKey> = keys.iter().filter(|key| !self.is_left_out(key)).collect();
        let found = refused(&suspects, |part| self.check_change(entries, part, node)).unwrap_or_default();
        let is_found = !found.is_empty();
        self.quarantined.extend(found);
        is_found
    }

    /// Quarantines the entries that the kernel refuses.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Structure`].
    pub(super) fn isolate(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        node: &NodeForwarding,
    ) -> Result<(), ApplyError> {
        let suspects: Vec<&EntryKey> = entries.keys().filter(|key| !self.is_left_out(key)).collect();
        self.check_new(entries, &[], node).map_err(ApplyError::Structure)?;
        let found = refused(&suspects, |part| Some(self.check_new(entries, part, node))).unwrap_or_default();
        self.quarantined.extend(found);
        Ok(())
    }

    /// Whether the kernel would take a change of some entries.
    fn check_change(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        keys: &[&EntryKey],
        node: &NodeForwarding,
    ) -> Checked {
        let update = Update { entries: owned(keys), ..Update::default() };
        let (transaction, _) = self.plan(entries, &Scope::Update(update), node);
        let checked = self.connection.check(&write::batch(&transaction, self.options));
        let is_mismatch = checked.as_ref().is_err_and(ConnectionError::is_mismatch);
        (self.belief.undo() && !is_mismatch).then_some(checked)
    }

    /// Whether the kernel would take a new table with some of the entries.
    fn check_new(
        &mut self,
        entries: &BTreeMap<EntryKey, ForwardingEntry>,
        keys: &[&EntryKey],
        node: &NodeForwarding,
    ) -> Result<(), ConnectionError> {
        let (transaction, _) = Belief::default().update(entries, &Scope::Keys(owned(keys)), node, &BTreeSet::new());
        self.connection.check(&write::batch(&transaction, self.options))
    }
}

fn owned(keys: &[&EntryKey]) -> BTreeSet<EntryKey> {
    keys.iter().map(|key| (*key).clone()).collect()
}

/// The suspects that are refused each by itself: halves of what is refused are asked about until one is left. Nothing where
/// a check says nothing.
fn refused(
    suspects: &[&EntryKey],
    mut check: impl FnMut(&[&EntryKey]) -> Checked,
) -> Option<Vec<(EntryKey, Quarantine)>> {
    let mut found = Vec::new();
    let mut parts = vec![suspects];
    while let Some(part) = parts.pop() {
        match (check(part)?, part) {
            (Ok(()), _) | (Err(_), []) => {}
            (Err(error), [key]) => found.push(((*key).clone(), Quarantine::Refused(error.to_string()))),
            (Err(_), part) => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([right, left]);
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::nft::compose::test::key;

    /// Asks as if the kernel refused all that have one of these in them, and counts how often.
    fn found_among(count: usize, bad: &[usize]) -> (Vec<usize>, usize) {
        let keys: Vec<EntryKey> = (0..count).map(|number| key(&format!("{number:03}"))).collect();
        let suspects: Vec<&EntryKey> = keys.iter().collect();
        let mut asked = 0;
        let found = refused(&suspects, |part| {
            asked += 1;
            let is_bad = bad.iter().any(|number| part.contains(&&keys[*number]));
            Some(if is_bad { Err(ConnectionError::NoAnswer) } else { Ok(()) })
        });
        let number = |(key, _): (EntryKey, Quarantine)| keys.iter().position(|known| *known == key).unwrap();
        (found.unwrap().into_iter().map(number).collect(), asked)
    }

    #[test]
    fn exactly_those_are_found_that_are_refused() {
        assert_eq!(found_among(0, &[]), (vec![], 1));
        assert_eq!(found_among(1, &[0]), (vec![0], 1));
        for bad in [&[][..], &[0], &[999], &[0, 1, 500, 998]] {
            let (found, asked) = found_among(1000, bad);
            assert_eq!(found, bad);
            assert!(asked <= 1 + bad.len() * 2 * 10, "{asked} questions for {bad:?}");
        }
    }

    #[test]
    fn nobody_is_to_blame_where_a_check_says_nothing() {
        let keys = ["a", "b"].map(key);
        let mut answers = vec![None, Some(Err(ConnectionError::NoAnswer)), Some(Err(ConnectionError::NoAnswer))];
        assert_eq!(refused(&[&keys[0], &keys[1]], |_| answers.pop().unwrap()), None);
    }
}
