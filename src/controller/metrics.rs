//! The controller's metrics.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::desired::Desired;
use crate::api::conditions::ADDRESS_ASSIGNED;

/// Labels of a pool's gauges.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabels {
    pool: String,
    family: String,
}

/// Labels of failures.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    reason: String,
}

/// All metrics. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    assigned: Family<PoolLabels, Gauge>,
    available: Family<PoolLabels, Gauge>,
    waiting: Family<ReasonLabels, Gauge>,
    /// Writes that the API server has taken.
    pub writes: Counter,
    /// Writes that it refused, or that did not reach it, by reason.
    pub failures: Family<ReasonLabels, Counter>,
    /// 1 while something speaks against the decided mode of the datapath.
    pub datapath_contradicted: Gauge<i64>,
    /// 1 while this replica leads.
    pub is_leader: Gauge<i64>,
    /// The time that the last pass took, in seconds.
    pub pass_seconds: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Names them all in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("controller");
        let pools = [("assigned", &self.assigned, "held"), ("available", &self.available, "that could be given")];
        for (name, gauge, what) in pools {
            registry.register(format!("pool_addresses_{name}"), format!("Addresses of a pool {what}"), gauge.clone());
        }
        registry.register("services_waiting", "Services without all they ask for, by reason", self.waiting.clone());
        registry.register("writes", "Writes to the API server", self.writes.clone());
        registry.register("write_failures", "Failed writes to the API server, by reason", self.failures.clone());
        let contradicted = "Whether something speaks against the mode that was decided for the datapath";
        registry.register("datapath_contradicted", contradicted, self.datapath_contradicted.clone());
        registry.register("leader", "Whether this replica leads", self.is_leader.clone());
        registry.register("pass_seconds", "Duration of the last pass of assignment", self.pass_seconds.clone());
    }

    /// Counts one failure.
    pub fn failed(&self, reason: &str) {
        self.failures.get_or_create(&ReasonLabels { reason: reason.to_owned() }).inc();
    }

    /// Takes the gauges from what was decided.
    pub fn observe(&self, desired: &Desired) {
        self.assigned.clear();
        self.available.clear();
        self.waiting.clear();
        for (name, pool) in &desired.pools {
            for (position, family) in crate::model::Family::ALL.into_iter().enumerate() {
                let labels = PoolLabels { pool: name.to_string(), family: family.to_string() };
                let value = |counts: &[i64; 2]| counts.get(position).copied().unwrap_or_default();
                self.assigned.get_or_create(&labels).set(value(&pool.assigned));
                self.available.get_or_create(&labels).set(value(&pool.available));
            }
        }
        let conditions = desired.services.values().flat_map(|service| &service.conditions);
        for condition in conditions.filter(|condition| condition.kind == ADDRESS_ASSIGNED && !condition.is_true) {
            self.waiting.get_or_create(&ReasonLabels { reason: condition.reason.to_string() }).inc();
        }
    }
}
