//! An `L2Advertisement` whose selectors and globs have been checked.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use thiserror::Error;

use super::selector::{Labels, Selector};
use crate::api::l2_advertisement::L2Advertisement as Object;
use crate::names::{AdvertisementName, InterfaceName, PoolName};

/// Why an advertisement cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AdvertisementError {
    /// Without a name there is no key.
    #[error("advertisement has no name")]
    Unnamed,
    /// A label selector is malformed.
    #[error("{field}: {message}")]
    Selector {
        /// The field's path.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

/// An advertisement. Empty lists admit everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Advertisement {
    /// The name.
    pub name: AdvertisementName,
    pools: BTreeSet<PoolName>,
    pool_selectors: Vec<Selector>,
    node_selectors: Vec<Selector>,
    service_selectors: Vec<Selector>,
    preferred: Vec<(i64, Selector)>,
    /// On which interfaces; empty leaves the choice to the address's subnet.
    pub interfaces: Vec<Glob>,
}

impl L2Advertisement {
    /// Whether addresses of this pool are announced. A pool that is unknown has no labels, but its name counts.
    pub fn selects_pool(&self, pool: &PoolName, labels: &Labels) -> bool {
        (self.pools.is_empty() && self.pool_selectors.is_empty())
            || self.pools.contains(pool)
            || self.pool_selectors.iter().any(|selector| selector.matches(labels))
    }

    /// Whether nodes with these labels announce.
    pub fn selects_node(&self, labels: &Labels) -> bool {
        any_or_empty(&self.node_selectors, labels)
    }

    /// Whether addresses of Services with these labels are announced.
    pub fn selects_service(&self, labels: &Labels) -> bool {
        any_or_empty(&self.service_selectors, labels)
    }

    /// How much nodes with these labels are preferred: the sum of all weights that apply.
    pub fn preference(&self, labels: &Labels) -> i64 {
        self.preferred.iter().filter(|(_, selector)| selector.matches(labels)).map(|(weight, _)| weight).sum()
    }
}

fn any_or_empty(selectors: &[Selector], labels: &Labels) -> bool {
    selectors.is_empty() || selectors.iter().any(|selector| selector.matches(labels))
}

impl TryFrom<&Object> for L2Advertisement {
    type Error = AdvertisementError;

    fn try_from(object: &Object) -> Result<Self, AdvertisementError> {
        let spec = &object.spec;
        let preferred = spec.preferred_node_selectors.iter().map(|preferred| {
            let selector = selector("spec.preferredNodeSelectors", &preferred.preference)?;
            Ok((i64::from(preferred.weight), selector))
        });
        Ok(Self {
            name: AdvertisementName::new(object.metadata.name.as_deref().ok_or(AdvertisementError::Unnamed)?),
            pools: spec.ip_address_pools.iter().map(|name| PoolName::new(name.as_str())).collect(),
            pool_selectors: selectors("spec.ipAddressPoolSelectors", &spec.ip_address_pool_selectors)?,
            node_selectors: selectors("spec.nodeSelectors", &spec.node_selectors)?,
            service_selectors: selectors("spec.serviceSelectors", &spec.service_selectors)?,
            preferred: preferred.collect::<Result<_, _>>()?,
            interfaces: spec.interfaces.iter().map(|text| Glob::new(text.as_str())).collect(),
        })
    }
}

fn selectors(field: &'static str, list: &[LabelSelector]) -> Result<Vec<Selector>, AdvertisementError> {
    list.iter().map(|one| selector(field, one)).collect()
}

fn selector(field: &'static str, one: &LabelSelector) -> Result<Selector, AdvertisementError> {
    Selector::try_from(one.clone()).map_err(|error| AdvertisementError::Selector { field, message: error.to_string() })
}

/// A name in which `*` stands for any text and `?` for any one character.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glob(Box<str>);

impl Glob {
    /// Takes the pattern; every text is one.
    pub fn new(pattern: impl Into<Box<str>>) -> Self {
        Self(pattern.into())
    }

    /// Whether the whole name matches.
    pub fn matches(&self, name: &InterfaceName) -> bool {
        let mut pattern = self.0.chars();
        let mut rest = name.as_str().chars();
        // After a failure the last `*` takes one character more; earlier ones never need to.
        let mut retry = None;
        loop {
            match (pattern.next(), rest.clone().next()) {
                (None, None) => return true,
                (Some('*'), _) => retry = Some((pattern.clone(), rest.clone())),
                (Some('?'), Some(_)) => {
                    rest.next();
                }
                (Some(wanted), Some(found)) if wanted == found => {
                    rest.next();
                }
                (Some(_) | None, _) => {
                    let Some((after_star, mut from)) = retry.take() else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    pattern = after_star.clone();
                    rest = from.clone();
                    retry = Some((after_star, from));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spec: &str) -> Result<L2Advertisement, AdvertisementError> {
        let head = "apiVersion: steelyard.dev/v1alpha1\nkind: L2Advertisement\nmetadata: {name: lan}\n";
        L2Advertisement::try_from(&serde_saphyr::from_str::<Object>(&format!("{head}spec: {spec}")).unwrap())
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn an_empty_one_admits_everything() {
        let all = read("{}").unwrap();
        assert!(all.selects_pool(&"any".into(), &Labels::new()));
        assert!(all.selects_node(&Labels::new()) && all.selects_service(&Labels::new()));
        assert_eq!(all.preference(&Labels::new()), 0);
    }

    #[test]
    fn a_pool_is_named_or_selected() {
        let both = read("{ipAddressPools: [a], ipAddressPoolSelectors: [{matchLabels: {tier: gold}}]}").unwrap();
        assert!(both.selects_pool(&"a".into(), &Labels::new()));
        assert!(both.selects_pool(&"b".into(), &labels(&[("tier", "gold")])));
        assert!(!both.selects_pool(&"b".into(), &labels(&[("tier", "tin")])));
        let by_label = read("{ipAddressPoolSelectors: [{matchLabels: {tier: gold}}]}").unwrap();
        assert!(!by_label.selects_pool(&"a".into(), &Labels::new()));
    }

    #[test]
    fn weights_of_all_matching_preferences_add_up() {
        let read = read(
            "{nodeSelectors: [{matchLabels: {rack: a}}, {matchLabels: {rack: b}}], preferredNodeSelectors: \
             [{weight: 10, preference: {matchLabels: {rack: a}}}, {weight: 5, preference: {}}]}",
        )
        .unwrap();
        assert_eq!(read.preference(&labels(&[("rack", "a")])), 15);
        assert_eq!(read.preference(&labels(&[("rack", "b")])), 5);
        assert!(read.selects_node(&labels(&[("rack", "b")])) && !read.selects_node(&labels(&[("rack", "c")])));
    }

    #[test]
    fn a_malformed_selector_is_named() {
        let error = read("{nodeSelectors: [{matchExpressions: [{key: a, operator: Near}]}]}").unwrap_err();
        assert!(matches!(error, AdvertisementError::Selector { field: "spec.nodeSelectors", .. }), "{error}");
    }

    #[test]
    fn globs_match_whole_names() {
        for (pattern, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("eth*", "eth12", true),
            ("*", "", true),
            ("*0", "bond10", true),
            ("*0", "bond01", false),
            ("e*t?", "enot1", true),
            ("e*t?", "enot", false),
            ("*.1*", "bond0.100", true),
            ("b?nd0", "bnd0", false),
            ("", "eth0", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(&name.into()), expected, "{pattern} on {name}");
        }
    }
}
