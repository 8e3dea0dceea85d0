//! Every reason why a node does not announce an address. Pure.

use std::fmt;

use super::interfaces::NoInterface;
use crate::model::node::Node;
use crate::names::NodeName;

/// Why this node does not announce an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// A node has this very address.
    AddressOfNode {
        /// The node.
        node: NodeName,
    },
    /// No advertisement selects the pool, the Service and this node.
    NoMatchingAdvertisement,
    /// Nowhere in the cluster can a connection be taken.
    NoUsableEndpoint,
    /// Policy `Local`, and no connection can be taken here.
    NoLocalEndpoint,
    /// The node is taken out of load balancing.
    NodeExcluded(Exclusion),
    /// This node's agent is not ready, or not known to membership.
    NodeNotReady,
    /// Another node announces it.
    NotElected {
        /// That node.
        by: NodeName,
    },
    /// This node is elected, but its kernel does not forward yet.
    NotProgrammed,
    /// This node is elected, but no interface can announce.
    NoUsableInterface(NoInterface),
}

/// Why a node is no candidate for any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exclusion {
    /// Label `node.kubernetes.io/exclude-from-external-load-balancers`.
    Label,
    /// Condition `NetworkUnavailable`.
    NetworkUnavailable,
    /// Taint `node.kubernetes.io/out-of-service`.
    OutOfService,
    /// It is being deleted.
    Leaving,
}

impl Exclusion {
    /// Why this node is excluded, if it is.
    pub fn of(node: &Node) -> Option<Self> {
        if node.is_excluded {
            Some(Self::Label)
        } else if node.is_network_unavailable {
            Some(Self::NetworkUnavailable)
        } else if node.is_out_of_service {
            Some(Self::OutOfService)
        } else if node.is_leaving {
            Some(Self::Leaving)
        } else {
            None
        }
    }
}

impl Silence {
    /// The word for conditions and metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::AddressOfNode { .. } => "AddressOfNode",
            Self::NoMatchingAdvertisement => "NoMatchingAdvertisement",
            Self::NoUsableEndpoint => "NoUsableEndpoint",
            Self::NoLocalEndpoint => "NoLocalEndpoint",
            Self::NodeExcluded(_) => "NodeExcluded",
            Self::NodeNotReady => "NodeNotReady",
            Self::NotElected { .. } => "NotElected",
            Self::NotProgrammed => "NotProgrammed",
            Self::NoUsableInterface(_) => "NoUsableInterface",
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressOfNode { node } => write!(f, "it is an address of node {node}"),
            Self::NoMatchingAdvertisement => {
                f.write_str("no L2Advertisement selects its pool, its Service and this node")
            }
            Self::NoUsableEndpoint => f.write_str("no endpoint of the Service can take a connection"),
            Self::NoLocalEndpoint => f.write_str("externalTrafficPolicy is Local and no endpoint runs on this node"),
            Self::NodeExcluded(Exclusion::Label) => f.write_str("the node is excluded by label"),
            Self::NodeExcluded(Exclusion::NetworkUnavailable) => f.write_str("the node's network is unavailable"),
            Self::NodeExcluded(Exclusion::OutOfService) => f.write_str("the node is out of service"),
            Self::NodeExcluded(Exclusion::Leaving) => f.write_str("the node is being deleted"),
            Self::NodeNotReady => f.write_str("the node's agent is not ready"),
            Self::NotElected { by } => write!(f, "node {by} is elected"),
            Self::NotProgrammed => f.write_str("this node's kernel does not forward it yet"),
            Self::NoUsableInterface(why) => why.fmt(f),
        }
    }
}
