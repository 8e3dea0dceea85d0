//! What the speaker counts.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::l2::responder::DropReason;
use crate::names::InterfaceName;

/// A protocol by which addresses are announced on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// For IPv4.
    Arp,
    /// For IPv6.
    Ndp,
}

impl Protocol {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Arp => "arp",
            Self::Ndp => "ndp",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnInterface {
    interface: String,
    protocol: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    interface: String,
    protocol: &'static str,
    reason: &'static str,
}

/// The speaker's metrics. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Labelled<OnInterface, Counter>,
    replies: Labelled<OnInterface, Counter>,
    drops: Labelled<Dropped, Counter>,
    gratuitous: Labelled<OnInterface, Counter>,
    send_failures: Labelled<OnInterface, Counter>,
    announced: Gauge<i64, AtomicI64>,
}

impl Metrics {
    /// Metrics that are shown under `speaker_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("speaker");
        let help = "Requests and solicitations that passed the kernel's filter";
        registry.register("requests", help, metrics.requests.clone());
        registry.register("replies", "Requests and solicitations that were answered", metrics.replies.clone());
        registry.register("drops", "Frames that were not answered, by reason", metrics.drops.clone());
        let help = "Gratuitous ARP frames and unsolicited advertisements sent";
        registry.register("gratuitous", help, metrics.gratuitous.clone());
        registry.register("send_failures", "Frames that the kernel refused to send", metrics.send_failures.clone());
        registry.register("announced", "Addresses that this node announces", metrics.announced.clone());
        metrics
    }

    pub(super) fn set_announced(&self, count: usize) {
        self.announced.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The metrics of one protocol on one interface.
    pub(super) fn on(&self, interface: &InterfaceName, protocol: Protocol) -> InterfaceMetrics {
        let label = OnInterface { interface: interface.to_string(), protocol: protocol.as_str() };
        InterfaceMetrics {
            requests: self.requests.get_or_create_owned(&label),
            replies: self.replies.get_or_create_owned(&label),
            gratuitous: self.gratuitous.get_or_create_owned(&label),
            send_failures: self.send_failures.get_or_create_owned(&label),
            drops: self.drops.clone(),
            label,
        }
    }
}

/// Counters of one protocol on one interface, without a look-up for each frame.
#[derive(Clone, Debug)]
pub(super) struct InterfaceMetrics {
    pub(super) requests: Counter,
    pub(super) replies: Counter,
    pub(super) gratuitous: Counter,
    pub(super) send_failures: Counter,
    drops: Labelled<Dropped, Counter>,
    label: OnInterface,
}

impl InterfaceMetrics {
    pub(super) fn drop(&self, reason: DropReason) {
        let OnInterface { interface, protocol } = self.label.clone();
        self.drops.get_or_create(&Dropped { interface, protocol, reason: reason.as_str() }).inc();
    }
}
