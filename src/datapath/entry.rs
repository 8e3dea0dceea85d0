//! What the datapath is asked to do, free of any backend: `desired` makes it, `simulate` reads it, `nft` programs it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::Family;
use crate::model::flat::{FlatMap, FlatSet};
use crate::model::service::TrafficPolicy;
use crate::names::ServicePortKey;

/// One Service port in one family: the unit that is programmed, compared and isolated by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryKey {
    /// The Service port; its protocol is the protocol of every frontend.
    pub port: ServicePortKey,
    /// The family of every address below.
    pub family: Family,
}

/// What happens to the first packet of a connection to one of the frontends; later packets follow conntrack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardingEntry {
    /// Where clients dial, and how each of these is treated.
    pub frontends: FlatMap<Frontend, Treatment>,
    /// What stands behind policy `Cluster`. Equal to [`Target::Reject`] where no frontend uses it.
    pub cluster: Target,
    /// What stands behind policy `Local`. Equal to [`Target::Reject`] where no frontend uses it.
    pub local: Target,
    /// How long a client keeps its endpoint after its last new connection.
    pub affinity: Option<Duration>,
    /// Who may dial a frontend whose treatment is filtered. Only ranges of this family; empty admits nobody.
    pub source_ranges: Vec<IpNet>,
    /// Which endpoints may meet themselves here, since they run on this node or nobody says where: a connection from
    /// such an address that is sent back to the same address is masqueraded (hairpin), whatever else holds.
    pub local_addresses: FlatSet<IpAddr>,
}

/// An address that clients dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// A cluster IP, an external IP or a load-balancer address, and a port.
    Address(SocketAddr),
    /// A port on this node's NodePort addresses.
    NodePort(NonZeroU16),
}

/// How packets to a frontend are treated (`service-proxy` rules for the first packet of a flow).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Treatment {
    /// A cluster IP: the set of `internalTrafficPolicy`; masqueraded unless the client is a pod of this node.
    Internal(TrafficPolicy),
    /// Reachable from outside: `Cluster` is always masqueraded, `Local` never, save that pods of this node and the node
    /// itself are treated as inside the cluster ("short-circuit") and the node's packets are masqueraded.
    External {
        /// `externalTrafficPolicy`.
        policy: TrafficPolicy,
        /// Whether [`ForwardingEntry::source_ranges`] guard it.
        is_filtered: bool,
    },
}

/// Where the packets of one policy go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To any of these with equal chance; never empty.
    Endpoints(FlatSet<SocketAddr>),
    /// Nowhere, silently: other nodes have endpoints, this policy has none here.
    Drop,
    /// Nowhere, and the client is told by ICMP port unreachable: no endpoint anywhere.
    Reject,
}

/// What holds for all Services on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeForwarding {
    /// Prefixes of pods whose traffic to cluster IPs is not masqueraded (`detectLocalMode`). None of a family: cannot
    /// tell in that family, so nothing is masqueraded on its cluster IPs and its pods have no short-circuit.
    pub pod_cidrs: Vec<IpNet>,
    /// Masquerade everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// Where NodePorts answer.
    pub node_ports: NodePorts,
    /// Ranges from which cluster IPs come: addresses in them that belong to no Service are dropped.
    pub service_cidrs: Vec<IpNet>,
    /// Cluster IPs of all Services: their unlisted ports are rejected.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Load-balancer addresses of all Services: see [`Self::serves`].
    pub served: BTreeSet<IpAddr>,
    /// Addresses at which others serve Services: load-balancer addresses with `ipMode: Proxy`, and all of another proxy's
    /// Services.
    pub served_elsewhere: BTreeSet<IpAddr>,
    /// Addresses of the cluster's nodes.
    pub node_addresses: BTreeSet<IpAddr>,
    /// This node's addresses that answer echo requests to load-balancer addresses, at most one of each family.
    pub echo_answers: BTreeSet<IpAddr>,
}

impl NodeForwarding {
    /// Whether an address is a load-balancer's alone: echo requests are answered, and ports that no Service has there are
    /// rejected. Others who are there too have the other ports to themselves: nodes that lend their address to a Service,
    /// other proxies.
    pub fn serves(&self, address: IpAddr) -> bool {
        let is_shared = self.served_elsewhere.contains(&address) || self.node_addresses.contains(&address);
        self.served.contains(&address) && !is_shared
    }

    /// Whether somebody has the address: one that nobody has is dropped for a while after we served it.
    pub fn is_held(&self, address: IpAddr) -> bool {
        [&self.served, &self.served_elsewhere, &self.node_addresses].iter().any(|held| held.contains(&address))
    }
}

/// Where NodePorts answer, family by family: a setting may name one and leave the other without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePorts {
    /// IPv4 addresses.
    pub v4: NodePortAddresses,
    /// IPv6 addresses.
    pub v6: NodePortAddresses,
}

impl NodePorts {
    /// Those of one family.
    pub const fn of(&self, family: Family) -> &NodePortAddresses {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// The addresses of one family on which NodePorts answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// These local addresses.
    These(BTreeSet<IpAddr>),
    /// Every local address but loopback.
    All,
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}
