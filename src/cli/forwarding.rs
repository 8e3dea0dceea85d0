//! Flags that say how a node forwards: those with which the agents run, and with which `trace` follows a packet.

use clap::ArgAction;
use ipnet::IpNet;

use crate::datapath::settings::{DetectLocal, NodePortSelector, Settings};

/// How a node forwards.
#[derive(Clone, Debug, clap::Args)]
pub struct ForwardingArgs {
    /// Prefix of pods whose traffic to cluster IPs keeps its source; repeatable. Without it: the pod CIDRs of this node
    #[arg(long = "cluster-cidr", value_name = "PREFIX")]
    cluster_cidrs: Vec<IpNet>,

    /// Where NodePorts answer: `primary`, `all`, an address or a prefix; repeatable. Without it: `primary`
    #[arg(long = "node-port-address", value_name = "WHERE")]
    node_port_addresses: Vec<NodePortSelector>,

    /// Masquerade all traffic to cluster IPs, also that of pods
    #[arg(long)]
    masquerade_all: bool,

    /// Whether to answer echo requests (ping) to load-balancer addresses
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    answer_ping: bool,
}

impl ForwardingArgs {
    /// As the datapath takes them.
    pub fn settings(&self) -> Settings {
        Settings {
            detect_local: if self.cluster_cidrs.is_empty() {
                DetectLocal::NodePrefixes
            } else {
                DetectLocal::Prefixes(self.cluster_cidrs.clone())
            },
            masquerade_all: self.masquerade_all,
            node_port_addresses: self.node_port_addresses.clone(),
            answer_ping: self.answer_ping,
        }
    }
}
