//! The datapath's metrics: our own here, those that kube-proxy has too in `kube_proxy`.

pub mod kube_proxy;
pub mod no_local;
pub mod triggers;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::apply::Report;

/// Counts what is programmed.
#[derive(Clone, Debug)]
pub struct Metrics {
    duration: Histogram,
    first_load: Gauge<f64, AtomicU64>,
    added: Counter,
    deleted: Counter,
    rebuilds: Counter,
    forgotten: Counter,
    quarantined: Gauge,
    conflicts: Gauge,
    foreign_changes: Counter,
    repairs: Counter,
    delayed_repairs: Counter,
}

impl Metrics {
    /// Registers them under `datapath_`.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("datapath");
        // 0.1 ms to 1.6 s.
        let metrics = Self {
            duration: Histogram::new(exponential_buckets(0.0001, 2.0, 15)),
            first_load: Gauge::default(),
            added: Counter::default(),
            deleted: Counter::default(),
            rebuilds: Counter::default(),
            forgotten: Counter::default(),
            quarantined: Gauge::default(),
            conflicts: Gauge::default(),
            foreign_changes: Counter::default(),
            repairs: Counter::default(),
            delayed_repairs: Counter::default(),
        };
        registry.register_with_unit(
            "program",
            "Time from the start of a turn until the kernel had taken it",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register_with_unit(
            "first_load",
            "Time from the start of the datapath until the kernel had every Service for the first time, 0 before",
            Unit::Seconds,
            metrics.first_load.clone(),
        );
        registry.register("elements_added", "Map elements added to the kernel", metrics.added.clone());
        registry.register("elements_deleted", "Map elements deleted from the kernel", metrics.deleted.clone());
        registry.register("rebuilds", "Times that a whole table was made anew", metrics.rebuilds.clone());
        registry.register(
            "affinity_forgotten",
            "Clients that did not keep their endpoint because it went or session affinity changed",
            metrics.forgotten.clone(),
        );
        registry.register(
            "quarantined_service_ports",
            "Service ports that are left out: the kernel refuses them, or no number is left for them",
            metrics.quarantined.clone(),
        );
        registry.register(
            "conflicts",
            "Frontends that one Service goes without because another has them",
            metrics.conflicts.clone(),
        );
        registry.register(
            "foreign_changes",
            "Times that another program was seen to change our nf_tables tables",
            metrics.foreign_changes.clone(),
        );
        registry.register(
            "repairs",
            "Times that our tables were put right after another program had changed them",
            metrics.repairs.clone(),
        );
        registry.register(
            "repairs_delayed",
            "Repairs after which the next had to wait, since another program keeps changing our tables",
            metrics.delayed_repairs.clone(),
        );
        metrics
    }

    /// The kernel has everything for the first time.
    pub fn loaded(&self, took: Duration) {
        self.first_load.set(took.as_secs_f64());
    }

    /// Counts a change by others.
    pub fn touched(&self) {
        self.foreign_changes.inc();
    }

    /// Counts a look at everything that others caused.
    pub fn repaired(&self, is_changed: bool, is_delayed: bool) {
        self.repairs.inc_by(u64::from(is_changed));
        self.delayed_repairs.inc_by(u64::from(is_delayed));
    }

    /// Counts one turn.
    pub fn programmed(&self, report: &Report, took: Duration) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.duration.observe(took.as_secs_f64());
        self.added.inc_by(count(report.added));
        self.deleted.inc_by(count(report.deleted));
        self.rebuilds.inc_by(u64::from(report.is_rebuilt));
        let left_out = report.quarantined.values().filter(|reason| !reason.is_partial());
        self.quarantined.set(gauge(left_out.count()));
    }

    /// Where clients are counted whose endpoint is remembered no more.
    pub fn forgotten(&self) -> Counter {
        self.forgotten.clone()
    }

    /// Tells how many Services go without a frontend.
    pub fn contested(&self, conflicts: usize) {
        self.conflicts.set(gauge(conflicts));
    }
}

fn gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
