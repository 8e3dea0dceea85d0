//! Rules for what was dialled: they classify the first packet of a connection, and drop or reject it.

use super::super::ids::{CLASS_MASK, Class, ID_MASK, Kind};
use super::super::layout;
use super::super::options::Options;
use super::{
    PROTOCOLS, R0, R1, Rules, RulesOf, STATE_INVALID, behind_address, destination_port, goto, jump, keep_of_priority,
    masked_priority, next, priority_from, priority_has,
};
use crate::model::Protocol;
use crate::netlink::nf_tables::{Compared, Expression, Fib, Header, MetaKey, Verdict};

impl RulesOf {
    /// Nat, so that nothing but the first packet of a connection comes here.
    pub(super) fn dialled(&self) -> Rules {
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
    pub(super) fn unlisted(&self) -> Rules {
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
            // A load-balancer address, by a port or protocol that no Service has there.
            // ip daddr @served fib daddr type != local goto unlisted_served
            [&self.is_served()[..], &[Expression::Verdict(goto("unlisted_served"))]].concat(),
            // One that was such until a moment ago: who has not heard of that yet still sends to it.
            // ip daddr @released fib daddr type != local drop
            [
                &[self.destination(R0), Expression::Contained(R0, layout::RELEASED)][..],
                &Expression::is_not_local(Fib::Destination, R0),
                &[Expression::Verdict(Verdict::Drop)],
            ]
            .concat(),
        ]
    }

    /// Nothing goes on to where routes lead, which is back to us for an address that is nobody else's.
    pub(super) fn unlisted_served(&self) -> Rules {
        vec![
            // meta l4proto { tcp, udp, sctp } reject
            vec![
                Expression::Meta(MetaKey::Protocol, R0),
                Expression::ProtocolIn(R0, &PROTOCOLS),
                Expression::RejectPortUnreachable(self.family),
            ],
            // Answered by this node's own stack, in the name of the address that was asked. A redirect would take the
            // address of the interface that the request came by, and many a pod's has none.
            // icmp type echo-request dnat ip to meta l4proto map @echo_answers
            [
                &self.is_echo_request()[..],
                &[
                    Expression::Meta(MetaKey::Protocol, R0),
                    Expression::Map(R0, layout::ECHO),
                    Expression::DnatAddress { family: self.family, address: R0 },
                ],
            ]
            .concat(),
            // drop
            vec![Expression::Verdict(Verdict::Drop)],
        ]
    }

    pub(super) fn node_port(&self) -> Rules {
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

    /// With kind and id in the priority.
    pub(super) fn frontend(options: Options) -> Rules {
        let mut rules = vec![
            // meta priority & 600:0 != none jump by_client
            [&priority_has(Kind::FILTERED_MASK | Kind::LOCAL_MASK)[..], &[Expression::Verdict(jump("by_client"))]]
                .concat(),
        ];
        if options.reset_mid_stream {
            rules.push(Self::mid_stream());
        }
        rules.extend([
            // meta priority set meta priority & c00f:ffff
            keep_of_priority(ID_MASK),
            // meta priority set meta priority map @services
            [&[Expression::Meta(MetaKey::Priority, R0)][..], &priority_from(layout::SERVICES)].concat(),
            // meta priority & fff0:0 vmap @slot_chains
            [&masked_priority(CLASS_MASK)[..], &[Expression::VerdictMap(R0, layout::SLOT_CHAINS)]].concat(),
            // meta priority & fff0:0 vmap { c010:0 : goto no_endpoint, c020:0 : drop }
            [
                &masked_priority(CLASS_MASK)[..],
                &[Expression::PriorityVerdict(
                    R0,
                    vec![(Class::REJECT.priority(), goto("no_endpoint")), (Class::DROP.priority(), Verdict::Drop)],
                )],
            ]
            .concat(),
        ]);
        rules
    }

    /// Frontends that ask who dials.
    pub(super) fn by_client() -> Rules {
        vec![
            // meta priority & 400:0 != none jump guard
            [&priority_has(Kind::FILTERED_MASK)[..], &[Expression::Verdict(jump("guard"))]].concat(),
            // meta priority & 200:0 != none jump short_circuit
            [&priority_has(Kind::LOCAL_MASK)[..], &[Expression::Verdict(jump("short_circuit"))]].concat(),
        ]
    }

    /// Only packets without a connection come here, never those that merely are out of a window. One that begins no
    /// connection belongs to one that is forgotten: its endpoint is gone.
    fn mid_stream() -> Vec<Expression> {
        const FIN: u8 = 0x01;
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        const ACK: u8 = 0x10;
        // meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset
        vec![
            Expression::Meta(MetaKey::Protocol, R0),
            Expression::CompareByte(R0, Compared::Equal, Protocol::Tcp.number()),
            Expression::Payload { header: Header::Transport, offset: 13, length: 1, to: R0 },
            Expression::AndByte(R0, FIN | SYN | RST | ACK),
            Expression::CompareByte(R0, Compared::NotEqual, SYN),
            Expression::RejectTcpReset,
        ]
    }

    /// What is invalid is not translated back: an endpoint's answer would reach the client with the endpoint's address,
    /// and the client would reset the connection. Traffic of others that passes through this node is none of ours.
    pub(super) fn invalid_packets(&self) -> Rules {
        let rule = |address: Expression| {
            [
                &Self::is_in(STATE_INVALID)[..],
                &[address, Expression::Contained(R0, layout::POD_CIDRS), Expression::Verdict(Verdict::Drop)],
            ]
            .concat()
        };
        vec![
            // ct state invalid ip saddr @pod_cidrs drop
            rule(self.source(R0)),
            // ct state invalid ip daddr @pod_cidrs drop
            rule(self.destination(R0)),
        ]
    }

    pub(super) fn no_endpoint(&self) -> Rules {
        // reject
        vec![vec![Expression::RejectPortUnreachable(self.family)]]
    }

    /// Comes before the question whether there are endpoints: who may not dial learns nothing.
    pub(super) fn guard(&self) -> Rules {
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

    /// Clients on this node reach all endpoints, as if they had dialled the cluster IP.
    pub(super) fn short_circuit(&self) -> Rules {
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

    pub(super) fn turn_inside() -> Rules {
        // meta priority set meta priority map @inside
        vec![[&[Expression::Meta(MetaKey::Priority, R0)][..], &priority_from(layout::INSIDE)].concat()]
    }
}
