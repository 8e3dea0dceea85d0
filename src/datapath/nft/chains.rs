//! The chains and their rules, each as nft would print it and as it is built.
//!
//! All are always there, save that a chain `slotsN` comes with the first Service that has N endpoints, and where clients
//! keep their endpoint for T seconds `stickyN_T` and `learnT`. Names must not be words of nft's grammar, or its listing does not load again.

mod affinity;
mod dialled;
mod translation;

use super::classes::Purpose;
use super::elements::echo_protocol;
use super::ids::ID_MASK;
use super::layout;
use super::options::Options;
use crate::model::{Family, Protocol};
use crate::netlink::nf_tables::{
    Chain, Compared, ConntrackKey, Expression, Fib, Header, Hook, MetaKey, Register, Verdict,
};

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRules {
    /// The chain.
    pub chain: Chain,
    /// Its rules in order.
    pub rules: Vec<Vec<Expression>>,
}

type Rules = Vec<Vec<Expression>>;

/// Protocols with ports that Services may have.
const PROTOCOLS: [u8; 3] = [Protocol::Tcp.number(), Protocol::Udp.number(), Protocol::Sctp.number()];

/// `ct state invalid`.
const STATE_INVALID: u32 = 1;
/// `ct state new`.
const STATE_NEW: u32 = 8;
/// `ct status dnat`.
const STATUS_DNAT: u32 = 0x20;

const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

const R0: Register = Register(0);
const R1: Register = Register(1);

/// The chains that are always there, with the rules that the options ask for.
pub fn chains(family: Family, options: Options) -> Vec<ChainRules> {
    let rules = RulesOf { family };
    let mut chains = vec![
        plain("no_endpoint", rules.no_endpoint()),
        plain("guard", rules.guard()),
        plain("turn_inside", RulesOf::turn_inside()),
        plain("short_circuit", rules.short_circuit()),
        plain("by_client", RulesOf::by_client()),
        plain("frontend", RulesOf::frontend(options)),
        plain("unlisted", rules.unlisted()),
        plain("unlisted_served", rules.unlisted_served()),
        plain("nodeport", rules.node_port()),
        plain("masquerade_local", RulesOf::masquerade_local()),
        plain("translated", rules.translated()),
        plain("masquerading", rules.masquerading()),
        base("nat_prerouting", "nat", PREROUTING, -100, rules.dialled()),
        base("nat_output", "nat", OUTPUT, -100, rules.dialled()),
        base("learn_prerouting", "filter", PREROUTING, -99, RulesOf::learn()),
        base("learn_output", "filter", OUTPUT, -99, RulesOf::learn()),
        base("nat_postrouting", "nat", POSTROUTING, 100, RulesOf::on_the_way_out()),
    ];
    if options.drop_invalid {
        chains.push(base("filter_forward", "filter", FORWARD, -110, rules.invalid_packets()));
    }
    chains
}

/// The chain of a class.
pub fn chain_of(family: Family, purpose: Purpose) -> ChainRules {
    let rules = RulesOf { family };
    let rules = match purpose {
        Purpose::Learn(memory) => rules.remember(memory.recall),
        Purpose::Slots { slots, memory: None } => vec![rules.pick_slot(slots, &masked_priority(ID_MASK))],
        Purpose::Slots { slots, memory: Some(memory) } => {
            let key = [Expression::Meta(MetaKey::Priority, R0)];
            vec![RulesOf::ask_for(memory.class), rules.take_remembered(memory.recall), rules.pick_slot(slots, &key)]
        }
    };
    ChainRules { chain: Chain { name: purpose.chain_name(), hook: None }, rules }
}

fn plain(name: &'static str, rules: Rules) -> ChainRules {
    ChainRules { chain: Chain { name: name.into(), hook: None }, rules }
}

fn base(name: &'static str, kind: &'static str, number: u32, priority: i32, rules: Rules) -> ChainRules {
    ChainRules { chain: Chain { name: name.into(), hook: Some(Hook { kind, number, priority }) }, rules }
}

/// The register behind an address that begins in the first one.
const fn behind_address(family: Family) -> Register {
    match family {
        Family::V4 => Register(1),
        Family::V6 => Register(4),
    }
}

const fn next(register: Register) -> Register {
    Register(register.0 + 1)
}

fn jump(chain: &'static str) -> Verdict {
    Verdict::Jump(chain.into())
}

fn goto(chain: &'static str) -> Verdict {
    Verdict::Goto(chain.into())
}

/// `meta priority set meta priority & MASK`
fn keep_of_priority(mask: u32) -> Vec<Expression> {
    vec![Expression::Meta(MetaKey::Priority, R0), Expression::And(R0, mask), Expression::SetMeta(MetaKey::Priority, R0)]
}

/// `meta priority set none`
const fn clear_priority() -> [Expression; 2] {
    [Expression::Number(R0, 0), Expression::SetMeta(MetaKey::Priority, R0)]
}

/// `meta priority & MASK != none`
fn priority_has(mask: u32) -> Vec<Expression> {
    [&masked_priority(mask)[..], &[Expression::Compare(R0, Compared::NotEqual, 0)]].concat()
}

/// `meta priority & MASK == NUMBER`
fn priority_is(mask: u32, number: u32) -> Vec<Expression> {
    [&masked_priority(mask)[..], &[Expression::Compare(R0, Compared::Equal, number)]].concat()
}

/// `meta priority & MASK`
fn masked_priority(mask: u32) -> [Expression; 2] {
    [Expression::Meta(MetaKey::Priority, R0), Expression::And(R0, mask)]
}

/// `meta priority set … map @MAP`, where the key begins in the first register.
fn priority_from(map: &'static str) -> [Expression; 2] {
    [Expression::Map(R0, map), Expression::SetMeta(MetaKey::Priority, R0)]
}

/// `th dport`
const fn destination_port(to: Register) -> Expression {
    Expression::Payload { header: Header::Transport, offset: 2, length: 2, to }
}

/// The rules of one family: what all need here; those for what was dialled, for translation and for affinity each in a file.
struct RulesOf {
    family: Family,
}

impl RulesOf {
    /// `ip saddr`
    const fn source(&self, to: Register) -> Expression {
        match self.family {
            Family::V4 => Expression::Payload { header: Header::Network, offset: 12, length: 4, to },
            Family::V6 => Expression::Payload { header: Header::Network, offset: 8, length: 16, to },
        }
    }

    /// `ip daddr`
    const fn destination(&self, to: Register) -> Expression {
        match self.family {
            Family::V4 => Expression::Payload { header: Header::Network, offset: 16, length: 4, to },
            Family::V6 => Expression::Payload { header: Header::Network, offset: 24, length: 16, to },
        }
    }

    /// `icmp type echo-request`
    fn is_echo_request(&self) -> [Expression; 4] {
        let request = match self.family {
            Family::V4 => 8,
            Family::V6 => 128,
        };
        [
            Expression::Meta(MetaKey::Protocol, R0),
            Expression::CompareByte(R0, Compared::Equal, echo_protocol(self.family)),
            Expression::Payload { header: Header::Transport, offset: 0, length: 1, to: R0 },
            Expression::CompareByte(R0, Compared::Equal, request),
        ]
    }

    /// `ip daddr @served fib daddr type != local`: who has such an address on an interface answers for it himself.
    fn is_served(&self) -> Vec<Expression> {
        let mut expressions = vec![self.destination(R0), Expression::Contained(R0, layout::SERVED)];
        expressions.extend(Expression::is_not_local(Fib::Destination, R0));
        expressions
    }

    /// `ct state new`
    fn is_new() -> [Expression; 3] {
        Self::is_in(STATE_NEW)
    }

    /// `ct state …`
    fn is_in(state: u32) -> [Expression; 3] {
        [
            Expression::Conntrack(ConntrackKey::State, R0),
            Expression::And(R0, state),
            Expression::Compare(R0, Compared::NotEqual, 0),
        ]
    }
}
