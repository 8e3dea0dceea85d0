//! What a message is about, so that an error of the kernel can name it.

use std::borrow::Cow;
use std::fmt;

use super::batch::Table;

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Creates the object where it does not exist.
    Add,
    /// Deletes it; it must exist.
    Delete,
}

/// What a message is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A table.
    Table,
    /// A chain by name.
    Chain(Cow<'static, str>),
    /// The n-th rule of a chain, from 1.
    Rule(String, usize),
    /// The rules of all chains.
    Rules,
    /// A set or map by name.
    Set(&'static str),
    /// Elements of a set or map by name.
    Elements(&'static str),
}

/// The name of a message, for errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) action: Action,
    pub(super) table: Table,
    pub(super) object: Object,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, table, object } = self;
        f.write_str(match action {
            Action::Add => "add ",
            Action::Delete => "delete ",
        })?;
        match object {
            Object::Table => write!(f, "table {table}"),
            Object::Chain(chain) => write!(f, "chain {table} {chain}"),
            Object::Rule(chain, index) => write!(f, "rule {index} of chain {table} {chain}"),
            Object::Rules => write!(f, "rules of table {table}"),
            Object::Set(set) => write!(f, "set {table} {set}"),
            Object::Elements(set) => write!(f, "elements of {table} {set}"),
        }
    }
}
