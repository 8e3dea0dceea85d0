//! Rules that translate what was classified, and decide on the way out whether the source is translated too.

use super::super::ids::{Kind, MARKER};
use super::super::layout;
use super::{
    PROTOCOLS, R0, R1, Rules, RulesOf, STATUS_DNAT, behind_address, clear_priority, goto, next, priority_from,
    priority_has, priority_is,
};
use crate::netlink::nf_tables::{Compared, ConntrackKey, Expression, Fib, MetaKey, Verdict};

impl RulesOf {
    /// With the number that the endpoints have in `key`.
    pub(super) fn pick_slot(&self, slots: u32, key: &[Expression]) -> Vec<Expression> {
        // meta l4proto { tcp, udp, sctp } dnat ip to meta priority & c00f:ffff . numgen random mod 3 map @endpoints
        let family = self.family;
        [
            &[Expression::Meta(MetaKey::Protocol, R0), Expression::ProtocolIn(R0, &PROTOCOLS)],
            key,
            &[
                Expression::Random(R1, slots),
                Expression::Map(R0, layout::ENDPOINTS),
                Expression::Dnat { family, address: R0, port: behind_address(family) },
            ],
        ]
        .concat()
    }

    /// Only the first packet of a connection comes here, as only that has a number of ours.
    pub(super) fn on_the_way_out() -> Rules {
        vec![
            // Locally sent packets keep their priority, and those of IPv6 forwarded ones; queueing disciplines read it.
            // meta priority & c000:0 == c000:0 meta priority set none
            [&priority_is(MARKER, MARKER)[..], &clear_priority()].concat(),
            // ct status dnat goto masquerading
            vec![
                Expression::Conntrack(ConntrackKey::Status, R0),
                Expression::And(R0, STATUS_DNAT),
                Expression::Compare(R0, Compared::NotEqual, 0),
                Expression::Verdict(goto("masquerading")),
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
            // Most connections are of these, and two small lookups tell them.
            // ip saddr @unmasqueraded ct original ip daddr @cluster_ips ip saddr . ip daddr != @hairpin accept
            vec![
                self.source(R0),
                Expression::Contained(R0, layout::UNMASQUERADED),
                dialled.clone(),
                Expression::Contained(R0, layout::CLUSTER_IPS),
                self.source(R0),
                self.destination(behind),
                Expression::NotContained(R0, layout::HAIRPIN),
                Expression::Verdict(Verdict::Accept),
            ],
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

    /// With kind and id in the priority, as before.
    pub(super) fn translated(&self) -> Rules {
        vec![
            // meta priority & 300:0 == 100:0 meta priority set none masquerade fully-random
            masquerading(&priority_is(Kind::SIDE_MASK, Kind::OUTSIDE)),
            // An endpoint that was led to itself would drop the packet, or answer itself past us.
            // ip saddr . ip daddr @hairpin meta priority set none masquerade fully-random
            masquerading(&[
                self.source(R0),
                self.destination(behind_address(self.family)),
                Expression::Contained(R0, layout::HAIRPIN),
            ]),
            // meta priority & 200:0 != none goto masquerade_local
            [&priority_has(Kind::LOCAL_MASK)[..], &[Expression::Verdict(goto("masquerade_local"))]].concat(),
            // meta priority set none
            clear_priority().to_vec(),
            // ip saddr != @unmasqueraded masquerade fully-random
            vec![
                self.source(R0),
                Expression::NotContained(R0, layout::UNMASQUERADED),
                Expression::MasqueradeFullyRandom,
            ],
        ]
    }

    /// The endpoint sees the client, save that the node's own packets may have an address that it cannot answer.
    pub(super) fn masquerade_local() -> Rules {
        vec![
            // meta priority set none
            clear_priority().to_vec(),
            // fib saddr type local masquerade fully-random
            [&Expression::is_local(Fib::Source, R0)[..], &[Expression::MasqueradeFullyRandom]].concat(),
        ]
    }
}

/// `… meta priority set none masquerade fully-random`
fn masquerading(when: &[Expression]) -> Vec<Expression> {
    [when, &clear_priority(), &[Expression::MasqueradeFullyRandom]].concat()
}
