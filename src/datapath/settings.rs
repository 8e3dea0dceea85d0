//! What an administrator sets for the whole datapath, checked once: how pods of this node are told from others, what is
//! masqueraded, where NodePorts answer.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

use crate::model::address::{parse_address, parse_prefix};

/// Why a text names no NodePort addresses.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingsError {
    /// Neither a keyword nor an address nor a prefix.
    #[error("{0:?} is neither `primary` nor `all` nor an address or prefix")]
    NodePortSelector(String),
}

/// The datapath's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How pods are told from other sources.
    pub detect_local: DetectLocal,
    /// Masquerade everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// Where NodePorts answer; an empty list means `primary`.
    pub node_port_addresses: Vec<NodePortSelector>,
    /// Answer echo requests to load-balancer addresses.
    pub answer_ping: bool,
}

/// How the datapath tells which packets come from pods: kube-proxy's `detectLocalMode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// By `spec.podCIDRs` of this node (`NodeCIDR`).
    #[default]
    NodePrefixes,
    /// By prefixes that all pods of the cluster have (`ClusterCIDR`).
    Prefixes(Vec<IpNet>),
    /// It cannot tell: nothing is masqueraded on cluster IPs and no pod has the short-circuit.
    Off,
}

/// One element of the list of NodePort addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortSelector {
    /// The primary address of each family, as the Node object has it.
    Primary,
    /// Every local address of both families but loopback.
    All,
    /// The local addresses within a prefix; loopback never. A prefix of length 0 means every local address of its family,
    /// also those that come later.
    Within(IpNet),
}

impl FromStr for NodePortSelector {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        match text.trim() {
            "primary" => Ok(Self::Primary),
            "all" => Ok(Self::All),
            other => parse_prefix(other)
                .or_else(|| parse_address(other).map(IpNet::from))
                .map(Self::Within)
                .ok_or_else(|| SettingsError::NodePortSelector(text.to_owned())),
        }
    }
}

impl NodePortSelector {
    /// Whether it names this local address, whichever addresses the Node object has.
    pub fn covers(&self, address: IpAddr) -> bool {
        match self {
            Self::Primary => false,
            Self::All => !address.is_loopback(),
            Self::Within(prefix) => prefix.contains(&address) && !address.is_loopback(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_keywords_addresses_and_prefixes() {
        assert_eq!("primary".parse(), Ok(NodePortSelector::Primary));
        assert_eq!("all".parse(), Ok(NodePortSelector::All));
        let prefix = NodePortSelector::Within("192.0.2.0/24".parse().unwrap());
        assert_eq!(" 192.0.2.7/24 ".parse(), Ok(prefix));
        assert_eq!("2001:db8::1".parse(), Ok(NodePortSelector::Within("2001:db8::1/128".parse().unwrap())));
        for text in ["", "localhost", "192.0.2.0/33"] {
            assert_eq!(text.parse::<NodePortSelector>(), Err(SettingsError::NodePortSelector(text.to_owned())));
        }
    }

    #[test]
    fn loopback_is_never_covered() {
        let loopback = NodePortSelector::Within("127.0.0.0/8".parse().unwrap());
        assert!(!loopback.covers("127.0.0.1".parse().unwrap()));
        assert!(!NodePortSelector::All.covers("::1".parse().unwrap()));
    }
}
