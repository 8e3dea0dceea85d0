//! Which addresses of load balancers and externalIPs the kernel has, as far as the transactions go that it took: kept up
//! element by element, since nobody may walk tens of thousands of them at each change. Cluster IPs do not count: nobody
//! announces one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::datapath::nft::elements::{Element, SharedKey};
use crate::datapath::plan::{Found, Transaction};
use crate::model::Family;
use crate::model::flat::pack;
use crate::model::programmed::AddressSet;

/// The addresses, and how many ports of each are in the kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Programmed {
    ports: BTreeMap<IpAddr, usize>,
    addresses: AddressSet,
}

impl Programmed {
    /// Takes in a transaction that the kernel took.
    pub(super) fn follow(&mut self, transaction: &Transaction) {
        for table in &transaction.tables {
            if table.is_new {
                self.forget(table.family);
            }
            table.deleted.iter().for_each(|element| self.remove(element));
            table.added.iter().for_each(|element| self.insert(element));
        }
    }

    /// Takes in what the kernel was found to have of a family.
    pub(super) fn observe(&mut self, family: Family, found: Option<&Found>) {
        self.forget(family);
        found.into_iter().flat_map(|found| &found.elements).for_each(|element| self.insert(element));
    }

    fn forget(&mut self, family: Family) {
        self.ports.retain(|address, _| Family::of(*address) != family);
        self.addresses = self.addresses.iter().filter(|address| Family::of(*address) != family).collect();
    }

    fn insert(&mut self, element: &Element) {
        let Some(address) = external(element) else { return };
        *self.ports.entry(address).or_default() += 1;
        self.addresses.insert(address);
    }

    fn remove(&mut self, element: &Element) {
        let Some(address) = external(element) else { return };
        let Some(ports) = self.ports.get_mut(&address) else { return };
        *ports -= 1;
        if *ports == 0 {
            self.ports.remove(&address);
            self.addresses.remove(address);
        }
    }

    pub(super) fn pack(&mut self) {
        pack(&mut self.ports);
    }

    pub(super) const fn addresses(&self) -> &AddressSet {
        &self.addresses
    }
}

/// The address, if it is an element of one that is not a cluster IP.
fn external(element: &Element) -> Option<IpAddr> {
    let Some(SharedKey::Frontend(address, _)) = element.shared_key() else { return None };
    element.frontend_value().filter(|value| !value.is_internal()).map(|_| address.ip())
}
