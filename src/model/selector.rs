//! Label selectors, checked once and then matched without error.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ParseExpressionError, Selector as KubeSelector, SelectorExt};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A label selector that is known to be well-formed. An empty one matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(KubeSelector);

impl Selector {
    /// Whether these labels satisfy every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.matches(labels)
    }
}

impl TryFrom<LabelSelector> for Selector {
    type Error = ParseExpressionError;

    fn try_from(selector: LabelSelector) -> Result<Self, ParseExpressionError> {
        KubeSelector::try_from(selector).map(Self)
    }
}
