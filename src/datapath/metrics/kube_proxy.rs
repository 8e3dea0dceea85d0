//! What dashboards and alerts know by kube-proxy's names, as far as it means the same here. Both families are programmed in
//! one transaction, so what is told of a turn is told of both.

use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::no_local::{NoLocalEndpoints, Side};
use super::triggers::Triggers;
use crate::datapath::health_check::freshness::Question;
use crate::model::Family;
use crate::runtime::reconcile::Scope;

/// Seconds since 1970, as Prometheus counts time.
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// kube-proxy's metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KubeProxyMetrics {
    network_programming: Labelled<OfFamily, Histogram, fn() -> Histogram>,
    sync: Labelled<OfFamily, Histogram, fn() -> Histogram>,
    sync_full: Labelled<OfFamily, Histogram, fn() -> Histogram>,
    sync_partial: Labelled<OfFamily, Histogram, fn() -> Histogram>,
    last_synced: Labelled<OfFamily, Seconds>,
    last_queued: Labelled<OfFamily, Seconds>,
    failures: Labelled<OfFamily, Counter>,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    no_local_endpoints: Labelled<OfPolicy, Gauge>,
    healthz: Labelled<OfCode, Counter>,
    livez: Labelled<OfCode, Counter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name(Family);

impl EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0.to_string(), encoder)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    ip_family: Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    traffic_policy: &'static str,
    ip_family: Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: u16,
}

const BOTH: [OfFamily; 2] = [OfFamily { ip_family: Name(Family::V4) }, OfFamily { ip_family: Name(Family::V6) }];

/// From the change of a pod to the kernel: half seconds, seconds, then coarser up to five minutes.
fn programming_buckets() -> Histogram {
    let steps = |first: u32, step: u32, count: u32| (0..count).map(move |number| f64::from(first + step * number));
    Histogram::new([0.25, 0.5].into_iter().chain(steps(1, 1, 59)).chain(steps(60, 5, 12)).chain(steps(120, 30, 7)))
}

/// 1 ms to 16 s.
fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl KubeProxyMetrics {
    /// Registers them in a registry that puts `kubeproxy_` before them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            network_programming: Labelled::new_with_constructor(programming_buckets),
            sync: Labelled::new_with_constructor(sync_buckets),
            sync_full: Labelled::new_with_constructor(sync_buckets),
            sync_partial: Labelled::new_with_constructor(sync_buckets),
            last_synced: Labelled::default(),
            last_queued: Labelled::default(),
            failures: Labelled::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            no_local_endpoints: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
        };
        metrics.register_durations(registry);
        metrics.register_changes(registry);
        registry.register("proxy_healthz", "Answers of /healthz by HTTP status", metrics.healthz.clone());
        registry.register("proxy_livez", "Answers of /livez by HTTP status", metrics.livez.clone());
        metrics
    }

    fn register_durations(&self, registry: &mut Registry) {
        let histograms = [
            (
                "network_programming_duration",
                "Time from the change of a pod or Service, as the EndpointSlice tells it, until the kernel had it",
                &self.network_programming,
            ),
            ("sync_proxy_rules_duration", "Time from the start of a turn until the kernel had taken it", &self.sync),
            ("sync_full_proxy_rules_duration", "The same of turns over everything", &self.sync_full),
            ("sync_partial_proxy_rules_duration", "The same of turns over what changed", &self.sync_partial),
        ];
        for (name, help, histogram) in histograms {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        let times = [
            ("sync_proxy_rules_last_timestamp", "When the kernel last had everything", &self.last_synced),
            ("sync_proxy_rules_last_queued_timestamp", "When a change was last seen", &self.last_queued),
        ];
        for (name, help, time) in times {
            registry.register_with_unit(name, help, Unit::Seconds, time.clone());
        }
    }

    fn register_changes(&self, registry: &mut Registry) {
        let prefix = "sync_proxy_rules";
        let counters = [
            ("endpoint_changes", "Changes of EndpointSlices seen", &self.endpoint_changes),
            ("service_changes", "Changes of Services seen", &self.service_changes),
        ];
        for (name, help, counter) in counters {
            registry.register(format!("{prefix}_{name}"), help, counter.clone());
        }
        let gauges = [
            ("endpoint_changes_pending", "Those that the kernel does not have yet", &self.endpoint_changes_pending),
            ("service_changes_pending", "Those that the kernel does not have yet", &self.service_changes_pending),
        ];
        for (name, help, gauge) in gauges {
            registry.register(format!("{prefix}_{name}"), help, gauge.clone());
        }
        registry.register(
            format!("{prefix}_nftables_sync_failures"),
            "Turns that the kernel took nothing of",
            self.failures.clone(),
        );
        // A gauge, whatever its name says.
        registry.register(
            format!("{prefix}_no_local_endpoints_total"),
            "Service ports with a Local policy whose endpoints are all on other nodes",
            self.no_local_endpoints.clone(),
        );
    }

    /// An EndpointSlice changed.
    pub fn endpoints_changed(&self, now: Timestamp) {
        self.endpoint_changes.inc();
        self.endpoint_changes_pending.inc();
        self.queued(now);
    }

    /// A Service changed.
    pub fn service_changed(&self, now: Timestamp) {
        self.service_changes.inc();
        self.service_changes_pending.inc();
        self.queued(now);
    }

    fn queued(&self, now: Timestamp) {
        for family in &BOTH {
            self.last_queued.get_or_create(family).set(seconds(now));
        }
    }

    /// The kernel took a turn.
    pub fn synced(&self, scope: Scope, took: Duration) {
        let by_scope = match scope {
            Scope::Resync => &self.sync_full,
            Scope::Changed => &self.sync_partial,
        };
        for family in &BOTH {
            self.sync.get_or_create(family).observe(took.as_secs_f64());
            by_scope.get_or_create(family).observe(took.as_secs_f64());
        }
    }

    /// The kernel has everything that was seen, whether there was anything to do for that or not.
    pub fn settled(&self, now: Timestamp, triggers: &mut Triggers) {
        for family in &BOTH {
            self.last_synced.get_or_create(family).set(seconds(now));
        }
        for (family, latency) in triggers.settle(now) {
            self.network_programming
                .get_or_create(&OfFamily { ip_family: Name(family) })
                .observe(latency.as_secs_f64());
        }
        self.endpoint_changes_pending.set(0);
        self.service_changes_pending.set(0);
    }

    /// A turn failed.
    pub fn failed(&self) {
        for family in &BOTH {
            self.failures.get_or_create(family).inc();
        }
    }

    /// How many Service ports have no local endpoint where they need one.
    pub fn starved(&self, ports: &NoLocalEndpoints) {
        for family in Family::ALL {
            for side in Side::ALL {
                let labels = OfPolicy { traffic_policy: side.label(), ip_family: Name(family) };
                let count = ports.count(side, family);
                self.no_local_endpoints.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// A question about health was answered.
    pub fn asked(&self, question: Question, code: u16) {
        let answers = match question {
            Question::Healthy => &self.healthz,
            Question::Live => &self.livez,
        };
        answers.get_or_create(&OfCode { code }).inc();
    }
}

fn seconds(time: Timestamp) -> f64 {
    Duration::try_from(time.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
