//! One transaction, as the bytes of its messages and a name for each.
//!
//! ```text
//! NFNL_MSG_BATCH_BEGIN, message 1, message 2, …, message n (with NLM_F_ACK), NFNL_MSG_BATCH_END
//! ```
//!
//! Every message is a `struct nlmsghdr`, a `struct nfgenmsg` and attributes. Without the closing message the kernel
//! checks everything and changes nothing.

use std::borrow::Cow;
use std::fmt;

use super::attribute::{close_nested, open_nested, put, put_nested, put_text, put_u32};
use super::element::{ElementKind, ElementWriter};
use super::expression::{Expression, InlineSet};
use super::label::{Action, Label, Object};
use super::set::{Data, Field, Set};
use super::structure::Structure;
use super::{family_word, protocol_family};
use crate::model::Family;
use crate::netlink::message::{ACKNOWLEDGE, REQUEST, close_message, put_message_header};

/// `NFNL_SUBSYS_NFTABLES`, also the resource that a batch is for.
pub(super) const SUBSYSTEM: u8 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const DELETE_RULE: u8 = 8;
const NEW_SET: u8 = 9;
const DELETE_SET: u8 = 11;
const NEW_ELEMENTS: u8 = 12;
const DELETE_ELEMENTS: u8 = 14;

const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const LIST_ELEMENT: u16 = 1;

/// An attribute's length is 16 bits wide: lists of elements are cut into messages of this many bytes.
const ELEMENTS_PER_MESSAGE: usize = 60_000;

/// A table: everything that we write is in one per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Packets of this family only.
    pub family: Family,
    /// The name.
    pub name: &'static str,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", family_word(self.family), self.name)
    }
}

/// A chain; with a hook a base chain, else one to jump to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The name, no word of nft's grammar.
    pub name: Cow<'static, str>,
    /// Where packets enter, if they do.
    pub hook: Option<Hook>,
}

/// The entry of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `NF_INET_*`: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    /// Order among the chains of one hook, lowest first.
    pub priority: i32,
}

/// A transaction in the making.
#[derive(Clone, Debug)]
pub struct Batch {
    pub(super) bytes: Vec<u8>,
    /// The name of the message with sequence number i + 1.
    labels: Vec<Label>,
    last: usize,
    /// The chain that the last rule was added to, and how many it had got.
    rules: (String, usize),
    structure: Structure,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// A transaction that does nothing.
    pub fn new() -> Self {
        let mut bytes = Vec::new();
        put_batch_message(&mut bytes, BATCH_BEGIN, 0);
        Self { bytes, labels: Vec::new(), last: 0, rules: (String::new(), 0), structure: Structure::default() }
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The messages so far, without the end.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The chains and rules that it adds, as they are to be read back once it is done.
    pub const fn structure(&self) -> &Structure {
        &self.structure
    }

    /// Creates a table where there is none; the comment is shown by `nft list`.
    pub fn add_table(&mut self, table: Table, comment: Option<&str>) {
        const NAME: u16 = 1;
        const FLAGS: u16 = 2;
        const USERDATA: u16 = 6;
        /// `NFTNL_UDATA_TABLE_COMMENT`.
        const COMMENT: u8 = 0;
        let start = self.open(NEW_TABLE, CREATE, table, Action::Add, Object::Table);
        put_text(&mut self.bytes, NAME, table.name);
        put_u32(&mut self.bytes, FLAGS, 0);
        if let Some(comment) = comment {
            let mut data = vec![COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
            data.extend_from_slice(comment.as_bytes());
            data.push(0);
            put(&mut self.bytes, USERDATA, &data);
        }
        self.close(start);
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, table: Table) {
        const NAME: u16 = 1;
        let start = self.open(DELETE_TABLE, 0, table, Action::Delete, Object::Table);
        put_text(&mut self.bytes, NAME, table.name);
        self.close(start);
    }

    /// Creates a chain.
    pub fn add_chain(&mut self, table: Table, chain: &Chain) {
        const TABLE: u16 = 1;
        const NAME: u16 = 3;
        const HOOK: u16 = 4;
        const TYPE: u16 = 7;
        const HOOK_NUMBER: u16 = 1;
        const HOOK_PRIORITY: u16 = 2;
        self.structure.add_chain(chain);
        let start = self.open(NEW_CHAIN, CREATE, table, Action::Add, Object::Chain(chain.name.clone()));
        let out = &mut self.bytes;
        put_text(out, TABLE, table.name);
        put_text(out, NAME, &chain.name);
        if let Some(hook) = chain.hook {
            put_text(out, TYPE, hook.kind);
            put_nested(out, HOOK, |out| {
                put_u32(out, HOOK_NUMBER, hook.number);
                put(out, HOOK_PRIORITY, &hook.priority.to_be_bytes());
            });
        }
        self.close(start);
    }

    /// Appends a rule to a chain. The rules of one chain are added in one go, else errors misnumber them.
    pub fn add_rule(&mut self, table: Table, chain: &str, expressions: &[Expression]) {
        const TABLE: u16 = 1;
        const CHAIN: u16 = 2;
        const EXPRESSIONS: u16 = 4;
        const USERDATA: u16 = 7;
        if self.rules.0 != chain {
            self.rules = (chain.to_owned(), 0);
        }
        self.rules.1 += 1;
        let object = Object::Rule(chain.to_owned(), self.rules.1);
        let inline: Vec<u32> =
            expressions.iter().map(|expression| self.add_inline_set(table, &object, expression)).collect();
        let start = self.open(NEW_RULE, CREATE | APPEND, table, Action::Add, object);
        let out = &mut self.bytes;
        put_text(out, TABLE, table.name);
        put_text(out, CHAIN, chain);
        put_nested(out, EXPRESSIONS, |out| {
            for (expression, inline) in expressions.iter().zip(inline) {
                put_nested(out, LIST_ELEMENT, |out| expression.encode(out, inline));
            }
        });
        put(out, USERDATA, &self.structure.add_rule(chain));
        self.close(start);
    }

    /// Deletes the rules of all chains of a table.
    pub fn delete_rules(&mut self, table: Table) {
        const TABLE: u16 = 1;
        let start = self.open(DELETE_RULE, 0, table, Action::Delete, Object::Rules);
        put_text(&mut self.bytes, TABLE, table.name);
        self.close(start);
    }

    /// Creates and fills the set or map that stands inside an expression. Its number in the batch, 0 for none.
    fn add_inline_set(&mut self, table: Table, rule: &Object, expression: &Expression) -> u32 {
        match expression.inline_set() {
            None => 0,
            Some(InlineSet::Protocols(protocols)) => {
                let set = Set::inline(Field::Protocol, None);
                self.add_nameless_set(table, rule, &set, protocols, |protocol, element| element.key(&[*protocol]))
            }
            Some(InlineSet::Verdicts(verdicts)) => {
                let set = Set::inline(Field::Priority, Some(Data::Verdict));
                self.add_nameless_set(table, rule, &set, verdicts, |(key, verdict), element| {
                    element.key(&key.to_ne_bytes());
                    element.verdict(verdict);
                })
            }
        }
    }

    fn add_nameless_set<T>(
        &mut self,
        table: Table,
        rule: &Object,
        set: &Set,
        elements: &[T],
        write: impl Fn(&T, &mut ElementWriter<'_>),
    ) -> u32 {
        const TABLE: u16 = 1;
        const NAME: u16 = 2;
        const ELEMENTS: u16 = 3;
        const ID: u16 = 4;
        let start = self.open(NEW_SET, CREATE, table, Action::Add, rule.clone());
        let id = self.last_sequence();
        let size = u32::try_from(elements.len()).unwrap_or(u32::MAX);
        set.encode(&mut self.bytes, table.name, id, size);
        self.close(start);
        let start = self.open(NEW_ELEMENTS, CREATE, table, Action::Add, rule.clone());
        let out = &mut self.bytes;
        put_text(out, TABLE, table.name);
        put_text(out, NAME, set.name);
        put_u32(out, ID, id);
        put_nested(out, ELEMENTS, |out| {
            for element in elements {
                ElementWriter::new(out, ElementKind::Whole).write(|writer| write(element, writer));
            }
        });
        self.close(start);
        id
    }

    /// Creates a set or map.
    pub fn add_set(&mut self, table: Table, set: &Set) {
        let start = self.open(NEW_SET, CREATE, table, Action::Add, Object::Set(set.name));
        // Any number that is unique in the batch; the kernel wants one though we refer to sets by name.
        let id = self.last_sequence();
        set.encode(&mut self.bytes, table.name, id, 0);
        self.close(start);
    }

    /// Deletes a set or map, which no rule may use any more.
    pub fn delete_set(&mut self, table: Table, set: &'static str) {
        const TABLE: u16 = 1;
        const NAME: u16 = 2;
        let start = self.open(DELETE_SET, 0, table, Action::Delete, Object::Set(set));
        put_text(&mut self.bytes, TABLE, table.name);
        put_text(&mut self.bytes, NAME, set);
        self.close(start);
    }

    /// Adds elements to a set or map; `write` encodes each. An equal one that exists already is no error, one with
    /// other data is.
    pub fn add_elements<T>(
        &mut self,
        table: Table,
        set: &'static str,
        elements: impl IntoIterator<Item = T>,
        write: impl FnMut(&T, &mut ElementWriter<'_>),
    ) {
        self.elements(Action::Add, table, set, elements, write);
    }

    /// Deletes elements, which must exist.
    pub fn delete_elements<T>(
        &mut self,
        table: Table,
        set: &'static str,
        elements: impl IntoIterator<Item = T>,
        write: impl FnMut(&T, &mut ElementWriter<'_>),
    ) {
        self.elements(Action::Delete, table, set, elements, write);
    }

    fn elements<T>(
        &mut self,
        action: Action,
        table: Table,
        set: &'static str,
        elements: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&T, &mut ElementWriter<'_>),
    ) {
        const TABLE: u16 = 1;
        const SET: u16 = 2;
        const ELEMENTS: u16 = 3;
        let (message, flags, kind) = match action {
            Action::Add => (NEW_ELEMENTS, CREATE, ElementKind::Whole),
            Action::Delete => (DELETE_ELEMENTS, 0, ElementKind::Key),
        };
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let start = self.open(message, flags, table, action, Object::Elements(set));
            put_text(&mut self.bytes, TABLE, table.name);
            put_text(&mut self.bytes, SET, set);
            let list = open_nested(&mut self.bytes, ELEMENTS);
            while self.bytes.len() - list < ELEMENTS_PER_MESSAGE {
                let Some(element) = elements.next() else { break };
                write(&element, &mut ElementWriter::new(&mut self.bytes, kind));
            }
            close_nested(&mut self.bytes, list);
            self.close(start);
        }
    }

    pub(super) fn open(&mut self, message: u8, flags: u16, table: Table, action: Action, object: Object) -> usize {
        self.labels.push(Label { action, table, object });
        let start = self.bytes.len();
        self.last = start;
        let sequence = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
        let kind = u16::from_be_bytes([SUBSYSTEM, message]);
        put_message_header(&mut self.bytes, kind, REQUEST | flags, sequence, protocol_family(table.family), 0);
        start
    }

    pub(super) fn close(&mut self, start: usize) {
        close_message(&mut self.bytes, start);
    }

    /// The bytes to send, to be checked only or to be done.
    pub(super) fn finish(&self, is_check: bool) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some(flags) = bytes.get_mut(self.last + 6..self.last + 8) {
            flags.copy_from_slice(&(flags_of(flags) | ACKNOWLEDGE).to_ne_bytes());
        }
        if !is_check {
            put_batch_message(&mut bytes, BATCH_END, self.last_sequence() + 1);
        }
        bytes
    }

    /// The sequence number of the last message of ours, the one that the kernel acknowledges.
    pub(super) fn last_sequence(&self) -> u32 {
        u32::try_from(self.labels.len()).unwrap_or(u32::MAX)
    }

    /// The name of a message by its sequence number; the kernel reports a failed commit on the first, which has none.
    pub(super) fn label(&self, sequence: u32) -> Option<&Label> {
        self.labels.get(usize::try_from(sequence).ok()?.checked_sub(1)?)
    }
}

fn flags_of(bytes: &[u8]) -> u16 {
    bytes.try_into().map(u16::from_ne_bytes).unwrap_or_default()
}

fn put_batch_message(out: &mut Vec<u8>, kind: u16, sequence: u32) {
    let start = out.len();
    put_message_header(out, kind, REQUEST, sequence, 0, u16::from(SUBSYSTEM));
    close_message(out, start);
}

#[cfg(test)]
mod tests;
