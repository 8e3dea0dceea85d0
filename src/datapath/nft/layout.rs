//! The table, and the sets and maps in it: the same whatever is programmed.

use super::sizes::Sizes;
use crate::model::Family;
use crate::netlink::nf_tables::{Field, Set, SetKind, Table};

/// The name of our tables.
pub const TABLE_NAME: &str = "steelyard";

/// Address, protocol and port dialled, to kind and id.
pub const FRONTENDS: &str = "frontends";
/// The same for ports of this node.
pub const NODE_PORTS: &str = "nodeports";
/// From the frontend of policy `Local` to the id of policy `Cluster`, for clients on this node.
pub const INSIDE: &str = "inside";
/// Id to class and id.
pub const SERVICES: &str = "services";
/// Id and slot to address and port.
pub const ENDPOINTS: &str = "endpoints";
/// Memory, id and client to the endpoint that it went to last; filled by packets. In IPv6 the address alone, whose port is
/// the memory's.
pub const AFFINITY: &str = "affinity";
/// Memory, id and endpoint to memory and id of the other policy of the same Service port, if that may use it too.
pub const TWINS: &str = "twins";
/// Memory to the chain that remembers; verdicts, one for each timeout in use.
pub const LEARNERS: &str = "learners";
/// Class to the chain for that many slots; verdicts, one for each number of endpoints in use.
pub const SLOT_CHAINS: &str = "slot_chains";
/// How many clients are remembered at most; another is served without.
pub const AFFINITY_SIZE: u32 = 1 << 17;
/// Who may dial a filtered frontend.
pub const SOURCE_RANGES: &str = "source_ranges";
/// Source and destination of connections of an endpoint to itself.
pub const HAIRPIN: &str = "hairpin";
/// Pods of this node.
pub const POD_CIDRS: &str = "pod_cidrs";
/// Sources that are not masqueraded when they dial a cluster IP.
pub const UNMASQUERADED: &str = "unmasqueraded";
/// Addresses on which node ports answer.
pub const NODE_PORT_ADDRESSES: &str = "nodeport_addresses";
/// Ranges in which node ports answer on every address of this machine.
pub const NODE_PORT_RANGES: &str = "nodeport_ranges";
/// Cluster IPs of all Services.
pub const CLUSTER_IPS: &str = "cluster_ips";
/// Where cluster IPs come from.
pub const SERVICE_CIDRS: &str = "service_cidrs";

/// Load-balancer addresses that we serve.
pub const SERVED: &str = "served";
/// The address of this node that answers echo requests to those, by the protocol of the request.
pub const ECHO: &str = "echo_answers";
/// Load-balancer addresses that we served until a moment ago.
pub const RELEASED: &str = "released";

/// How long packets to a released address are dropped: as long as others may still send them here, since a neighbour's
/// cache or a router has not heard yet. That of Linux keeps an entry in use for half of this to one and a half of it.
pub const RELEASED_SECONDS: u16 = 60;

/// The sets and maps that grow with Services and endpoints: they have room for a number of elements, see [`Sizes`].
pub const SIZED: [&str; 9] = [ENDPOINTS, TWINS, SERVICES, INSIDE, HAIRPIN, CLUSTER_IPS, SERVED, NODE_PORTS, FRONTENDS];

/// Our table of a family.
pub const fn table(family: Family) -> Table {
    Table { family, name: TABLE_NAME }
}

/// What is remembered of an endpoint.
fn remembered(family: Family) -> Vec<Field> {
    match family {
        Family::V4 => vec![Field::Destination(family), Field::Port],
        Family::V6 => vec![Field::Destination(family)],
    }
}

/// All sets and maps. Those of [`SIZED`] have `size …` too.
pub fn sets(family: Family, sizes: &Sizes) -> Vec<Set> {
    let mut sets = unsized_sets(family);
    for set in sets.iter_mut().filter(|set| SIZED.contains(&set.name)) {
        set.kind = SetKind::Sized(sizes.of(set.name));
    }
    sets
}

fn unsized_sets(family: Family) -> Vec<Set> {
    let source = Field::Source(family);
    let destination = Field::Destination(family);
    vec![
        // map endpoints { typeof meta priority . numgen random mod 65536 : ip daddr . th dport }
        Set::map(ENDPOINTS, vec![Field::Priority, Field::Slot], vec![destination, Field::Port]),
        // map affinity { typeof meta priority . ip saddr : ip daddr . th dport; size 131072; flags dynamic,timeout }
        Set::learned(AFFINITY, AFFINITY_SIZE, vec![Field::Priority, source], remembered(family)),
        // map twins { typeof meta priority . ip daddr . th dport : meta priority }
        Set::map(TWINS, vec![Field::Priority, destination, Field::Port], vec![Field::Priority]),
        // map learners { typeof meta priority : verdict }
        Set::verdict_map(LEARNERS, vec![Field::Priority]),
        // map services { typeof meta priority : meta priority }
        Set::map(SERVICES, vec![Field::Priority], vec![Field::Priority]),
        // map slot_chains { typeof meta priority : verdict }
        Set::verdict_map(SLOT_CHAINS, vec![Field::Priority]),
        // map inside { typeof meta priority : meta priority }
        Set::map(INSIDE, vec![Field::Priority], vec![Field::Priority]),
        // set source_ranges { typeof meta priority . ip saddr; flags interval }
        Set::new(SOURCE_RANGES, SetKind::Interval, vec![Field::Priority, source]),
        // set hairpin { typeof ip saddr . ip daddr }
        Set::new(HAIRPIN, SetKind::Exact, vec![source, destination]),
        // set pod_cidrs { typeof ip saddr; flags interval }
        Set::new(POD_CIDRS, SetKind::Interval, vec![source]),
        // set unmasqueraded { typeof ip saddr; flags interval }
        Set::new(UNMASQUERADED, SetKind::Interval, vec![source]),
        // set nodeport_addresses { typeof ip daddr }
        Set::new(NODE_PORT_ADDRESSES, SetKind::Exact, vec![destination]),
        // set nodeport_ranges { typeof ip daddr; flags interval }
        Set::new(NODE_PORT_RANGES, SetKind::Interval, vec![destination]),
        // set cluster_ips { typeof ip daddr }
        Set::new(CLUSTER_IPS, SetKind::Exact, vec![destination]),
        // set service_cidrs { typeof ip daddr; flags interval }
        Set::new(SERVICE_CIDRS, SetKind::Interval, vec![destination]),
        // set served { typeof ip daddr }
        Set::new(SERVED, SetKind::Exact, vec![destination]),
        // map echo_answers { typeof meta l4proto : ip daddr }
        Set::map(ECHO, vec![Field::Protocol], vec![destination]),
        // set released { typeof ip daddr; timeout 60s }
        Set::new(RELEASED, SetKind::Passing { seconds: RELEASED_SECONDS }, vec![destination]),
        // map nodeports { typeof meta l4proto . th dport : meta priority }
        Set::map(NODE_PORTS, vec![Field::Protocol, Field::Port], vec![Field::Priority]),
        // map frontends { typeof ip daddr . meta l4proto . th dport : meta priority }
        Set::map(FRONTENDS, vec![destination, Field::Protocol, Field::Port], vec![Field::Priority]),
    ]
}
