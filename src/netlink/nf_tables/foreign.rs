//! What others left in nf_tables: which chains a table has, which rules lead where, and their deletion.

use super::attribute::{Attributes, put, put_text};
use super::batch::{Batch, Table};
use super::connection::{Connection, ConnectionError};
use super::label::{Action, Object};
use super::read::DUMP;

const GET_CHAIN: u8 = 4;
const DELETE_CHAIN: u8 = 5;
const GET_RULE: u8 = 7;
const DELETE_RULE: u8 = 8;

/// A rule, as far as it is known without understanding it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    /// The chain that it is in.
    pub chain: String,
    /// Its number in the table.
    pub handle: u64,
    /// The chains that it leads to.
    pub targets: Vec<String>,
}

impl Connection {
    /// The names of all chains of a table; none without the table.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or it says each time that the tables changed meanwhile.
    pub fn chains(&mut self, table: Table) -> Result<Vec<String>, ConnectionError> {
        self.uninterrupted(|connection| connection.read_chains(table))
    }

    /// All rules of a table; none without the table.
    ///
    /// # Errors
    ///
    /// As [`Self::chains`].
    pub fn rules(&mut self, table: Table) -> Result<Vec<ForeignRule>, ConnectionError> {
        self.uninterrupted(|connection| connection.read_rules(table))
    }

    fn read_chains(&mut self, table: Table) -> Result<Vec<String>, ConnectionError> {
        const TABLE: u16 = 1;
        const NAME: u16 = 3;
        let mut found = Vec::new();
        // The kernel dumps the chains of all tables of the family.
        let filter = |out: &mut Vec<u8>| put_text(out, TABLE, table.name);
        self.ask(GET_CHAIN, DUMP, table, filter, |attributes| {
            if attributes.text(TABLE).as_deref() == Some(table.name) {
                found.extend(attributes.text(NAME));
            }
        })?;
        Ok(found)
    }

    fn read_rules(&mut self, table: Table) -> Result<Vec<ForeignRule>, ConnectionError> {
        const TABLE: u16 = 1;
        const CHAIN: u16 = 2;
        const HANDLE: u16 = 3;
        const EXPRESSIONS: u16 = 4;
        let mut found = Vec::new();
        let filter = |out: &mut Vec<u8>| put_text(out, TABLE, table.name);
        self.ask(GET_RULE, DUMP, table, filter, |attributes| {
            let handle = attributes.find(HANDLE).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
            let (Some(chain), Some(handle)) = (attributes.text(CHAIN), handle) else { return };
            if attributes.text(TABLE).as_deref() != Some(table.name) {
                return;
            }
            let expressions = attributes.nested(EXPRESSIONS).into_iter().flatten();
            let targets = expressions.filter_map(|(_, expression)| target(&Attributes(expression))).collect();
            found.push(ForeignRule { chain, handle, targets });
        })?;
        Ok(found)
    }
}

/// The chain that an expression jumps or goes to: `immediate` with a verdict.
fn target(expression: &Attributes<'_>) -> Option<String> {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    const IMMEDIATE_DATA: u16 = 2;
    const DATA_VERDICT: u16 = 2;
    const VERDICT_CHAIN: u16 = 2;
    if expression.text(NAME).as_deref() != Some("immediate") {
        return None;
    }
    let verdict = expression.nested(DATA)?.nested(IMMEDIATE_DATA)?.nested(DATA_VERDICT)?;
    verdict.text(VERDICT_CHAIN)
}

impl Batch {
    /// Deletes one rule, which must exist.
    pub fn delete_rule(&mut self, table: Table, chain: &str, handle: u64) {
        const HANDLE: u16 = 3;
        let number = usize::try_from(handle).unwrap_or(usize::MAX);
        self.remove(DELETE_RULE, table, chain, Object::Rule(chain.to_owned(), number), |out| {
            put(out, HANDLE, &handle.to_be_bytes());
        });
    }

    /// Deletes all rules of a chain, which must exist.
    pub fn flush_chain(&mut self, table: Table, chain: &str) {
        self.remove(DELETE_RULE, table, chain, Object::Chain(chain.to_owned().into()), |_| {});
    }

    /// Deletes a chain, to which no rule may lead any more.
    pub fn delete_chain(&mut self, table: Table, chain: &str) {
        const TABLE: u16 = 1;
        const NAME: u16 = 3;
        let start = self.open(DELETE_CHAIN, 0, table, Action::Delete, Object::Chain(chain.to_owned().into()));
        put_text(&mut self.bytes, TABLE, table.name);
        put_text(&mut self.bytes, NAME, chain);
        self.close(start);
    }

    fn remove(&mut self, message: u8, table: Table, chain: &str, object: Object, fill: impl FnOnce(&mut Vec<u8>)) {
        const TABLE: u16 = 1;
        const CHAIN: u16 = 2;
        let start = self.open(message, 0, table, Action::Delete, object);
        put_text(&mut self.bytes, TABLE, table.name);
        put_text(&mut self.bytes, CHAIN, chain);
        fill(&mut self.bytes);
        self.close(start);
    }
}
