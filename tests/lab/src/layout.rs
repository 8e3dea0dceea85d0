//! Names, paths and addresses of a lab: pure, so that whoever cleans up after a crash derives the same ones again.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The longest lab name: `steelyard-<name>-node12` stays easy to type.
const LONGEST_NAME: usize = 24;

/// Most nodes of a lab. Addresses above are kept for clients and load-balancer pools.
pub const MOST_NODES: u8 = 50;

/// Service addresses, one range per family.
pub const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:96::/112";
/// Pod addresses of the whole cluster, one range per family. Nodes take a /24 and a /64 each.
pub const POD_RANGES: &str = "10.244.0.0/16,fd00:10:244::/48";
/// Addresses of the `kubernetes` Service.
pub const KUBERNETES_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
/// Addresses of the DNS Service.
pub const DNS_SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Port of the API server.
pub const API_PORT: u16 = 6443;

/// The name of a lab: a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// The name that the variable `STEELYARD_LAB` holds, else `lab`.
    ///
    /// # Errors
    /// If that is no lab's name.
    pub fn from_env() -> Result<Self> {
        Self::named_by_env()?.map_or_else(|| "lab".parse(), Ok)
    }

    /// The name that the variable `STEELYARD_LAB` holds, if it holds anything.
    ///
    /// # Errors
    /// If that is no lab's name.
    pub fn named_by_env() -> Result<Option<Self>> {
        let text = std::env::var("STEELYARD_LAB").ok().filter(|text| !text.is_empty());
        text.map(|text| text.parse().context("STEELYARD_LAB")).transpose()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > LONGEST_NAME || !text.chars().all(fits) || text.starts_with('-') {
            bail!("lab name {text:?} is not 1 to {LONGEST_NAME} of a-z, 0-9 and '-'");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for LabName {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A member of the lab's network: each has a network namespace of its own with a leg `eth0` on the segment, but for
/// [`Member::Remote`], whose leg is on the second network, and [`Member::Router`], which has one on both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Member {
    /// etcd, API server, controller manager, scheduler; also where `kubectl` and `helm` run.
    Control,
    /// A client on the segment that is not part of the cluster.
    Client,
    /// Default gateway of all others, between the segment and the second network.
    Router,
    /// A client on the second network, behind the router.
    Remote,
    /// A Kubernetes node, counted from 1.
    Node(u8),
}

impl Member {
    /// All members of a lab with this many nodes.
    pub fn all(nodes: u8) -> Vec<Self> {
        let fixed = [Self::Control, Self::Client, Self::Router, Self::Remote];
        fixed.into_iter().chain(Self::nodes(nodes)).collect()
    }

    /// The nodes of a lab with this many.
    pub fn nodes(nodes: u8) -> impl Iterator<Item = Self> {
        (1..=nodes).map(Self::Node)
    }

    /// IPv4 address of its first leg.
    pub fn ipv4(self) -> Ipv4Addr {
        match self {
            Self::Control => Ipv4Addr::new(192, 0, 2, 10),
            Self::Node(n) => Ipv4Addr::new(192, 0, 2, 10_u8.saturating_add(n)),
            Self::Client => Ipv4Addr::new(192, 0, 2, 200),
            Self::Router => Ipv4Addr::new(192, 0, 2, 1),
            Self::Remote => Ipv4Addr::new(198, 51, 100, 200),
        }
    }

    /// IPv6 address of its first leg: its last group reads like the last byte of the IPv4 address.
    pub fn ipv6(self) -> Ipv6Addr {
        let [.., last] = self.ipv4().octets();
        let last = u16::from(last);
        let reads_alike = (last / 100) << 8 | (last / 10 % 10) << 4 | (last % 10);
        let network = if self == Self::Remote { 2 } else { 1 };
        Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, reads_alike)
    }

    /// The MAC address of its first leg, made from the IPv4 address, so that packet dumps are easy to read.
    pub fn mac(self) -> String {
        let [a, b, c, d] = self.ipv4().octets();
        format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control"),
            Self::Client => f.write_str("client"),
            Self::Router => f.write_str("router"),
            Self::Remote => f.write_str("remote"),
            Self::Node(n) => write!(f, "node{n}"),
        }
    }
}

impl FromStr for Member {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "control" => Ok(Self::Control),
            "client" => Ok(Self::Client),
            "router" => Ok(Self::Router),
            "remote" => Ok(Self::Remote),
            other => other
                .strip_prefix("node")
                .filter(|digits| !digits.starts_with('0'))
                .and_then(|digits| digits.parse().ok())
                .filter(|n| (1..=MOST_NODES).contains(n))
                .map(Self::Node)
                .with_context(|| format!("{other:?} is not one of control, client, router, remote, node1, node2, …")),
        }
    }
}

impl TryFrom<String> for Member {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Member> for String {
    fn from(member: Member) -> Self {
        member.to_string()
    }
}

/// IPv4 pods of node `n`.
pub fn pods_v4(n: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 244, n, 0), 24)
}

/// IPv6 pods of node `n`; the group of the node reads like the decimal number.
pub fn pods_v6(n: u8) -> Ipv6Net {
    let n = u16::from(n);
    let reads_alike = (n / 100) << 8 | (n / 10 % 10) << 4 | (n % 10);
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, reads_alike, 0, 0, 0, 0), 64)
}

/// The zone of node `n`: three zones in turn.
pub fn zone(n: u8) -> String {
    let letter = match n % 3 {
        1 => 'a',
        2 => 'b',
        _ => 'c',
    };
    format!("zone-{letter}")
}

/// Everything of one lab that has a name on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    name: LabName,
    state: PathBuf,
}

/// Folders that a machine of the lab sees empty instead of the host's, so that nothing is written outside the state
/// folder. So the state folder and the programs must not lie below them.
pub const MASKED: [&str; 5] = ["/run", "/tmp", "/var/lib", "/var/log", "/dev/shm"];

impl Layout {
    /// The layout of the lab `name` whose state is kept below `home`.
    ///
    /// # Errors
    /// If `home` lies where the lab's machines could not see it.
    pub fn new(name: LabName, home: &Path) -> Result<Self> {
        refuse_masked("the state folder", home)?;
        let state = home.join(name.as_str());
        Ok(Self { name, state })
    }

    /// The layout with the state folder that the environment names: `$STEELYARD_LAB_HOME`, else below
    /// `$XDG_STATE_HOME`, else below `~/.local/state`.
    ///
    /// # Errors
    /// If there is no such folder or it lies where the lab's machines could not see it.
    pub fn from_env(name: LabName) -> Result<Self> {
        let var = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = match (var("STEELYARD_LAB_HOME"), var("XDG_STATE_HOME"), var("HOME")) {
            (Some(home), _, _) => home,
            (None, Some(state), _) => state.join("steelyard-lab"),
            (None, None, Some(home)) => home.join(".local/state/steelyard-lab"),
            (None, None, None) => bail!("neither HOME nor STEELYARD_LAB_HOME is set: where should the lab keep its state?"),
        };
        Self::new(name, &std::path::absolute(&home)?)
    }

    /// The lab's name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// The state folder of this lab.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Name of the network namespace that holds the bridge.
    pub fn fabric(&self) -> String {
        format!("steelyard-{}-fabric", self.name)
    }

    /// Name of a member's network namespace.
    pub fn netns(&self, member: Member) -> String {
        format!("steelyard-{}-{member}", self.name)
    }

    /// Whether a network namespace of this name is ours.
    pub fn owns_netns(&self, netns: &str) -> bool {
        netns == self.fabric()
            || netns
                .strip_prefix(&format!("steelyard-{}-", self.name))
                .is_some_and(|rest| rest.parse::<Member>().is_ok())
    }

    /// The lab's folder in every cgroup hierarchy, relative to its root.
    pub fn cgroup(&self) -> String {
        format!("steelyard-{}", self.name)
    }

    /// A machine's folder in every cgroup hierarchy, relative to its root.
    pub fn machine_cgroup(&self, member: Member) -> String {
        format!("{}/{member}", self.cgroup())
    }

    /// What the lab was started with.
    pub fn record(&self) -> PathBuf {
        self.state.join("lab.json")
    }

    /// Held while a lab is brought up, taken down or changed.
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The folder of one machine: its disk.
    pub fn machine(&self, member: Member) -> PathBuf {
        self.state.join(member.to_string())
    }

    /// The folder of certificates, keys, tokens and kubeconfigs.
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    /// The kubeconfig of a user of the cluster.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.pki().join(format!("{user}.kubeconfig"))
    }

    /// The logs of all machines; kept after `down`, until the next `up`.
    pub fn logs(&self) -> PathBuf {
        self.state.join("log")
    }

    /// Log folder of one machine.
    pub fn machine_logs(&self, member: Member) -> PathBuf {
        self.logs().join(member.to_string())
    }
}

/// Refuse a folder that machines of the lab could not see, since they see something else in its place.
///
/// # Errors
/// If `path` lies below one of [`MASKED`].
pub fn refuse_masked(what: &str, path: &Path) -> Result<()> {
    for masked in MASKED {
        if path.starts_with(masked) {
            bail!(
                "{what} {} lies below {masked}, which the lab's nodes see empty; choose another place \
                 (STEELYARD_LAB_HOME for state, XDG_CACHE_HOME for programs)",
                path.display()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_read_alike() {
        assert_eq!(Member::Node(1).ipv4().to_string(), "192.0.2.11");
        assert_eq!(Member::Node(1).ipv6().to_string(), "2001:db8:1::11");
        assert_eq!(Member::Node(12).ipv6().to_string(), "2001:db8:1::22");
        assert_eq!(Member::Client.ipv6().to_string(), "2001:db8:1::200");
        assert_eq!(Member::Remote.ipv6().to_string(), "2001:db8:2::200");
        assert_eq!(Member::Control.mac(), "02:00:c0:00:02:0a");
        assert_eq!(pods_v6(12).to_string(), "fd00:10:244:12::/64");
        assert_eq!(pods_v4(3).to_string(), "10.244.3.0/24");
    }

    #[test]
    fn no_two_members_share_an_address() {
        let members = Member::all(MOST_NODES);
        let distinct: std::collections::BTreeSet<_> = members.iter().map(|m| m.ipv4()).collect();
        assert_eq!(distinct.len(), members.len());
        let distinct: std::collections::BTreeSet<_> = members.iter().map(|m| m.ipv6()).collect();
        assert_eq!(distinct.len(), members.len());
    }

    #[test]
    fn member_names_round_trip() {
        for member in Member::all(12) {
            assert_eq!(member.to_string().parse::<Member>().unwrap(), member);
        }
        for wrong in ["node", "node0", "node01", "node999", "fabric", ""] {
            assert!(wrong.parse::<Member>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_lab_owns_its_own_namespaces_only() {
        let lab = Layout::new("a".parse().unwrap(), Path::new("/home/x")).unwrap();
        assert!(lab.owns_netns("steelyard-a-node3"));
        assert!(lab.owns_netns("steelyard-a-fabric"));
        assert!(!lab.owns_netns("steelyard-a-node1-fabric"));
        assert!(!lab.owns_netns("steelyard-ab-fabric"));
        assert!(!lab.owns_netns("steelyard-a"));
    }

    #[test]
    fn state_folders_that_nodes_cannot_see_are_refused() {
        for masked in ["/tmp", "/run/x", "/var/lib/lab"] {
            assert!(Layout::new("a".parse().unwrap(), Path::new(masked)).is_err(), "{masked}");
        }
        assert!(Layout::new("a".parse().unwrap(), Path::new("/var/lab")).is_ok());
    }

    #[test]
    fn lab_names_are_dns_labels() {
        assert!("lab-2".parse::<LabName>().is_ok());
        for wrong in ["", "-a", "A", "a/b", "a_b", "a-name-that-is-much-too-long"] {
            assert!(wrong.parse::<LabName>().is_err(), "{wrong}");
        }
    }
}
