//! The node's interfaces as announcing needs them. Pure: `netlink/links.rs` reads them from the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::Family;
use crate::names::InterfaceName;

/// The kernel's number of an interface; a new interface of an old name has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceIndex(u32);

impl InterfaceIndex {
    /// Takes the kernel's number.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The kernel's number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for InterfaceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Everybody on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// Nobody; the target of an ARP request.
    pub const ZERO: Self = Self([0; 6]);
    /// All IPv6 nodes of the link: `ff02::1` as RFC 2464 §7 maps it.
    pub const ALL_NODES: Self = Self([0x33, 0x33, 0, 0, 0, 1]);

    /// Takes the six octets.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The six octets.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether it names a group, as broadcast does.
    pub const fn is_group(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 1
    }

    /// The group address on Ethernet of an IPv6 group (RFC 2464 §7).
    pub const fn of_group(group: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = group.octets();
        Self([0x33, 0x33, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number.
    pub index: InterfaceIndex,
    /// Its name; may change.
    pub name: InterfaceName,
    /// Its Ethernet address, if it is an Ethernet.
    pub mac: Option<Mac>,
    /// Set up by the administrator.
    pub is_up: bool,
    /// The other end of the wire is there.
    pub has_carrier: bool,
    /// Whether it is `lo`.
    pub is_loopback: bool,
    /// Whether neighbours are resolved on it: Ethernet, broadcast, and not `NOARP` as dummies and tunnels are.
    pub resolves_neighbours: bool,
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<InterfaceIndex>,
    /// Its addresses with their prefix lengths; those that failed or await duplicate address detection are left out.
    pub addresses: BTreeSet<IpNet>,
}

impl Link {
    /// Whether one of its subnets holds the address. A host prefix (`/32`, `/128`) is no subnet.
    pub fn subnet_holds(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.prefix_len() < net.max_prefix_len() && net.contains(&address))
    }

    /// Why nothing can be announced on it, if so.
    pub fn unusable(&self) -> Option<Unusable> {
        if self.is_loopback || !self.resolves_neighbours || self.mac.is_none() {
            Some(Unusable::NotEthernet)
        } else if self.master.is_some() {
            Some(Unusable::Enslaved)
        } else if !self.is_up {
            Some(Unusable::Down)
        } else if !self.has_carrier {
            Some(Unusable::NoCarrier)
        } else {
            None
        }
    }
}

/// Why an interface cannot announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unusable {
    /// Loopback, a tunnel, a dummy: nobody asks for neighbours there.
    NotEthernet,
    /// It belongs to a bridge or bond, which announces in its place.
    Enslaved,
    /// Not set up.
    Down,
    /// Set up, but the wire is dead.
    NoCarrier,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotEthernet => "is no Ethernet interface",
            Self::Enslaved => "belongs to another interface",
            Self::Down => "is down",
            Self::NoCarrier => "has no carrier",
        })
    }
}

/// All interfaces of the node, and where its default routes go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The interfaces.
    pub by_index: BTreeMap<InterfaceIndex, Link>,
    /// The interfaces of the default routes of each family in the main table.
    pub default_routes: BTreeSet<(Family, InterfaceIndex)>,
}

impl Links {
    /// Every interface.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.by_index.values()
    }

    /// Whether a default route of this family leaves by the interface.
    pub fn has_default_route(&self, family: Family, index: InterfaceIndex) -> bool {
        self.default_routes.contains(&(family, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            index: InterfaceIndex::new(2),
            name: "eth0".into(),
            mac: Some(Mac::new([2, 0, 0, 0, 0, 1])),
            is_up: true,
            has_carrier: true,
            is_loopback: false,
            resolves_neighbours: true,
            master: None,
            addresses: ["192.0.2.11/24", "198.51.100.1/32", "fe80::1/64"]
                .iter()
                .map(|net| net.parse().unwrap())
                .collect(),
        }
    }

    #[test]
    fn a_host_prefix_is_no_subnet() {
        assert!(link().subnet_holds("192.0.2.200".parse().unwrap()));
        assert!(!link().subnet_holds("198.51.100.1".parse().unwrap()));
        assert!(!link().subnet_holds("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn each_defect_has_its_reason() {
        assert_eq!(link().unusable(), None);
        assert_eq!(Link { has_carrier: false, ..link() }.unusable(), Some(Unusable::NoCarrier));
        assert_eq!(Link { is_up: false, has_carrier: false, ..link() }.unusable(), Some(Unusable::Down));
        assert_eq!(Link { master: Some(InterfaceIndex::new(9)), ..link() }.unusable(), Some(Unusable::Enslaved));
        assert_eq!(Link { mac: None, ..link() }.unusable(), Some(Unusable::NotEthernet));
        assert_eq!(Link { resolves_neighbours: false, ..link() }.unusable(), Some(Unusable::NotEthernet));
        assert_eq!(Link { is_loopback: true, ..link() }.unusable(), Some(Unusable::NotEthernet));
    }

    #[test]
    fn groups_map_to_ethernet() {
        assert_eq!(Mac::of_group("ff02::1:ff00:1234".parse().unwrap()).to_string(), "33:33:ff:00:12:34");
        assert_eq!(Mac::of_group("ff02::1".parse().unwrap()), Mac::ALL_NODES);
        assert!(Mac::ALL_NODES.is_group() && Mac::BROADCAST.is_group() && !Mac::new([2, 0, 0, 0, 0, 1]).is_group());
    }
}
