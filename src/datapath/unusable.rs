//! What stands in a Service and nobody can use: an address that cannot be read, or of a family in which the Service has no
//! cluster IP, a source range that cannot be read. The rest of the Service is forwarded, and its condition says so.
//!
//! A turn costs what it changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::index::Index;
use super::service::ForwardedService;
use crate::model::Family;
use crate::model::problem::Problem;
use crate::names::ServiceKey;

const SOURCE_RANGES: &str = "spec.loadBalancerSourceRanges";
/// Some field is left out.
const FIELD_IGNORED: &str = "FieldIgnored";

/// The account of it.
#[derive(Debug, Default)]
pub(super) struct Unusable(BTreeMap<ServiceKey, BTreeSet<Problem>>);

impl Unusable {
    /// Looks at Services that changed, and tells whether there is anything new.
    pub(super) fn follow<'a>(&mut self, services: impl IntoIterator<Item = &'a ServiceKey>, index: &Index) -> bool {
        let mut is_changed = false;
        for key in services {
            let now = index.service(key).map(problems_of).unwrap_or_default();
            if self.0.get(key).unwrap_or(&BTreeSet::new()) == &now {
                continue;
            }
            is_changed = true;
            if now.is_empty() {
                self.0.remove(key);
            } else {
                self.0.insert(key.clone(), now);
            }
        }
        is_changed
    }

    /// Of all Services.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.0.values().flatten()
    }
}

fn problems_of(service: &ForwardedService) -> BTreeSet<Problem> {
    if !service.is_proxied {
        return BTreeSet::new();
    }
    let unread = service.ignored.iter().map(|ignored| {
        let note = if ignored.field == SOURCE_RANGES { "; it admits nobody" } else { "" };
        format!("{} has {:?}, which {} and is left out{note}", ignored.field, ignored.value, ignored.reason)
    });
    let ingress = service.virtual_addresses().map(|address| ("status.loadBalancer.ingress", address));
    let external = service.external_ips.iter().map(|address| ("spec.externalIPs", *address));
    let is_foreign = |(_, address): &(&str, IpAddr)| service.cluster_ip(Family::of(*address)).is_none();
    let foreign = ingress.chain(external).filter(is_foreign).map(|(field, address)| {
        let family = Family::of(address);
        format!("{field} has {address}, which is left out: the service has no cluster IP of {family}")
    });
    let problem = |message| Problem::of_service(service.key.clone(), FIELD_IGNORED, message);
    unread.chain(foreign).map(problem).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::service::Service;

    fn service(spec: Value, labels: Value) -> Service {
        let object: core::Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "labels": labels}, "spec": spec,
        }))
        .unwrap();
        Service::try_from(&object).unwrap()
    }

    fn sloppy() -> Value {
        json!({
            "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
            "externalIPs": ["198.51.100.1", "2001:db8::1", "nonsense"],
            "loadBalancerSourceRanges": ["203.0.113.0/24", "everybody"],
        })
    }

    #[test]
    fn what_is_left_out_is_told_and_what_is_mended_no_more() {
        let mut index = Index::default();
        let mut unusable = Unusable::default();
        let key = ServiceKey::new("ns", "web");
        index.apply_service(service(sloppy(), json!({})));
        assert!(unusable.follow([&key], &index));
        assert!(!unusable.follow([&key], &index), "nothing new");
        let told: Vec<&str> = unusable.problems().map(|problem| problem.message.as_str()).collect();
        assert_eq!(
            told,
            [
                "spec.externalIPs has \"nonsense\", which is no IP address and is left out",
                "spec.externalIPs has 2001:db8::1, which is left out: the service has no cluster IP of IPv6",
                "spec.loadBalancerSourceRanges has \"everybody\", which is no address range and is left out; it admits nobody",
            ]
        );
        assert!(unusable.problems().all(|problem| problem.service.as_ref() == Some(&key)));
        index.apply_service(service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}), json!({})));
        assert!(unusable.follow([&key], &index));
        assert_eq!(unusable.problems().count(), 0);
    }

    #[test]
    fn services_that_are_gone_or_not_ours_are_not_complained_of() {
        let mut index = Index::default();
        let mut unusable = Unusable::default();
        let key = ServiceKey::new("ns", "web");
        index.apply_service(service(sloppy(), json!({"service.kubernetes.io/service-proxy-name": "other"})));
        assert!(!unusable.follow([&key], &index));
        index.apply_service(service(sloppy(), json!({})));
        assert!(unusable.follow([&key], &index));
        index.remove_service(&key);
        assert!(unusable.follow([&key], &index));
        assert_eq!(unusable.problems().count(), 0);
    }
}
