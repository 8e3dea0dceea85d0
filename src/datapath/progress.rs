//! What the world outside learns of the datapath's turns: its health, its servers in user space, and kube-proxy's metrics.
//! The loop says what it sees and does, step by step; this keeps account.

use jiff::Timestamp;
use tokio::time::Instant;

use super::desired::{Desired, Update};
use super::index::{Changes, Index};
use super::metrics::kube_proxy::KubeProxyMetrics;
use super::metrics::no_local::NoLocalEndpoints;
use super::metrics::triggers::Triggers;
use super::servers::Servers;
use super::service::ForwardedService;
use super::watch::Event;
use crate::model::endpoints::EndpointSlice;
use crate::model::node::Node;
use crate::names::NodeName;
use crate::runtime::reconcile::Scope;
use crate::runtime::watch::Event as Seen;

/// The account.
#[derive(Debug)]
pub struct Progress {
    servers: Servers,
    metrics: KubeProxyMetrics,
    triggers: Triggers,
    no_local: NoLocalEndpoints,
}

impl Progress {
    /// Begins.
    pub fn new(servers: Servers, metrics: KubeProxyMetrics) -> Self {
        Self { servers, metrics, triggers: Triggers::new(Timestamp::now()), no_local: NoLocalEndpoints::default() }
    }

    /// Sees an event before the index does.
    pub fn see(&mut self, event: &Event, index: &Index, node: &NodeName) {
        match event {
            Event::Service(Seen::Replaced(services)) => services.iter().for_each(|it| self.see_service(it, index)),
            Event::Service(Seen::Applied(service)) => self.see_service(service, index),
            Event::Service(Seen::Removed(_)) => self.metrics.service_changed(Timestamp::now()),
            Event::Slice(Seen::Replaced(slices)) => slices.iter().for_each(|it| self.see_slice(it, index)),
            Event::Slice(Seen::Applied(slice)) => self.see_slice(slice, index),
            Event::Slice(Seen::Removed(_)) => self.metrics.endpoints_changed(Timestamp::now()),
            Event::Node(Seen::Replaced(nodes)) => self.see_node(nodes.iter().find(|it| it.name == *node)),
            Event::Node(Seen::Applied(seen)) if seen.name == *node => self.see_node(Some(seen)),
            Event::Node(Seen::Removed(name)) if name == node => self.see_node(None),
            Event::Node(Seen::Applied(_) | Seen::Removed(_))
            | Event::ServiceCidr(_)
            | Event::LocalAddresses(_)
            | Event::Foreign(_) => {}
        }
    }

    fn see_service(&self, service: &ForwardedService, index: &Index) {
        if index.service(&service.key) != Some(service) {
            self.metrics.service_changed(Timestamp::now());
        }
    }

    fn see_slice(&mut self, slice: &EndpointSlice, index: &Index) {
        let known = index.slices_of(&slice.service).find(|known| known.key == slice.key);
        if known != Some(slice) {
            self.metrics.endpoints_changed(Timestamp::now());
            self.triggers.see(slice.family, slice.triggered, known.and_then(|known| known.triggered));
        }
    }

    /// Load balancers leave a node that is about to go, or whose object is gone.
    fn see_node(&self, node: Option<&Node>) {
        self.servers.health().see_node(node.is_some_and(|node| !node.is_leaving));
    }

    /// A turn is due: whatever it is about is not in the kernel yet.
    pub fn queue(&self) {
        self.servers.health().queue();
    }

    /// A turn knows what it changes.
    pub fn begin(&mut self, changes: &Changes, update: &Update, desired: &Desired) {
        self.servers.touch(changes, update);
        for key in &update.entries {
            self.no_local.see(key, desired.entries().get(key));
        }
    }

    /// A turn ended well, with something for the kernel or without.
    pub fn succeed(&mut self, index: &Index, desired: &Desired, turn: Option<(Scope, Instant)>) {
        if let Some(node) = index.node() {
            self.servers.publish(index, desired, node);
        }
        self.metrics.settled(Timestamp::now(), &mut self.triggers);
        self.metrics.starved(&self.no_local);
        if let Some((scope, start)) = turn {
            self.metrics.synced(scope, start.elapsed());
        }
    }

    /// A turn failed.
    pub fn fail(&self) {
        self.metrics.failed();
    }
}
