//! Which addresses the kernel has, as far as the transactions go that it took: kept up element by element, since nobody may
//! walk tens of thousands of them at each change.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::datapath::nft::elements::{Element, SharedKey};
use crate::datapath::plan::{Found, Transaction};
use crate::model::Family;
use crate::model::flat::pack;
use crate::model::programmed::AddressSet;

/// How many ports of each address are in the kernel, and of which addresses others than cluster IPs.
#[derive(Clone, Debug, Default)]
pub(super) struct Programmed {
    counts: BTreeMap<IpAddr, Ports>,
    external: AddressSet,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ports {
    all: usize,
    external: usize,
}

impl Programmed {
    /// Takes in a transaction that the kernel took.
    pub(super) fn follow(&mut self, transaction: &Transaction) {
        for table in &transaction.tables {
            if table.is_new {
                self.forget(table.family);
            }
            for element in &table.deleted {
                self.change(element, |count| count.saturating_sub(1));
            }
            for element in &table.added {
                self.change(element, |count| count + 1);
            }
        }
    }

    /// Takes in what the kernel was found to have of a family.
    pub(super) fn observe(&mut self, family: Family, found: Option<&Found>) {
        self.forget(family);
        for element in found.into_iter().flat_map(|found| &found.elements) {
            self.change(element, |count| count + 1);
        }
    }

    fn forget(&mut self, family: Family) {
        self.counts.retain(|address, _| Family::of(*address) != family);
        self.external = self.external.iter().filter(|address| Family::of(*address) != family).collect();
    }

    fn change(&mut self, element: &Element, change: fn(usize) -> usize) {
        let (Some(SharedKey::Frontend(address, _)), Some(value)) = (element.shared_key(), element.frontend_value())
        else {
            return;
        };
        let address = address.ip();
        let ports = self.counts.entry(address).or_default();
        let was_external = ports.external > 0;
        ports.all = change(ports.all);
        if !value.is_internal() {
            ports.external = change(ports.external);
        }
        match (was_external, ports.external > 0) {
            (false, true) => self.external.insert(address),
            (true, false) => self.external.remove(address),
            (false, false) | (true, true) => {}
        }
        if ports.all == 0 {
            self.counts.remove(&address);
        }
    }

    pub(super) fn pack(&mut self) {
        pack(&mut self.counts);
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.counts.contains_key(&address)
    }

    /// All of them, in order.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.counts.keys().copied()
    }

    /// Those that are not only cluster IPs.
    pub(super) const fn external(&self) -> &AddressSet {
        &self.external
    }
}
