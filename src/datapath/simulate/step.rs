//! The rules that a packet may meet, in words for people.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;

use crate::datapath::entry::{EntryKey, Frontend, Treatment};
use crate::model::Protocol;
use crate::model::service::TrafficPolicy;

/// A rule that applied to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The destination is a Service's.
    Frontend {
        /// What was dialled.
        frontend: Frontend,
        /// Whose it is.
        entry: EntryKey,
        /// How it is treated.
        treatment: Treatment,
    },
    /// A NodePort was dialled at an address of this node where NodePorts do not answer.
    NodePortElsewhere {
        /// The NodePort.
        port: NonZeroU16,
        /// Whose it is.
        entry: EntryKey,
    },
    /// A Service has this cluster IP but not this port.
    UnlistedPort {
        /// The cluster IP.
        address: IpAddr,
        /// The port that was dialled.
        port: NonZeroU16,
        /// With this protocol.
        protocol: Protocol,
    },
    /// No Service has this address of a range of cluster IPs.
    NoSuchClusterIp {
        /// The address.
        address: IpAddr,
        /// The range that it is in.
        range: IpNet,
    },
    /// No Service has this address.
    NotOurs,
    /// The Service's source ranges let the client in.
    Admitted {
        /// The client.
        source: IpAddr,
        /// The range that it is in.
        range: IpNet,
    },
    /// The client is in none of the Service's source ranges.
    NotAdmitted {
        /// The client.
        source: IpAddr,
    },
    /// A pod of this node is inside the cluster, so `externalTrafficPolicy: Local` does not bind it.
    PodShortCircuit {
        /// The pod.
        source: IpAddr,
        /// The prefix that shows it to be one.
        range: IpNet,
    },
    /// Nor does it bind the node itself.
    NodeShortCircuit {
        /// The node's address.
        source: IpAddr,
    },
    /// The client goes back to the endpoint that it had, as long as that may be used.
    Affinity {
        /// The client.
        source: IpAddr,
        /// For how long after its last new connection.
        timeout: Duration,
    },
    /// The client is known, and the endpoint that it had may be used.
    Remembered {
        /// The client.
        source: IpAddr,
        /// The endpoint.
        endpoint: SocketAddr,
    },
    /// One of the policy's endpoints is chosen.
    Endpoints {
        /// The policy.
        policy: TrafficPolicy,
        /// Out of how many.
        count: usize,
    },
    /// There are endpoints, but none for this policy here.
    NoneHere {
        /// The policy.
        policy: TrafficPolicy,
    },
    /// There is no endpoint on any node.
    NoneAnywhere,
    /// The source becomes this node's address.
    Masquerade {
        /// Why.
        reason: Masquerade,
    },
    /// The source becomes this node's address if this endpoint is chosen: it is the client itself.
    Hairpin {
        /// The endpoint.
        endpoint: SocketAddr,
    },
}

/// Why a packet is masqueraded whichever endpoint it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// `masqueradeAll` is set.
    All,
    /// It goes to a cluster IP and comes from no pod.
    NotAPod,
    /// It was sent to an external address under policy `Cluster`: the answer must come back this way.
    External,
    /// The node itself took the short-circuit.
    Node,
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "everything to cluster IPs is masqueraded here",
            Self::NotAPod => "the client is no pod",
            Self::External => "externalTrafficPolicy is Cluster",
            Self::Node => "the client is this node",
        })
    }
}

/// A policy as users write it.
const fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend { frontend, entry, treatment } => {
                match frontend {
                    Frontend::Address(address) => write!(f, "{address}/{} is ", entry.port.protocol)?,
                    Frontend::NodePort(port) => write!(f, "NodePort {port}/{} is ", entry.port.protocol)?,
                }
                write!(f, "service {}, ", entry.port)?;
                match treatment {
                    Treatment::Internal(policy) => write!(f, "internalTrafficPolicy {}", policy_name(*policy)),
                    Treatment::External { policy, .. } => {
                        write!(f, "externalTrafficPolicy {}", policy_name(*policy))
                    }
                }
            }
            Self::NodePortElsewhere { port, entry } => {
                write!(f, "NodePort {port} of service {} does not answer at this address", entry.port)
            }
            Self::UnlistedPort { address, port, protocol } => {
                write!(f, "the service at {address} has no port {port}/{protocol}")
            }
            Self::NoSuchClusterIp { address, range } => write!(f, "no service has {address} of {range}"),
            Self::NotOurs => f.write_str("no service has this address and port"),
            Self::Admitted { source, range } => write!(f, "{source} is in source range {range}"),
            Self::NotAdmitted { source } => write!(f, "{source} is in no source range of the service"),
            Self::PodShortCircuit { source, range } => {
                write!(f, "{source} is a pod ({range}): treated as inside the cluster")
            }
            Self::NodeShortCircuit { source } => write!(f, "{source} is this node: treated as inside the cluster"),
            Self::Affinity { source, timeout } => {
                write!(f, "{source} keeps its endpoint for {} s after its last connection", timeout.as_secs())
            }
            Self::Remembered { source, endpoint } => write!(f, "{source} went to {endpoint} last"),
            Self::Endpoints { policy, count } => {
                write!(f, "one of {count} endpoints of policy {}", policy_name(*policy))
            }
            Self::NoneHere { policy } => {
                write!(f, "policy {} and no endpoint on this node", policy_name(*policy))
            }
            Self::NoneAnywhere => f.write_str("no endpoint on any node"),
            Self::Masquerade { reason } => write!(f, "masqueraded: {reason}"),
            Self::Hairpin { endpoint } => write!(f, "masqueraded if sent to {endpoint}, which is the client itself"),
        }
    }
}
