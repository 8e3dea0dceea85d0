//! The chains and their rules, each as nft would print it and as it is built.
//!
//! Only the chains `slotsN` come and go. Names must not be words of nft's grammar, or its listing does not load again.

use std::borrow::Cow;

use super::ids::{CLASS_MASK, Class, ID_MASK, KIND_MASK, Kind, MARKER};
use super::layout;
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

/// `ct state new`.
const STATE_NEW: u32 = 8;
/// `ct status dnat`.
const STATUS_DNAT: u32 = 0x20;

const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

const R0: Register = Register(0);
const R1: Register = Register(1);

/// The chains that are always there.
pub fn chains(family: Family) -> Vec<ChainRules> {
    let rules = RulesOf { family };
    vec![
        plain("no_endpoint", rules.no_endpoint()),
        plain("guard", rules.guard()),
        plain("turn_inside", RulesOf::turn_inside()),
        plain("short_circuit", rules.short_circuit()),
        plain("guarded_short_circuit", RulesOf::guarded_short_circuit()),
        plain("frontend", RulesOf::frontend()),
        plain("unlisted", rules.unlisted()),
        plain("nodeport", rules.node_port()),
        plain("classify", rules.classify()),
        plain("masquerade_internal", rules.masquerade_internal()),
        plain("masquerade_external", RulesOf::masquerade_external()),
        plain("masquerade_local", RulesOf::masquerade_local()),
        plain("translated", rules.translated()),
        plain("masquerading", rules.masquerading()),
        base("filter_prerouting", "filter", PREROUTING, -110, RulesOf::new_connections()),
        base("filter_output", "filter", OUTPUT, -110, RulesOf::new_connections()),
        base("nat_prerouting", "nat", PREROUTING, -100, RulesOf::dispatch()),
        base("nat_output", "nat", OUTPUT, -100, RulesOf::dispatch()),
        base("nat_postrouting", "nat", POSTROUTING, 100, RulesOf::translated_connections()),
        base("filter_postrouting", "filter", POSTROUTING, 110, RulesOf::clear_priority()),
    ]
}

/// The name of the chain for a number of slots.
pub fn slots_chain_name(slots: u32) -> Cow<'static, str> {
    format!("slots{slots}").into()
}

/// The number of slots that a chain is for.
pub fn slots_of_chain_name(name: &str) -> Option<u32> {
    name.strip_prefix("slots")?.parse().ok().filter(|slots| *slots > 0)
}

/// The chain that picks one of a number of slots.
pub fn slots_chain(family: Family, slots: u32) -> ChainRules {
    let chain = Chain { name: slots_chain_name(slots), hook: None };
    let rules = vec![
        // meta priority set meta priority & c00f:ffff
        keep_of_priority(ID_MASK),
        // meta l4proto { tcp, udp, sctp } dnat ip to meta priority . numgen random mod 3 map @endpoints
        vec![
            Expression::Meta(MetaKey::Protocol, R0),
            Expression::ProtocolIn(R0, &PROTOCOLS),
            Expression::Meta(MetaKey::Priority, R0),
            Expression::Random(R1, slots),
            Expression::Map(R0, layout::ENDPOINTS),
            Expression::Dnat { family, address: R0, port: behind_address(family) },
        ],
    ];
    ChainRules { chain, rules }
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

    /// Filter: the first packet of a connection, before it is translated.
    fn new_connections() -> Rules {
        // ct state new jump classify
        let mut rule = Self::is_new().to_vec();
        rule.push(Expression::Verdict(jump("classify")));
        vec![rule]
    }

    /// `ct state new`
    fn is_new() -> [Expression; 3] {
        [
            Expression::Conntrack(ConntrackKey::State, R0),
            Expression::And(R0, STATE_NEW),
            Expression::Compare(R0, Compared::NotEqual, 0),
        ]
    }

    fn classify(&self) -> Rules {
        let behind = behind_address(self.family);
        vec![
            // meta priority set ip daddr . meta l4proto . th dport map @frontends goto frontend
            [
                &[
                    self.destination(R0),
                    Expression::Meta(MetaKey::Protocol, behind),
                    destination_port(next(behind)),
                ][..],
                &priority_from(layout::FRONTENDS),
                &[Expression::Verdict(goto("frontend"))],
            ]
            .concat(),
            // meta l4proto . th dport @nodeports goto nodeport
            vec![
                Expression::Meta(MetaKey::Protocol, R0),
                destination_port(R1),
                Expression::Contained(R0, layout::NODE_PORTS),
                Expression::Verdict(goto("nodeport")),
            ],
            // goto unlisted
            vec![Expression::Verdict(goto("unlisted"))],
        ]
    }

    /// To no frontend.
    fn unlisted(&self) -> Rules {
        vec![
            // A port that the Service of this cluster IP has not.
            // ip daddr @cluster_ips reject
            vec![
                self.destination(R0),
                Expression::Contained(R0, layout::CLUSTER_IPS),
                Expression::RejectPortUnreachable(self.family),
            ],
            // A cluster IP that no Service has: sent on it would come back to us for ever.
            // ip daddr @service_cidrs drop
            vec![
                self.destination(R0),
                Expression::Contained(R0, layout::SERVICE_CIDRS),
                Expression::Verdict(Verdict::Drop),
            ],
            // Not ours, and must not look as if it were.
            // meta priority & c000:0 == c000:0 meta priority set none
            [
                &masked_priority(MARKER)[..],
                &[
                    Expression::Compare(R0, Compared::Equal, MARKER),
                    Expression::Number(R0, 0),
                    Expression::SetMeta(MetaKey::Priority, R0),
                ],
            ]
            .concat(),
        ]
    }

    fn node_port(&self) -> Rules {
        let lookup = [
            &[Expression::Meta(MetaKey::Protocol, R0), destination_port(R1)][..],
            &priority_from(layout::NODE_PORTS),
            &[Expression::Verdict(goto("frontend"))],
        ]
        .concat();
        vec![
            // ip daddr @nodeport_addresses meta priority set meta l4proto . th dport map @nodeports goto frontend
            [&[self.destination(R0), Expression::Contained(R0, layout::NODE_PORT_ADDRESSES)][..], &lookup].concat(),
            // ip daddr @nodeport_ranges fib daddr type local
            //     meta priority set meta l4proto . th dport map @nodeports goto frontend
            [
                &[self.destination(R0), Expression::Contained(R0, layout::NODE_PORT_RANGES)][..],
                &Expression::is_local(Fib::Destination, R0),
                &lookup,
            ]
            .concat(),
            // goto unlisted
            vec![Expression::Verdict(goto("unlisted"))],
        ]
    }

    /// With kind and id in the priority; leaves class and id there.
    fn frontend() -> Rules {
        vec![
            // meta priority & ff00:0 vmap { c300:0 : jump short_circuit, c500:0 : jump guard,
            //                               c700:0 : jump guarded_short_circuit }
            [
                &masked_priority(KIND_MASK)[..],
                &[Expression::PriorityVerdict(
                    R0,
                    vec![
                        (Kind::EXTERNAL_LOCAL.priority(), jump("short_circuit")),
                        (Kind::FILTERED.priority(), jump("guard")),
                        (Kind::FILTERED_LOCAL.priority(), jump("guarded_short_circuit")),
                    ],
                )],
            ]
            .concat(),
            // meta priority set meta priority & c00f:ffff
            keep_of_priority(ID_MASK),
            // meta priority set meta priority map @services
            [&[Expression::Meta(MetaKey::Priority, R0)][..], &priority_from(layout::SERVICES)].concat(),
            // meta priority & fff0:0 vmap { c010:0 : goto no_endpoint, c020:0 : drop }
            [
                &masked_priority(CLASS_MASK)[..],
                &[Expression::PriorityVerdict(
                    R0,
                    vec![(Class::REJECT.priority(), goto("no_endpoint")), (Class::DROP.priority(), Verdict::Drop)],
                )],
            ]
            .concat(),
        ]
    }

    fn no_endpoint(&self) -> Rules {
        // reject
        vec![vec![Expression::RejectPortUnreachable(self.family)]]
    }

    /// Comes before the question whether there are endpoints: who may not dial learns nothing.
    fn guard(&self) -> Rules {
        vec![
            // meta priority . ip saddr != @source_ranges drop
            vec![
                Expression::Meta(MetaKey::Priority, R0),
                // nft keeps the keys of ranges in network order.
                Expression::ToNetworkOrder(R0),
                self.source(R1),
                Expression::NotContained(R0, layout::SOURCE_RANGES),
                Expression::Verdict(Verdict::Drop),
            ],
        ]
    }

    fn guarded_short_circuit() -> Rules {
        vec![
            // jump guard
            vec![Expression::Verdict(jump("guard"))],
            // goto short_circuit
            vec![Expression::Verdict(goto("short_circuit"))],
        ]
    }

    /// Clients on this node reach all endpoints, as if they had dialled the cluster IP.
    fn short_circuit(&self) -> Rules {
        vec![
            // ip saddr @pod_cidrs goto turn_inside
            vec![
                self.source(R0),
                Expression::Contained(R0, layout::POD_CIDRS),
                Expression::Verdict(goto("turn_inside")),
            ],
            // fib saddr type local goto turn_inside
            [&Expression::is_local(Fib::Source, R0)[..], &[Expression::Verdict(goto("turn_inside"))]].concat(),
        ]
    }

    fn turn_inside() -> Rules {
        // meta priority set meta priority map @inside
        vec![[&[Expression::Meta(MetaKey::Priority, R0)][..], &priority_from(layout::INSIDE)].concat()]
    }

    /// Nat: translates what was classified.
    fn dispatch() -> Rules {
        // meta priority & fff0:0 vmap @slot_chains
        vec![[&masked_priority(CLASS_MASK)[..], &[Expression::VerdictMap(R0, layout::SLOT_CHAINS)]].concat()]
    }

    fn translated_connections() -> Rules {
        vec![
            // ct status dnat jump masquerading
            vec![
                Expression::Conntrack(ConntrackKey::Status, R0),
                Expression::And(R0, STATUS_DNAT),
                Expression::Compare(R0, Compared::NotEqual, 0),
                Expression::Verdict(jump("masquerading")),
            ],
        ]
    }

    /// Finds the frontend again by what was dialled: no mark is needed, and another's translations are left alone.
    fn masquerading(&self) -> Rules {
        let behind = behind_address(self.family);
        let has_ports = [Expression::Meta(MetaKey::Protocol, R0), Expression::ProtocolIn(R0, &PROTOCOLS)];
        let dialled = Expression::Conntrack(ConntrackKey::OriginalDestination(self.family), R0);
        let node_port = [
            &[Expression::Meta(MetaKey::Protocol, R0), Expression::Conntrack(ConntrackKey::OriginalPort, R1)][..],
            &priority_from(layout::NODE_PORTS),
            &[Expression::Verdict(goto("translated"))],
        ]
        .concat();
        let on_node_port =
            |addresses| [&has_ports[..], &[dialled.clone(), Expression::Contained(R0, addresses)], &node_port].concat();
        vec![
            // meta l4proto { tcp, udp, sctp } meta priority set
            //     ct original ip daddr . meta l4proto . ct original proto-dst map @frontends goto translated
            [
                &has_ports[..],
                &[
                    dialled.clone(),
                    Expression::Meta(MetaKey::Protocol, behind),
                    Expression::Conntrack(ConntrackKey::OriginalPort, next(behind)),
                ],
                &priority_from(layout::FRONTENDS),
                &[Expression::Verdict(goto("translated"))],
            ]
            .concat(),
            // meta l4proto { tcp, udp, sctp } ct original ip daddr @nodeport_addresses meta priority set
            //     meta l4proto . ct original proto-dst map @nodeports goto translated
            on_node_port(layout::NODE_PORT_ADDRESSES),
            // The same with @nodeport_ranges. Whether the address is ours cannot be asked any more.
            on_node_port(layout::NODE_PORT_RANGES),
        ]
    }

    fn translated(&self) -> Rules {
        vec![
            // An endpoint that was led to itself would drop the packet, or answer itself past us.
            // ip saddr . ip daddr @hairpin masquerade fully-random
            vec![
                self.source(R0),
                self.destination(behind_address(self.family)),
                Expression::Contained(R0, layout::HAIRPIN),
                Expression::MasqueradeFullyRandom,
            ],
            // meta priority & ff00:0 vmap { c000:0 : goto masquerade_internal, … }
            [
                &masked_priority(KIND_MASK)[..],
                &[Expression::PriorityVerdict(
                    R0,
                    vec![
                        (Kind::INTERNAL.priority(), goto("masquerade_internal")),
                        (Kind::EXTERNAL.priority(), goto("masquerade_external")),
                        (Kind::EXTERNAL_LOCAL.priority(), goto("masquerade_local")),
                        (Kind::FILTERED.priority(), goto("masquerade_external")),
                        (Kind::FILTERED_LOCAL.priority(), goto("masquerade_local")),
                    ],
                )],
            ]
            .concat(),
        ]
    }

    fn masquerade_internal(&self) -> Rules {
        vec![
            // ip saddr != @unmasqueraded masquerade fully-random
            vec![
                self.source(R0),
                Expression::NotContained(R0, layout::UNMASQUERADED),
                Expression::MasqueradeFullyRandom,
            ],
        ]
    }

    fn masquerade_external() -> Rules {
        // masquerade fully-random
        vec![vec![Expression::MasqueradeFullyRandom]]
    }

    /// The endpoint sees the client, save that the node's own packets may have an address that it cannot answer.
    fn masquerade_local() -> Rules {
        // fib saddr type local masquerade fully-random
        vec![[&Expression::is_local(Fib::Source, R0)[..], &[Expression::MasqueradeFullyRandom]].concat()]
    }

    /// Behind all others: locally sent packets keep their priority, and queueing disciplines read it.
    fn clear_priority() -> Rules {
        // ct state new meta priority & c000:0 == c000:0 meta priority set none
        vec![
            [
                &Self::is_new()[..],
                &masked_priority(MARKER),
                &[
                    Expression::Compare(R0, Compared::Equal, MARKER),
                    Expression::Number(R0, 0),
                    Expression::SetMeta(MetaKey::Priority, R0),
                ],
            ]
            .concat(),
        ]
    }
}
