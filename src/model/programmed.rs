//! What the datapath has in this node's kernel, as the speaker must know it before it attracts traffic.

use std::array;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// For which load-balancer addresses the kernel of this node forwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Programmed {
    /// The datapath has not finished its first turn: this node is not ready to be given addresses.
    #[default]
    Starting,
    /// Somebody else forwards (`datapath.mode: off`), and is trusted to.
    All,
    /// These, and no others.
    These(AddressSet),
}

/// Addresses. A copy that was changed shares with the original all that was not, and two such are soon compared: there
/// may be tens of thousands of them, of which one comes or goes at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSet(Arc<[Arc<BTreeSet<IpAddr>>; SHARDS]>);

const SHARDS: usize = 256;

impl Default for AddressSet {
    fn default() -> Self {
        let empty = Arc::default();
        Self(Arc::new(array::from_fn(|_| Arc::clone(&empty))))
    }
}

impl FromIterator<IpAddr> for AddressSet {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        let mut set = Self::default();
        for address in addresses {
            set.insert(address);
        }
        set
    }
}

impl AddressSet {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.get(shard_of(address)).is_some_and(|shard| shard.contains(&address))
    }

    /// Takes an address in.
    pub fn insert(&mut self, address: IpAddr) {
        if let Some(shard) = Arc::make_mut(&mut self.0).get_mut(shard_of(address)) {
            Arc::make_mut(shard).insert(address);
        }
    }

    /// Puts an address out.
    pub fn remove(&mut self, address: IpAddr) {
        if let Some(shard) = Arc::make_mut(&mut self.0).get_mut(shard_of(address)) {
            Arc::make_mut(shard).remove(&address);
        }
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.iter().flat_map(|shard| shard.iter().copied())
    }
}

/// Neighbours are far from each other.
fn shard_of(address: IpAddr) -> usize {
    let last = match address {
        IpAddr::V4(address) => address.to_bits() % 256,
        IpAddr::V6(address) => u32::from(address.octets()[15]),
    };
    usize::try_from(last).unwrap_or_default()
}

impl Programmed {
    /// Whether packets to the address are forwarded here.
    pub fn has(&self, address: IpAddr) -> bool {
        match self {
            Self::Starting => false,
            Self::All => true,
            Self::These(addresses) => addresses.contains(address),
        }
    }

    /// Whether there is an answer at all.
    pub fn is_settled(&self) -> bool {
        match self {
            Self::Starting => false,
            Self::All | Self::These(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> AddressSet {
        texts.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect()
    }

    #[test]
    fn a_set_is_what_is_in_it_whatever_its_history() {
        let mut changed = set(&["192.0.2.1", "2001:db8::1"]);
        let before = changed.clone();
        changed.insert("192.0.2.2".parse().unwrap());
        assert_ne!(changed, before);
        assert!(changed.contains("192.0.2.2".parse().unwrap()) && !before.contains("192.0.2.2".parse().unwrap()));
        changed.remove("192.0.2.2".parse().unwrap());
        assert_eq!(changed, before);
        assert_eq!(changed, set(&["2001:db8::1", "192.0.2.1"]));
        assert_eq!(changed.iter().count(), 2);
        assert_eq!(set(&[]), AddressSet::default());
    }
}
