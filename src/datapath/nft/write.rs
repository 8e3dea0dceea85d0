//! From what is to change to the messages that change it.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::chains::{ChainRules, chain_of, chains};
use super::classes::{Memory, Purpose, Recall};
use super::elements::Element;
use super::ids::Class;
use super::layout::{LEARNERS, RELEASED, SLOT_CHAINS, sets, table};
use super::options::Options;
use super::sizes::Sizes;
use crate::datapath::plan::{Growth, TableChange, Transaction};
use crate::model::Family;
use crate::netlink::nf_tables::{Batch, Structure, Verdict};

/// All messages of a transaction.
pub fn batch(transaction: &Transaction, options: Options) -> Batch {
    let mut batch = Batch::new();
    for change in &transaction.tables {
        write_table(&mut batch, change, options);
    }
    batch
}

/// Deletes our tables of some families, whether or not they are there.
pub fn cleanup_batch(families: &[Family]) -> Batch {
    let mut batch = Batch::new();
    for family in families {
        batch.add_table(table(*family), None);
        batch.delete_table(table(*family));
    }
    batch
}

/// Names the layout: a table with the same comment has the same chains and maps as a new one would have, whatever their sizes.
pub fn layout_comment(family: Family, options: Options) -> String {
    let mut batch = Batch::new();
    write_structure(&mut batch, family, options, &Sizes::default(), "");
    let memory = Memory { class: Class::REJECT, recall: Recall { seconds: 1, port: Some(1) } };
    for purpose in [
        Purpose::Learn(memory),
        Purpose::Slots { slots: 1, memory: None },
        Purpose::Slots { slots: 1, memory: Some(memory) },
    ] {
        write_class(&mut batch, family, purpose, Class::REJECT);
    }
    let mut hasher = SipHasher13::new();
    hasher.write(batch.bytes());
    format!("layout {:016x}", hasher.finish())
}

/// The chains and rules of a table that has these classes.
pub fn structure(family: Family, options: Options, classes: &[(Purpose, Class)]) -> Structure {
    let mut batch = Batch::new();
    write_structure(&mut batch, family, options, &Sizes::default(), "");
    for (purpose, class) in classes {
        write_class(&mut batch, family, *purpose, *class);
    }
    batch.structure().clone()
}

fn write_table(batch: &mut Batch, change: &TableChange, options: Options) {
    let family = change.family;
    if change.is_new {
        // Deleting what is not there is an error, creating what is there is none.
        batch.add_table(table(family), None);
        batch.delete_table(table(family));
        write_structure(batch, family, options, &change.sizes, &layout_comment(family, options));
    }
    if let Some(growth) = &change.growth {
        write_growth(batch, family, options, &change.sizes, growth);
    }
    for (purpose, class) in &change.new_classes {
        write_class(batch, family, *purpose, *class);
    }
    if !change.readmitted.is_empty() {
        // The kernel may have forgotten them by now, and deleting what is not there is an error.
        let released: Vec<Element> = change.readmitted.iter().copied().map(Element::Released).collect();
        batch.add_elements(table(family), RELEASED, &released, |element, writer| element.write(writer));
        batch.delete_elements(table(family), RELEASED, &released, |element, writer| element.write(writer));
    }
    let is_grown = |set: &str| change.growth.as_ref().is_some_and(|growth| growth.maps.contains_key(set));
    for (set, elements) in by_set(&change.deleted).rev().filter(|(set, _)| !is_grown(set)) {
        batch.delete_elements(table(family), set, elements, |element, writer| element.write(writer));
    }
    for (set, elements) in by_set(&change.added).filter(|(set, _)| !is_grown(set)) {
        batch.add_elements(table(family), set, elements, |element, writer| element.write(writer));
    }
}

fn by_set(elements: &[Element]) -> impl DoubleEndedIterator<Item = (&'static str, &[Element])> {
    let parts = elements.chunk_by(|left, right| left.set() == right.set());
    parts.filter_map(|part| Some((part.first()?.set(), part)))
}

/// Makes maps anew, with more room. Packets see the old ones until all of the transaction is done.
fn write_growth(batch: &mut Batch, family: Family, options: Options, sizes: &Sizes, growth: &Growth) {
    let table = table(family);
    batch.delete_rules(table);
    for set in sets(family, sizes).iter().filter(|set| growth.maps.contains_key(set.name)) {
        batch.delete_set(table, set.name);
        batch.add_set(table, set);
    }
    for (map, elements) in &growth.maps {
        batch.add_elements(table, map, elements, |element, writer| element.write(writer));
    }
    for chain in chains(family, options) {
        write_rules(batch, family, &chain);
    }
    for (purpose, _) in &growth.classes {
        write_rules(batch, family, &chain_of(family, *purpose));
    }
}

/// The empty table. A later kernel feature of tables (owner, persist) is a flag here.
fn write_structure(batch: &mut Batch, family: Family, options: Options, sizes: &Sizes, comment: &str) {
    let table = table(family);
    batch.add_table(table, Some(comment));
    let chains = chains(family, options);
    // Rules refer to chains and sets by name.
    for ChainRules { chain, .. } in &chains {
        batch.add_chain(table, chain);
    }
    for set in sets(family, sizes) {
        batch.add_set(table, &set);
    }
    for chain in &chains {
        write_rules(batch, family, chain);
    }
}

fn write_class(batch: &mut Batch, family: Family, purpose: Purpose, class: Class) {
    let chain = chain_of(family, purpose);
    let map = match purpose {
        Purpose::Learn(_) => LEARNERS,
        Purpose::Slots { .. } => SLOT_CHAINS,
    };
    batch.add_chain(table(family), &chain.chain);
    write_rules(batch, family, &chain);
    batch.add_elements(table(family), map, [class], |class, writer| {
        writer.write(|element| {
            element.key(&class.priority().to_ne_bytes());
            element.verdict(&Verdict::Goto(purpose.chain_name()));
        });
    });
}

fn write_rules(batch: &mut Batch, family: Family, chain: &ChainRules) {
    for rule in &chain.rules {
        batch.add_rule(table(family), &chain.chain.name, rule);
    }
}
