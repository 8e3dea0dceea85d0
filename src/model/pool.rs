//! A pool whose spec has been checked: which addresses it has, and for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use thiserror::Error;

use super::Family;
use super::range::{AddressRange, AddressSet, NumberSet, RangeError, number};
use super::selector::{Labels, Selector};
use crate::api::address_pool::{IPAddressPool, IPAddressPoolSpec};
use crate::names::{PoolName, ServiceKey};

/// Why a pool's spec cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// Without addresses there is nothing to assign.
    #[error("spec.addresses is empty")]
    Empty,
    /// An entry is no range of addresses.
    #[error("{field}: {source}")]
    Range {
        /// The field's path.
        field: &'static str,
        /// What is wrong with the entry.
        source: RangeError,
    },
    /// A label selector is malformed.
    #[error("{field}: {message}")]
    Selector {
        /// The field's path.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

/// Why a pool does not admit a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// By the namespace.
    Namespace,
    /// By the Service's labels.
    Labels,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The name.
    pub name: PoolName,
    /// Every address that the spec names, excluded ones too: what other pools must keep away from.
    pub addresses: AddressSet,
    /// Addresses that any Service may get that the pool admits: not excluded and not reserved. With
    /// [`Pool::avoids_buggy`], those that end in .0 and .255 are still in it, since they would break a /8 into 65,536
    /// pieces; [`Pool::next_free`] steps over them.
    unreserved: AddressSet,
    /// Addresses kept for one Service each, excluded ones left out.
    reserved: BTreeMap<ServiceKey, AddressSet>,
    /// What may be held at all: addresses without the excluded ones.
    assignable: AddressSet,
    /// `avoidBuggyIPs`.
    pub avoids_buggy: bool,
    /// `autoAssign`.
    pub auto_assign: bool,
    /// `cooldown`.
    pub cooldown: Duration,
    /// `quota.perNamespace`.
    pub quota: Option<u64>,
    /// `serviceAllocation`, if given.
    pub allocation: Option<Allocation>,
}

/// `serviceAllocation`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The lower is asked first; absent is asked last.
    pub priority: Option<u32>,
    /// Namespaces by name.
    pub namespaces: BTreeSet<String>,
    /// Namespaces by label.
    pub namespace_selectors: Vec<Selector>,
    /// Services by label.
    pub service_selectors: Vec<Selector>,
}

impl Pool {
    /// Checks a spec.
    ///
    /// # Errors
    /// When the spec cannot be used; the first fault is named.
    pub fn new(name: PoolName, spec: &IPAddressPoolSpec) -> Result<Self, PoolError> {
        if spec.addresses.is_empty() {
            return Err(PoolError::Empty);
        }
        let addresses = ranges("spec.addresses", spec.addresses.iter().map(|range| range.0.as_str()))?;
        let excluded = ranges("spec.exclude", spec.exclude.iter().map(|range| range.0.as_str()))?;
        let assignable = addresses.without(&excluded);
        let outside = addresses.without(&assignable);
        let mut kept: BTreeMap<ServiceKey, Vec<AddressRange>> = BTreeMap::new();
        for reservation in &spec.reservations {
            let service = ServiceKey::new(reservation.namespace.as_str(), reservation.name.as_str());
            let single = reservation.address.iter().map(|address| address.0.as_str());
            let several = reservation.addresses.iter().flatten().map(|range| range.0.as_str());
            for text in single.chain(several) {
                kept.entry(service.clone()).or_default().push(range("spec.reservations", text)?);
            }
        }
        let all_kept = AddressSet::new(kept.values().flatten().copied());
        Ok(Self {
            name,
            unreserved: assignable.without(&all_kept),
            reserved: kept
                .into_iter()
                .map(|(service, ranges)| (service, AddressSet::new(ranges).without(&outside)))
                .collect(),
            assignable,
            addresses,
            avoids_buggy: spec.avoid_buggy_ips,
            auto_assign: spec.auto_assign,
            cooldown: spec.cooldown.into(),
            quota: spec.quota.as_ref().and_then(|quota| u64::try_from(quota.per_namespace).ok()),
            allocation: spec
                .service_allocation
                .as_ref()
                .map(|allocation| {
                    Ok(Allocation {
                        priority: u32::try_from(allocation.priority).ok().filter(|priority| *priority > 0),
                        namespaces: allocation.namespaces.iter().cloned().collect(),
                        namespace_selectors: selectors(
                            "spec.serviceAllocation.namespaceSelectors",
                            &allocation.namespace_selectors,
                        )?,
                        service_selectors: selectors(
                            "spec.serviceAllocation.serviceSelectors",
                            &allocation.service_selectors,
                        )?,
                    })
                })
                .transpose()?,
        })
    }

    /// The pool as the controller has accepted it: what nodes may announce.
    ///
    /// # Errors
    /// When the accepted spec cannot be used, which only a foreign hand can bring about.
    pub fn accepted(object: &IPAddressPool) -> Option<Result<Self, PoolError>> {
        let name = object.metadata.name.as_deref()?;
        let spec = object.status.as_ref()?.accepted.as_ref()?;
        Some(Self::new(PoolName::new(name), spec))
    }

    /// Whether the pool hands out an address at all.
    pub fn assigns(&self, address: IpAddr) -> bool {
        self.assignable.contains(address) && !(self.avoids_buggy && is_buggy(address))
    }

    /// The Service that an address is kept for.
    pub fn reserved_for(&self, address: IpAddr) -> Option<&ServiceKey> {
        self.reserved.iter().find(|(_, set)| set.contains(address)).map(|(service, _)| service)
    }

    /// Whether a Service of a namespace with these labels may get addresses from here. A list of selectors that matches
    /// nothing admits nobody; it does not fall open.
    ///
    /// # Errors
    /// When it may not: by which rule.
    pub fn admits(
        &self,
        namespace: &str,
        namespace_labels: &Labels,
        service_labels: &Labels,
    ) -> Result<(), NotAdmitted> {
        let Some(allocation) = &self.allocation else { return Ok(()) };
        let names_namespaces = !allocation.namespaces.is_empty() || !allocation.namespace_selectors.is_empty();
        let admits_namespace = allocation.namespaces.contains(namespace)
            || allocation.namespace_selectors.iter().any(|selector| selector.matches(namespace_labels));
        if names_namespaces && !admits_namespace {
            return Err(NotAdmitted::Namespace);
        }
        let selectors = &allocation.service_selectors;
        if !selectors.is_empty() && !selectors.iter().any(|selector| selector.matches(service_labels)) {
            return Err(NotAdmitted::Labels);
        }
        Ok(())
    }

    /// The place of the pool among those that admit a Service: pools made for particular Services first, by priority,
    /// then by name.
    pub fn rank(&self) -> (bool, u32, &PoolName) {
        let priority = self.allocation.as_ref().and_then(|allocation| allocation.priority);
        (self.allocation.is_none(), priority.unwrap_or(u32::MAX), &self.name)
    }

    /// The lowest address of a family, from `start` on, that everybody may get and of which `is_used` says no. The cost
    /// is one question per used address, however large the pool.
    pub fn next_free(&self, family: Family, start: u128, is_used: impl Fn(u128) -> bool) -> Option<u128> {
        self.lowest(self.unreserved.of(family), family, start, is_used)
    }

    /// The lowest address of a family that is kept for this Service and of which `is_used` says no.
    pub fn next_reserved(&self, service: &ServiceKey, family: Family, is_used: impl Fn(u128) -> bool) -> Option<u128> {
        self.lowest(self.reserved.get(service)?.of(family), family, 0, is_used)
    }

    fn lowest(&self, set: &NumberSet, family: Family, start: u128, is_used: impl Fn(u128) -> bool) -> Option<u128> {
        let mut candidate = set.at_or_after(start)?;
        loop {
            let is_buggy = self.avoids_buggy && is_buggy_number(family, candidate);
            if !is_buggy && !is_used(candidate) {
                return Some(candidate);
            }
            candidate = set.at_or_after(candidate.checked_add(1)?)?;
        }
    }

    /// How many addresses of a family everybody may get, before any is used.
    pub fn size(&self, family: Family) -> u128 {
        let set = self.unreserved.of(family);
        let buggy = if self.avoids_buggy && family == Family::V4 {
            set.ranges().map(|(first, last)| buggy_up_to(last) - first.checked_sub(1).map_or(0, buggy_up_to)).sum()
        } else {
            0
        };
        set.count() - buggy
    }

    /// Whether everybody may get this address: it counts in [`Pool::size`].
    pub fn is_unreserved(&self, address: IpAddr) -> bool {
        self.unreserved.contains(address) && !(self.avoids_buggy && is_buggy(address))
    }
}

/// Whether an IPv4 address ends in .0 or .255.
fn is_buggy(address: IpAddr) -> bool {
    is_buggy_number(Family::of(address), number(address))
}

fn is_buggy_number(family: Family, number: u128) -> bool {
    family == Family::V4 && matches!(number % 256, 0 | 255)
}

/// How many IPv4 addresses from 0.0.0.0 to this one end in .0 or .255.
fn buggy_up_to(number: u128) -> u128 {
    number / 256 * 2 + 1 + u128::from(number % 256 == 255)
}

fn range(field: &'static str, text: &str) -> Result<AddressRange, PoolError> {
    AddressRange::parse(text).map_err(|source| PoolError::Range { field, source })
}

fn ranges<'a>(field: &'static str, texts: impl Iterator<Item = &'a str>) -> Result<AddressSet, PoolError> {
    texts.map(|text| range(field, text)).collect::<Result<Vec<_>, _>>().map(AddressSet::new)
}

fn selectors(field: &'static str, selectors: &[LabelSelector]) -> Result<Vec<Selector>, PoolError> {
    let checked = selectors.iter().map(|selector| Selector::try_from(selector.clone()));
    checked.collect::<Result<_, _>>().map_err(|error| PoolError::Selector { field, message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(spec: &str) -> Pool {
        Pool::new("test".into(), &serde_saphyr::from_str(spec).unwrap()).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn sizes_are_those_of_metallb() {
        for (spec, v4, v6) in [
            ("addresses: [1.2.3.0/24]", 256, 0),
            ("addresses: [1.2.3.0/24, 2.3.4.128/25]", 384, 0),
            ("{addresses: [1.2.3.0/24, 2.3.4.128/25], avoidBuggyIPs: true}", 381, 0),
            ("{addresses: [1.2.3.0/24, 2.3.4.128/25, '1000::/64'], avoidBuggyIPs: true}", 381, 1 << 64),
            ("{addresses: [1.2.3.0/31, '1000::/127'], avoidBuggyIPs: true}", 1, 2),
            ("{addresses: [10.0.0.0/8], avoidBuggyIPs: true}", (1 << 24) - (1 << 17), 0),
            ("{addresses: [0.0.0.0/0], avoidBuggyIPs: true}", (1 << 32) - (1 << 25), 0),
            ("{addresses: [1.2.3.0/24], exclude: [1.2.3.0/25, 9.9.9.9]}", 128, 0),
        ] {
            assert_eq!((pool(spec).size(Family::V4), pool(spec).size(Family::V6)), (v4, v6), "{spec}");
        }
    }

    #[test]
    fn excluded_and_buggy_addresses_are_stepped_over() {
        let pool = pool("{addresses: [1.2.3.254-1.2.4.3], avoidBuggyIPs: true, exclude: [1.2.4.1]}");
        let mut found = Vec::new();
        let mut start = 0;
        while let Some(next) = pool.next_free(Family::V4, start, |_| false) {
            found.push(super::super::range::address(Family::V4, next).unwrap());
            start = next + 1;
        }
        assert_eq!(found, [ip("1.2.3.254"), ip("1.2.4.2"), ip("1.2.4.3")]);
        assert!(!pool.assigns(ip("1.2.4.0")) && !pool.assigns(ip("1.2.4.1")) && pool.assigns(ip("1.2.4.2")));
    }

    #[test]
    fn reserved_addresses_are_for_their_service_alone() {
        let pool = pool(
            "{addresses: [1.2.3.0/29], exclude: [1.2.3.1], reservations: \
             [{address: 1.2.3.0, namespace: a, name: b}, {addresses: [1.2.3.1-1.2.3.2], namespace: a, name: c}]}",
        );
        let free = |_| false;
        assert_eq!(pool.next_free(Family::V4, 0, free), Some(number(ip("1.2.3.3"))));
        assert_eq!(pool.next_reserved(&ServiceKey::new("a", "b"), Family::V4, free), Some(number(ip("1.2.3.0"))));
        assert_eq!(pool.next_reserved(&ServiceKey::new("a", "c"), Family::V4, free), Some(number(ip("1.2.3.2"))));
        assert_eq!(pool.reserved_for(ip("1.2.3.0")), Some(&ServiceKey::new("a", "b")));
        assert_eq!(pool.size(Family::V4), 5);
    }

    #[test]
    fn a_selector_that_matches_nothing_admits_nobody() {
        let labels = |text: &str| serde_saphyr::from_str::<Labels>(text).unwrap();
        let none = labels("{}");
        let open = pool("{addresses: [1.2.3.0/24], serviceAllocation: {priority: 5}}");
        assert_eq!(open.admits("any", &none, &none), Ok(()));
        let by_namespace = pool(
            "{addresses: [1.2.3.0/24], serviceAllocation: {namespaces: [a], namespaceSelectors: [{matchLabels: {x: y}}]}}",
        );
        assert_eq!(by_namespace.admits("a", &none, &none), Ok(()));
        assert_eq!(by_namespace.admits("b", &labels("{x: y}"), &none), Ok(()));
        assert_eq!(by_namespace.admits("b", &none, &none), Err(NotAdmitted::Namespace));
        let both = pool(
            "{addresses: [1.2.3.0/24], serviceAllocation: {namespaces: [a], serviceSelectors: [{matchLabels: {t: m}}]}}",
        );
        assert_eq!(both.admits("a", &none, &labels("{t: m}")), Ok(()));
        assert_eq!(both.admits("a", &none, &labels("{t: n}")), Err(NotAdmitted::Labels));
        assert_eq!(both.admits("b", &none, &labels("{t: m}")), Err(NotAdmitted::Namespace));
    }

    #[test]
    fn faults_name_their_field() {
        let check = |spec: &str| Pool::new("test".into(), &serde_saphyr::from_str(spec).unwrap()).unwrap_err();
        assert_eq!(check("addresses: []"), PoolError::Empty);
        assert_eq!(
            check("addresses: [1.2.3.9-1.2.3.1]").to_string(),
            "spec.addresses: \"1.2.3.9-1.2.3.1\" ends before it begins"
        );
        assert!(
            check("{addresses: [1.2.3.0/24], exclude: [x]}").to_string().starts_with("spec.exclude: \"x\" is neither")
        );
    }
}
