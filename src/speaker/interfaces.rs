//! On which interfaces of this node an address is announced. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::model::Family;
use crate::model::advertisement::Glob;
use crate::model::link::{InterfaceIndex, Link, Links, Mac, Unusable};
use crate::names::InterfaceName;

/// An interface that can announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usable {
    /// Its name.
    pub name: InterfaceName,
    /// Its Ethernet address, which answers carry.
    pub mac: Mac,
}

/// Why no interface can announce.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoInterface {
    /// None has a name that the advertisements admit; or, where they name none, the address is in no interface's subnet
    /// and there is no default route.
    NoneMatches,
    /// Those that match cannot announce; the first of them and why.
    Unusable {
        /// The interface.
        name: InterfaceName,
        /// Its defect.
        why: Unusable,
    },
}

impl fmt::Display for NoInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoneMatches => f.write_str("no interface matches"),
            Self::Unusable { name, why } => write!(f, "interface {name} {why}"),
        }
    }
}

/// Chooses by the interface lists of the advertisements that apply here. One with an empty list adds the default: the
/// interfaces whose subnet holds the address, or else those of the default route.
///
/// An interface that matches and is down is not replaced by another one: where clients ask is decided by the network.
///
/// # Errors
/// When none can announce.
pub fn choose<'a>(
    links: &Links,
    address: IpAddr,
    lists: impl Iterator<Item = &'a [Glob]> + Clone,
) -> Result<BTreeMap<InterfaceIndex, Usable>, NoInterface> {
    let by_default = lists.clone().any(<[Glob]>::is_empty);
    let has_subnet = links.iter().any(|link| link.subnet_holds(address));
    let matches = |link: &&Link| {
        let is_named = lists.clone().flatten().any(|glob| glob.matches(&link.name));
        let is_default = || match has_subnet {
            true => link.subnet_holds(address),
            false => links.has_default_route(Family::of(address), link.index),
        };
        is_named || (by_default && is_default())
    };
    let mut usable = BTreeMap::new();
    let mut first_defect = None;
    for link in links.iter().filter(matches) {
        match (link.unusable(), link.mac) {
            (None, Some(mac)) => {
                usable.insert(link.index, Usable { name: link.name.clone(), mac });
            }
            (why, _) => {
                let why = why.unwrap_or(Unusable::NotEthernet);
                first_defect.get_or_insert(NoInterface::Unusable { name: link.name.clone(), why });
            }
        }
    }
    if usable.is_empty() { Err(first_defect.unwrap_or(NoInterface::NoneMatches)) } else { Ok(usable) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(number: u32, name: &str, addresses: &[&str]) -> Link {
        Link {
            index: InterfaceIndex::new(number),
            name: name.into(),
            mac: Some(Mac::new([2, 0, 0, 0, 0, u8::try_from(number).unwrap()])),
            is_up: true,
            has_carrier: true,
            is_loopback: false,
            resolves_neighbours: true,
            master: None,
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    fn links() -> Links {
        let links = [
            Link { is_loopback: true, mac: None, ..link(1, "lo", &["127.0.0.1/8"]) },
            link(2, "eth0", &["192.0.2.11/24", "2001:db8::11/64"]),
            link(3, "eth1", &["198.51.100.11/24"]),
            Link { master: Some(InterfaceIndex::new(9)), ..link(4, "cali1", &[]) },
        ];
        Links {
            by_index: links.into_iter().map(|link| (link.index, link)).collect(),
            default_routes: [(Family::V4, InterfaceIndex::new(3)), (Family::V6, InterfaceIndex::new(2))].into(),
        }
    }

    /// The names chosen, for lists of globs written as `a b|c`.
    fn chosen(links: &Links, address: &str, lists: &str) -> Result<Vec<String>, NoInterface> {
        let lists: Vec<Vec<Glob>> =
            lists.split('|').map(|list| list.split_whitespace().map(Glob::new).collect()).collect();
        let chosen = choose(links, address.parse().unwrap(), lists.iter().map(Vec::as_slice))?;
        Ok(chosen.into_values().map(|usable| usable.name.to_string()).collect())
    }

    #[test]
    fn the_default_is_the_subnet_and_else_the_default_route() {
        let links = links();
        for (address, expected) in
            [("192.0.2.200", "eth0"), ("198.51.100.7", "eth1"), ("203.0.113.1", "eth1"), ("2001:db8:9::1", "eth0")]
        {
            assert_eq!(chosen(&links, address, ""), Ok(vec![expected.to_owned()]), "{address}");
        }
    }

    #[test]
    fn names_and_globs_replace_the_default_and_an_empty_list_adds_it() {
        let links = links();
        assert_eq!(chosen(&links, "192.0.2.200", "eth1"), Ok(vec!["eth1".into()]));
        assert_eq!(chosen(&links, "192.0.2.200", "eth*"), Ok(vec!["eth0".into(), "eth1".into()]));
        assert_eq!(chosen(&links, "192.0.2.200", "eth1|"), Ok(vec!["eth0".into(), "eth1".into()]));
        assert_eq!(chosen(&links, "192.0.2.200", "bond*"), Err(NoInterface::NoneMatches));
    }

    #[test]
    fn an_interface_that_cannot_announce_is_named_and_not_replaced() {
        let mut links = links();
        let eth0 = links.by_index.get_mut(&InterfaceIndex::new(2)).unwrap();
        eth0.has_carrier = false;
        let defect = |name: &str, why| Err(NoInterface::Unusable { name: name.into(), why });
        assert_eq!(chosen(&links, "192.0.2.200", ""), defect("eth0", Unusable::NoCarrier));
        assert_eq!(chosen(&links, "192.0.2.200", "cali*"), defect("cali1", Unusable::Enslaved));
        assert_eq!(chosen(&links, "127.0.0.5", ""), defect("lo", Unusable::NotEthernet));
        assert_eq!(chosen(&links, "192.0.2.200", "eth*"), Ok(vec!["eth1".into()]));
    }

    #[test]
    fn without_subnet_and_default_route_nothing_matches() {
        let links = Links { default_routes: Default::default(), ..links() };
        assert_eq!(chosen(&links, "203.0.113.1", ""), Err(NoInterface::NoneMatches));
    }
}
