//! The datapath as the agent runs it, in a thread inside the node's namespace, and the objects that it is told of.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use steelyard::datapath::metrics::Metrics;
use steelyard::datapath::reconciler::{Datapath, Outputs};
use steelyard::datapath::settings::{DetectLocal, Settings};
use steelyard::datapath::sweeper::{self, Sweeper};
use steelyard::datapath::watch::Event;
use steelyard::model::Family;
use steelyard::model::endpoints::{EndpointSlice, SliceKey};
use steelyard::model::node::Node;
use steelyard::model::programmed::Programmed;
use steelyard::model::service::Service;
use steelyard::model::service_cidr::ServiceCidr;
use steelyard::names::{NodeName, ServiceKey};
use steelyard::runtime::reconcile;
use steelyard::runtime::shutdown::{ShutdownTrigger, shutdown};
use steelyard::runtime::watch::Event as Seen;
use tokio::sync::{mpsc, watch};

use crate::namespace::Namespace;

/// A datapath at work; ends when dropped, and leaves its tables.
pub(crate) struct Agent {
    events: mpsc::Sender<Event>,
    trigger: ShutdownTrigger,
    thread: Option<JoinHandle<()>>,
    programmed: watch::Receiver<Arc<Programmed>>,
}

impl Agent {
    /// Starts one that knows its node; its first turn comes with [`Self::lists`].
    pub(crate) fn start(node: &Namespace, grace: Option<Duration>, drop_invalid: bool) -> Self {
        let (events, receiver) = mpsc::channel(1024);
        let (trigger, stop) = shutdown();
        let (sender, programmed) = watch::channel(Arc::new(Programmed::default()));
        let thread = node.spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let settings = Settings {
                detect_local: DetectLocal::Prefixes(
                    ["10.244.0.0/16", "fd00:244::/32"].map(|text| text.parse().unwrap()).to_vec(),
                ),
                reset_gone_endpoints: grace,
                drop_invalid,
                ..Settings::default()
            };
            let mut registry = Registry::default();
            let sweeper = Sweeper::start(sweeper::Metrics::register(&mut registry)).unwrap();
            let outputs = Outputs::alone(sender);
            let metrics = Metrics::register(&mut registry);
            let datapath = Datapath::new(NodeName::new("node"), settings, outputs, metrics).unwrap();
            let mut datapath = datapath.with_sweeper(sweeper);
            runtime.block_on(async {
                tokio::spawn(async move { reconcile::run(&mut datapath, receiver, stop).await }).await.unwrap();
            });
        });
        let agent = Self { events, trigger, thread: Some(thread), programmed };
        let object: core::Node = read(json!({
            "metadata": {"name": "node"},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "198.51.100.1"}, {"type": "InternalIP", "address": "2001:db8:100::1"},
            ]},
        }));
        agent.tell(Event::Node(Seen::Replaced(vec![Node::try_from(&object).unwrap()])));
        let cidrs: networking::ServiceCIDR =
            read(json!({"metadata": {"name": "all"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]}}));
        agent.tell(Event::ServiceCidr(Seen::Replaced(vec![ServiceCidr::try_from(&cidrs).unwrap()])));
        let local: BTreeSet<IpAddr> =
            ["198.51.100.1", "2001:db8:100::1", "10.244.1.1", "fd00:244:1::1", "127.0.0.1", "::1"]
                .map(|text| text.parse().unwrap())
                .into();
        agent.tell(Event::LocalAddresses(local));
        agent
    }

    /// The first lists; then waits until they are programmed.
    pub(crate) fn lists(&self, services: Vec<Service>, slices: Vec<EndpointSlice>) {
        self.tell(Event::Slice(Seen::Replaced(slices)));
        self.tell(Event::Service(Seen::Replaced(services.into_iter().map(Into::into).collect())));
        crate::stage::wait(crate::stage::LIMIT, "the first turn", || self.programmed.borrow().is_settled());
    }

    pub(crate) fn tell(&self, event: Event) {
        self.events.blocking_send(event).unwrap();
    }

    pub(crate) fn service(&self, service: Service) {
        self.tell(Event::Service(Seen::Applied(service.into())));
    }

    pub(crate) fn no_service(&self) {
        self.tell(Event::Service(Seen::Removed(ServiceKey::new("ns", "echo"))));
    }

    pub(crate) fn slice(&self, slice: EndpointSlice) {
        self.tell(Event::Slice(Seen::Applied(slice)));
    }

    pub(crate) fn no_slice(&self) {
        self.tell(Event::Slice(Seen::Removed(SliceKey { namespace: "ns".into(), name: "echo".into() })));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.trigger.request();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}

/// `ns/echo`, with more fields in its spec and these addresses of a load balancer.
pub(crate) fn service(cluster_ip: SocketAddr, spec: Value, balancer: &[SocketAddr]) -> Service {
    let mut fields = json!({
        "type": "LoadBalancer", "clusterIP": cluster_ip.ip(),
        "ports": [
            {"name": "udp", "port": cluster_ip.port(), "protocol": "UDP"},
            {"name": "tcp", "port": cluster_ip.port(), "protocol": "TCP"},
        ],
    });
    fields.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let ingress: Vec<Value> = balancer.iter().map(|address| json!({"ip": address.ip()})).collect();
    let object: core::Service = read(json!({
        "metadata": {"name": "echo", "namespace": "ns"}, "spec": fields,
        "status": {"loadBalancer": {"ingress": ingress}},
    }));
    Service::try_from(&object).unwrap()
}

/// An endpoint in the slice, with its conditions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    Ready,
    Unready,
    /// Terminating, and still serving.
    Terminating,
    /// Terminating, and not serving any more.
    Ended,
}

/// The slice of `ns/echo`. All endpoints have one target port.
pub(crate) fn slice(endpoints: &[(SocketAddr, State)]) -> EndpointSlice {
    slice_of("echo", endpoints)
}

/// The slice of another Service.
pub(crate) fn slice_of(name: &str, endpoints: &[(SocketAddr, State)]) -> EndpointSlice {
    let port = endpoints.first().map_or(9, |(address, _)| address.port());
    let family = endpoints.first().map_or(Family::V4, |(address, _)| Family::of(address.ip()));
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, state)| {
            let (ready, serving, terminating) = match state {
                State::Ready => (true, true, false),
                State::Unready => (false, false, false),
                State::Terminating => (false, true, true),
                State::Ended => (false, false, true),
            };
            json!({
                "addresses": [address.ip()], "nodeName": "node",
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            })
        })
        .collect();
    let object: discovery::EndpointSlice = read(json!({
        "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": name}},
        "addressType": family.to_string(), "endpoints": endpoints,
        "ports": [
            {"name": "udp", "port": port, "protocol": "UDP"}, {"name": "tcp", "port": port, "protocol": "TCP"},
        ],
    }));
    EndpointSlice::try_from(&object).unwrap()
}
