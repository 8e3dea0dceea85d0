//! The sweeper's metrics.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::model::Family;

/// Counts what is deleted.
#[derive(Clone, Debug)]
pub struct Metrics {
    duration: Labelled<Labels, Histogram, fn() -> Histogram>,
    deleted: Labelled<Labels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    ip_family: &'static str,
}

impl Labels {
    const fn of(family: Family) -> Self {
        Self {
            ip_family: match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            },
        }
    }
}

impl Metrics {
    /// Registers them by the names that dashboards know, in a registry whose prefix is `kubeproxy`.
    pub fn register(registry: &mut Registry) -> Self {
        // 1 ms to 16 s, as kube-proxy has them.
        let metrics = Self {
            duration: Labelled::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            deleted: Labelled::default(),
        };
        registry.register_with_unit(
            "conntrack_reconciler_sync_duration",
            "Time of one look at the tracked connections, with the deletion of those that are stale",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register(
            "conntrack_reconciler_deleted_entries",
            "Tracked connections that were deleted because they went nowhere useful any more",
            metrics.deleted.clone(),
        );
        metrics
    }

    /// Counts one look at a family.
    pub(super) fn looked(&self, family: Family, deleted: usize, took: Duration) {
        self.duration.get_or_create(&Labels::of(family)).observe(took.as_secs_f64());
        self.deleted.get_or_create(&Labels::of(family)).inc_by(u64::try_from(deleted).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_names_that_dashboards_know() {
        let mut registry = Registry::with_prefix("kubeproxy");
        Metrics::register(&mut registry).looked(Family::V6, 3, Duration::from_millis(2));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 3"), "{text}");
        assert!(text.contains("kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv6\"} 1"));
    }
}
