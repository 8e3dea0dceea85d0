//! What an administrator sets for the whole datapath, checked once: how pods of this node are told from others, what is
//! masqueraded, where NodePorts answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

use crate::model::address::{parse_address, parse_prefix};

/// Where NodePorts answer on localhost.
const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Why a text names no NodePort addresses.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingsError {
    /// Neither a keyword nor an address nor a prefix.
    #[error("{0:?} is neither `primary` nor `all` nor `localhost` nor an address or prefix")]
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
    /// How long an endpoint may be in no slice before TCP connections to it are reset; without one they never are.
    pub reset_gone_endpoints: Option<Duration>,
    /// Drop forwarded packets from and to pods that connection tracking calls invalid.
    pub drop_invalid: bool,
}

impl Settings {
    /// The loopback addresses on which NodePorts answer.
    pub fn loopbacks(&self) -> BTreeSet<IpAddr> {
        self.node_port_addresses.iter().flat_map(NodePortSelector::loopbacks).collect()
    }
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
    /// Loopback, of both families: TCP only, and by a forwarder in user space.
    Localhost,
    /// The local addresses within a prefix. A prefix of length 0 means every local address of its family but loopback, also
    /// those that come later. One of loopback itself is [`Self::Localhost`] for its family.
    Within(IpNet),
}

impl FromStr for NodePortSelector {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        match text.trim() {
            "primary" => Ok(Self::Primary),
            "all" => Ok(Self::All),
            "localhost" => Ok(Self::Localhost),
            other => parse_prefix(other)
                .or_else(|| parse_address(other).map(IpNet::from))
                .map(Self::Within)
                .ok_or_else(|| SettingsError::NodePortSelector(text.to_owned())),
        }
    }
}

impl NodePortSelector {
    /// The loopback addresses that it names in so many words: a prefix of loopback alone, not one of everything.
    pub fn loopbacks(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let selector = *self;
        LOOPBACKS.into_iter().filter(move |address| match selector {
            Self::Primary | Self::All => false,
            Self::Localhost => true,
            Self::Within(prefix) => prefix.contains(address) && prefix.network().is_loopback(),
        })
    }

    /// Whether it names this local address, whichever addresses the Node object has; loopback never, where the kernel does
    /// not forward.
    pub fn covers(&self, address: IpAddr) -> bool {
        match self {
            Self::Primary | Self::Localhost => false,
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
        assert_eq!("localhost".parse(), Ok(NodePortSelector::Localhost));
        for text in ["", "loopback", "192.0.2.0/33"] {
            assert_eq!(text.parse::<NodePortSelector>(), Err(SettingsError::NodePortSelector(text.to_owned())));
        }
    }

    #[test]
    fn loopback_is_never_covered() {
        let loopback = NodePortSelector::Within("127.0.0.0/8".parse().unwrap());
        assert!(!loopback.covers("127.0.0.1".parse().unwrap()));
        assert!(!NodePortSelector::All.covers("::1".parse().unwrap()));
    }

    #[test]
    fn localhost_is_served_where_it_is_named() {
        let loopbacks = |texts: &[&str]| {
            let node_port_addresses = texts.iter().map(|text| text.parse().unwrap()).collect();
            let settings = Settings { node_port_addresses, ..Settings::default() };
            settings.loopbacks().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for nowhere in [&[][..], &["primary", "all"], &["0.0.0.0/0", "::/0"], &["127.0.0.2/32"], &["0.0.0.0/1"]] {
            assert!(loopbacks(nowhere).is_empty(), "{nowhere:?}");
        }
        assert_eq!(loopbacks(&["localhost"]), ["127.0.0.1", "::1"]);
        assert_eq!(loopbacks(&["primary", "127.0.0.0/8"]), ["127.0.0.1"]);
        assert_eq!(loopbacks(&["127.0.0.1", "::1/128"]), ["127.0.0.1", "::1"]);
    }
}
