//! Flags that say how a node forwards: those with which the agents run, and with which `trace` follows a packet.

use clap::{ArgAction, Parser as _};
use ipnet::IpNet;

use crate::datapath::settings::{DetectLocal, NodePortSelector, Settings};

/// How a node forwards.
#[derive(Clone, Debug, clap::Args)]
pub struct ForwardingArgs {
    /// Prefix of pods whose traffic to cluster IPs keeps its source; repeatable. Without it: the pod CIDRs of this node
    #[arg(long = "cluster-cidr", value_name = "PREFIX")]
    cluster_cidrs: Vec<IpNet>,

    /// Where NodePorts answer: `primary`, `all`, `localhost` (TCP only), an address or a prefix; repeatable. Without it:
    /// `primary`
    #[arg(long = "node-port-address", value_name = "WHERE")]
    node_port_addresses: Vec<NodePortSelector>,

    /// Masquerade all traffic to cluster IPs, also that of pods
    #[arg(long)]
    masquerade_all: bool,

    /// Whether to answer echo requests (ping) to load-balancer addresses
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    answer_ping: bool,
}

/// The arguments of an agent, of which only these matter here.
#[derive(Debug, clap::Parser)]
#[command(no_binary_name = true)]
struct AgentArgs {
    #[command(flatten)]
    forwarding: ForwardingArgs,
}

impl ForwardingArgs {
    /// Finds them among the arguments with which the chart runs the agents, each `--flag` or `--flag=value`.
    pub fn of_agent(arguments: &[String]) -> Option<Self> {
        const OURS: [&str; 4] = ["--cluster-cidr", "--node-port-address", "--masquerade-all", "--answer-ping"];
        let name = |argument: &str| argument.split('=').next().unwrap_or_default().to_owned();
        let ours = arguments.iter().filter(|argument| OURS.contains(&name(argument).as_str()));
        AgentArgs::try_parse_from(ours).ok().map(|agent| agent.forwarding)
    }

    /// Whether nothing was set.
    pub fn is_default(&self) -> bool {
        self.cluster_cidrs.is_empty() && self.node_port_addresses.is_empty() && !self.masquerade_all && self.answer_ping
    }

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
            ..Settings::default()
        }
    }
}
