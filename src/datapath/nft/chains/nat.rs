//! Rules that translate what was classified, and decide on the way out whether the source is translated too.

use super::super::ids::{CLASS_MASK, KIND_MASK, Kind, MARKER};
use super::super::layout;
use super::{
    PROTOCOLS, R0, R1, Rules, RulesOf, STATUS_DNAT, behind_address, goto, jump, masked_priority, next, priority_from,
};
use crate::netlink::nf_tables::{Compared, ConntrackKey, Expression, Fib, MetaKey};

impl RulesOf {
    /// Nat: translates what was classified.
    pub(super) fn dispatch() -> Rules {
        // meta priority & fff0:0 vmap @slot_chains
        vec![[&masked_priority(CLASS_MASK)[..], &[Expression::VerdictMap(R0, layout::SLOT_CHAINS)]].concat()]
    }

    /// With the number in the priority of which the endpoints are.
    pub(super) fn pick_slot(&self, slots: u32) -> Vec<Expression> {
        // meta l4proto { tcp, udp, sctp } dnat ip to meta priority . numgen random mod 3 map @endpoints
        let family = self.family;
        vec![
            Expression::Meta(MetaKey::Protocol, R0),
            Expression::ProtocolIn(R0, &PROTOCOLS),
            Expression::Meta(MetaKey::Priority, R0),
            Expression::Random(R1, slots),
            Expression::Map(R0, layout::ENDPOINTS),
            Expression::Dnat { family, address: R0, port: behind_address(family) },
        ]
    }

    pub(super) fn translated_connections() -> Rules {
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
    pub(super) fn masquerading(&self) -> Rules {
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

    pub(super) fn translated(&self) -> Rules {
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

    pub(super) fn masquerade_internal(&self) -> Rules {
        vec![
            // ip saddr != @unmasqueraded masquerade fully-random
            vec![
                self.source(R0),
                Expression::NotContained(R0, layout::UNMASQUERADED),
                Expression::MasqueradeFullyRandom,
            ],
        ]
    }

    pub(super) fn masquerade_external() -> Rules {
        // masquerade fully-random
        vec![vec![Expression::MasqueradeFullyRandom]]
    }

    /// The endpoint sees the client, save that the node's own packets may have an address that it cannot answer.
    pub(super) fn masquerade_local() -> Rules {
        // fib saddr type local masquerade fully-random
        vec![[&Expression::is_local(Fib::Source, R0)[..], &[Expression::MasqueradeFullyRandom]].concat()]
    }

    /// Behind all others: locally sent packets keep their priority, and queueing disciplines read it.
    pub(super) fn clear_priority() -> Rules {
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
