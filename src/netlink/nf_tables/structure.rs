//! Which chains and rules a table has: enough to tell a table that somebody has been at from one that is as we wrote it.
//!
//! Each rule of ours carries its place in its chain as userdata, of a type that `nft` does not print. In a table that we
//! made, such a rule can only be the one that we wrote at that place: nobody can change a rule, only put another one,
//! without our mark, in its stead. So the marks in order are as good as the rules themselves, and much shorter.

use std::collections::BTreeMap;

use super::attribute::{Attributes, put_text};
use super::batch::{Chain, Hook, Table};
use super::connection::{Connection, ConnectionError};
use super::read::DUMP;

const GET_CHAIN: u8 = 4;
const GET_RULE: u8 = 7;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// Beyond all types that libnftnl gives to userdata of rules.
const PLACE: u8 = b's';

/// The chains of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Structure {
    chains: BTreeMap<String, ChainShape>,
}

/// One chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainShape {
    hook: Option<HookShape>,
    /// The places in the rules' userdata, in the rules' order; nothing for a rule that has none.
    places: Vec<Option<u32>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct HookShape {
    kind: String,
    number: u32,
    priority: i32,
    policy: u32,
}

impl From<Hook> for HookShape {
    fn from(hook: Hook) -> Self {
        Self { kind: hook.kind.to_owned(), number: hook.number, priority: hook.priority, policy: ACCEPT }
    }
}

impl Structure {
    pub(super) fn add_chain(&mut self, chain: &Chain) {
        let shape = ChainShape { hook: chain.hook.map(HookShape::from), places: Vec::new() };
        self.chains.insert(chain.name.clone().into_owned(), shape);
    }

    /// The userdata of the next rule of a chain.
    pub(super) fn add_rule(&mut self, chain: &str) -> Vec<u8> {
        let places = &mut self.chains.entry(chain.to_owned()).or_default().places;
        let place = u32::try_from(places.len()).unwrap_or(u32::MAX);
        places.push(Some(place));
        let mut data = vec![PLACE, 4];
        data.extend(place.to_be_bytes());
        data
    }
}

impl Connection {
    /// The chains and rules of a table. None where there is no such table.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or it says each time that the tables changed meanwhile.
    pub fn structure(&mut self, table: Table) -> Result<Structure, ConnectionError> {
        self.uninterrupted(|connection| connection.read_structure(table))
    }

    fn read_structure(&mut self, table: Table) -> Result<Structure, ConnectionError> {
        const TABLE: u16 = 1;
        const RULE_CHAIN: u16 = 2;
        const CHAIN_NAME: u16 = 3;
        const RULE_USERDATA: u16 = 7;
        let mut structure = Structure::default();
        let of_table = |attributes: &Attributes<'_>| attributes.text(TABLE).is_some_and(|name| name == table.name);
        // The kernel gives the chains of all tables of the family.
        self.ask(
            GET_CHAIN,
            DUMP,
            table,
            |_| {},
            |attributes| {
                if let Some(name) = attributes.text(CHAIN_NAME).filter(|_| of_table(&attributes)) {
                    structure.chains.insert(name, ChainShape { hook: hook(&attributes), places: Vec::new() });
                }
            },
        )?;
        let only_table = |out: &mut Vec<u8>| put_text(out, TABLE, table.name);
        self.ask(GET_RULE, DUMP, table, only_table, |attributes| {
            if let Some(chain) = attributes.text(RULE_CHAIN).filter(|_| of_table(&attributes)) {
                let place = attributes.find(RULE_USERDATA).and_then(place);
                structure.chains.entry(chain).or_default().places.push(place);
            }
        })?;
        Ok(structure)
    }
}

fn hook(attributes: &Attributes<'_>) -> Option<HookShape> {
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const TYPE: u16 = 7;
    const NUMBER: u16 = 1;
    const PRIORITY: u16 = 2;
    let hook = attributes.nested(HOOK)?;
    Some(HookShape {
        kind: attributes.text(TYPE).unwrap_or_default(),
        number: hook.u32(NUMBER)?,
        priority: hook.u32(PRIORITY)?.cast_signed(),
        policy: attributes.u32(POLICY).unwrap_or(ACCEPT),
    })
}

fn place(userdata: &[u8]) -> Option<u32> {
    match userdata {
        [PLACE, 4, place @ ..] => place.try_into().ok().map(u32::from_be_bytes),
        _ => None,
    }
}
