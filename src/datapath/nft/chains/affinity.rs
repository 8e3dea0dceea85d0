//! Rules of session affinity: a client that comes again is led to the endpoint that it had, and which one it got is
//! remembered behind the translation.
//!
//! While a packet is on its way through them, its priority carries the memory beside the id. No other packet has such a
//! number there.

use super::super::classes::Recall;
use super::super::ids::{CLASS_MASK, Class, ID_MASK, MEMORY_MARKER};
use super::super::layout;
use super::{
    PROTOCOLS, R0, R1, Rules, RulesOf, STATUS_DNAT, behind_address, destination_port, masked_priority, next,
    priority_from,
};
use crate::model::Family;
use crate::netlink::nf_tables::{Compared, ConntrackKey, Expression, MetaKey, Register};

impl RulesOf {
    /// From class and id to memory and id.
    pub(super) fn ask_for(memory: Class) -> Vec<Expression> {
        // meta priority set meta priority & c00f:ffff | 3000:0
        vec![
            Expression::Meta(MetaKey::Priority, R0),
            Expression::AndOr(R0, ID_MASK, memory.priority() & !ID_MASK),
            Expression::SetMeta(MetaKey::Priority, R0),
        ]
    }

    /// Nat: to where the client went last. A client that is not known goes on.
    pub(super) fn take_remembered(&self, recall: Recall) -> Vec<Expression> {
        // meta l4proto { tcp, udp, sctp } dnat ip to meta priority . ip saddr map @affinity
        // meta l4proto { tcp, udp, sctp } dnat ip6 to meta priority . ip6 saddr map @affinity : 8080
        let (family, port) = (self.family, behind_address(self.family));
        let mut rule = vec![
            Expression::Meta(MetaKey::Protocol, R0),
            Expression::ProtocolIn(R0, &PROTOCOLS),
            Expression::Meta(MetaKey::Priority, R0),
            self.source(R1),
            Expression::Map(R0, layout::AFFINITY),
        ];
        rule.extend(recall.port.map(|number| Expression::Port(port, number)));
        rule.push(Expression::Dnat { family, address: R0, port });
        rule
    }

    /// Filter, behind translation: the first packet of a connection to a Service that remembers. All others are told by
    /// one comparison.
    pub(super) fn learn() -> Rules {
        // meta priority & f000:0 == f000:0 ct state new ct status dnat meta priority & fff0:0 vmap @learners
        vec![
            [
                &masked_priority(MEMORY_MARKER)[..],
                &[Expression::Compare(R0, Compared::Equal, MEMORY_MARKER)],
                &Self::is_new(),
                &[
                    Expression::Conntrack(ConntrackKey::Status, R0),
                    Expression::And(R0, STATUS_DNAT),
                    Expression::Compare(R0, Compared::NotEqual, 0),
                ],
                &masked_priority(CLASS_MASK),
                &[Expression::VerdictMap(R0, layout::LEARNERS)],
            ]
            .concat(),
        ]
    }

    /// Stores what was chosen, or the same again for another while.
    pub(super) fn remember(&self, recall: Recall) -> Rules {
        // update @affinity { meta priority . ip saddr timeout 3h : ip daddr . th dport }
        // th dport 8080 update @affinity { … : ip6 daddr }
        let mut update = Vec::new();
        if let Some(port) = recall.port {
            update.extend([destination_port(R0), Expression::IsPort(R0, port)]);
        }
        update.extend(self.update(recall));
        // The other policy of the Service port remembers it too, if it may use this endpoint. Where it remembers another
        // that one stays.
        // meta priority set meta priority . ip daddr . th dport map @twins update @affinity { … }
        let mut twin = vec![
            Expression::Meta(MetaKey::Priority, R0),
            self.destination(R1),
            destination_port(next(behind_address(self.family))),
        ];
        twin.extend(priority_from(layout::TWINS));
        twin.extend(self.update(recall));
        vec![update, twin]
    }

    fn update(&self, recall: Recall) -> Vec<Expression> {
        // nft begins the value at a multiple of four registers. Its release 1.0.6 lays out a longer key as if it were one
        // of four: it prints the IPv6 rule and loads it, with the value over the end of the key.
        let value = match self.family {
            Family::V4 => Register(4),
            Family::V6 => Register(8),
        };
        let mut update = vec![Expression::Meta(MetaKey::Priority, R0), self.source(R1), self.destination(value)];
        if recall.port.is_none() {
            update.push(destination_port(next(value)));
        }
        update.push(Expression::Update { map: layout::AFFINITY, key: R0, value, timeout: recall.timeout() });
        update
    }
}
