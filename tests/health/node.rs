//! A node without an API server: the real datapath with its servers, in a namespace, told of objects by the test.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use nix::sched::{CloneFlags, setns};
use prometheus_client::registry::Registry;
use steelyard::datapath::foreign;
use steelyard::datapath::health_check::{ports, proxy};
use steelyard::datapath::localhost;
use steelyard::datapath::metrics::Metrics;
use steelyard::datapath::metrics::kube_proxy::KubeProxyMetrics;
use steelyard::datapath::progress::Progress;
use steelyard::datapath::reconciler::{Datapath, Outputs};
use steelyard::datapath::servers::Servers;
use steelyard::datapath::service::ForwardedService;
use steelyard::datapath::settings::Settings;
use steelyard::datapath::watch::Event;
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::node::Node as NodeObject;
use steelyard::model::problem::Problem;
use steelyard::model::programmed::Programmed;
use steelyard::model::service::Service;
use steelyard::names::{NodeName, ServiceKey};
use steelyard::runtime::node_report::{NodeReport, NodeReports};
use steelyard::runtime::reconcile;
use steelyard::runtime::shutdown::{ShutdownTrigger, shutdown};
use steelyard::runtime::watch::Event as Seen;
use tokio::sync::{mpsc, watch};

use crate::namespace::{Namespace, Pair, wait};

/// How long a server may take to do as it was told.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Where the datapath tells of its health.
pub(crate) const HEALTH: &str = "192.0.2.11:10256";

/// The node of a pair, at work until dropped.
pub(crate) struct Node {
    pub(crate) pair: Pair,
    events: mpsc::Sender<Event>,
    reports: watch::Receiver<NodeReport>,
    registry: Arc<Registry>,
    stop: ShutdownTrigger,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Node {
    /// Starts one whose NodePorts answer where `node_port_addresses` says; it has seen nothing yet.
    pub(crate) fn start(test: &str, node_port_addresses: &[&str]) -> Self {
        Self::start_on(Pair::new(&format!("health-{test}")), node_port_addresses)
    }

    /// The same on a pair that the test has prepared.
    pub(crate) fn start_on(pair: Pair, node_port_addresses: &[&str]) -> Self {
        let node_port_addresses = node_port_addresses.iter().map(|text| text.parse().unwrap()).collect();
        let settings = Settings { node_port_addresses, ..Settings::default() };
        let (events, receiver) = mpsc::channel(4096);
        let reports = NodeReports::default();
        let reports_seen = reports.follow();
        let sender = events.clone();
        let (stop, stopped) = shutdown();
        let mut registry = Registry::default();
        let metrics = Metrics::register(registry.sub_registry_with_prefix("steelyard"));
        let known = KubeProxyMetrics::register(registry.sub_registry_with_prefix("kubeproxy"));
        let path = pair.node.path();
        let thread = std::thread::spawn(move || {
            setns(std::fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            // The threads of the runtime are born in the namespace.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let working = async {
                let (servers, inputs) = Servers::new(settings.loopbacks());
                let [health, status] = ["[::]:10256", "127.0.0.1:10249"].map(|text| text.parse().unwrap());
                let addresses = proxy::Addresses { health, status };
                let reporter = |part| reports.reporter("datapath", part);
                let health = servers.health().clone();
                tokio::spawn(proxy::run(addresses, health, known.clone(), reporter("health"), stopped.clone()));
                tokio::spawn(ports::run(inputs.checks, reporter("ports"), stopped.clone()));
                tokio::spawn(localhost::run(inputs.forwards, reporter("localhost"), stopped.clone()));
                let outputs = Outputs {
                    programmed: watch::Sender::new(Arc::new(Programmed::default())),
                    progress: Progress::new(servers, known),
                    problems: reporter("programming"),
                };
                let mut datapath = Datapath::new(NodeName::new("here"), settings, outputs, metrics).unwrap();
                let listener = datapath.listen().unwrap();
                tokio::spawn(foreign::follow(listener, sender));
                let turning = async move { reconcile::run(&mut datapath, receiver, stopped).await };
                tokio::spawn(turning).await.unwrap();
            };
            runtime.block_on(working);
        });
        let registry = Arc::new(registry);
        Self { pair, events, reports: reports_seen, registry, stop, thread: Some(thread) }
    }

    /// Sees everything for the first time: this node, and no Service.
    pub(crate) fn settle(&self) {
        self.see_everything();
        wait(LIMIT, "health", || get(&self.pair.node, HEALTH, "/healthz").is_ok_and(|answer| answer.status == 200));
    }

    /// The same without waiting for anything.
    pub(crate) fn see_everything(&self) {
        self.see(Event::Service(Seen::Replaced(Vec::new())));
        self.see(Event::Slice(Seen::Replaced(Vec::new())));
        self.see(Event::ServiceCidr(Seen::Replaced(Vec::new())));
        self.see_addresses(&["127.0.0.1", "::1", "192.0.2.11", "2001:db8::11"]);
        self.see_node("");
    }

    pub(crate) fn see(&self, event: Event) {
        self.events.blocking_send(event).unwrap();
    }

    pub(crate) fn see_addresses(&self, addresses: &[&str]) {
        let addresses: BTreeSet<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.see(Event::LocalAddresses(addresses));
    }

    /// Sees the node's object with something in its spec.
    pub(crate) fn see_node(&self, spec: &str) {
        let yaml = format!(
            "metadata: {{name: here}}\nspec: {{{spec}}}\nstatus: {{addresses: [{{type: InternalIP, address: 192.0.2.11}}, \
             {{type: InternalIP, address: '2001:db8::11'}}]}}"
        );
        let object: core::Node = serde_saphyr::from_str(&yaml).unwrap();
        self.see(Event::Node(Seen::Applied(NodeObject::try_from(&object).unwrap())));
    }

    pub(crate) fn see_service(&self, name: &str, spec: &str) {
        self.see(Event::Service(Seen::Applied(service(name, spec))));
    }

    pub(crate) fn forget_service(&self, name: &str) {
        self.see(Event::Service(Seen::Removed(ServiceKey::new("ns", name))));
    }

    /// Sees the only slice of a Service in a family.
    pub(crate) fn see_slice(&self, service: &str, family: &str, port: u16, endpoints: &str) {
        let yaml = format!(
            "metadata: {{namespace: ns, name: {service}-{family}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: {family}\nports: [{{name: '', port: {port}}}]\nendpoints: [{endpoints}]"
        );
        let object: discovery::EndpointSlice = serde_saphyr::from_str(&yaml).unwrap();
        self.see(Event::Slice(Seen::Applied(EndpointSlice::try_from(&object).unwrap())));
    }

    /// What the agent says that it cannot do.
    pub(crate) fn problems(&self) -> BTreeSet<Problem> {
        self.reports.borrow().problems.values().flatten().cloned().collect()
    }

    /// Waits for a problem with a reason; gives its message.
    pub(crate) fn wait_for_problem(&self, service: Option<&str>, reason: &str) -> String {
        let service = service.map(|name| ServiceKey::new("ns", name));
        let told = || self.problems().into_iter().find(|told| told.service == service && told.reason == reason);
        wait(LIMIT, reason, || told().is_some());
        told().unwrap().message
    }

    /// Waits until all is said to be well.
    pub(crate) fn wait_for_no_problem(&self) {
        wait(LIMIT, "no problem to remain", || self.problems().is_empty());
    }

    /// One line of the metrics, without its value.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        value.map(|value| value.parse().unwrap())
    }
}

pub(crate) fn service(name: &str, spec: &str) -> ForwardedService {
    let yaml = format!("metadata: {{namespace: ns, name: {name}}}\nspec: {{{spec}}}");
    Service::try_from(&serde_saphyr::from_str::<core::Service>(&yaml).unwrap()).unwrap().into()
}

/// Runs something on a thread that lives in a namespace.
pub(crate) fn inside<T: Send>(namespace: &Namespace, job: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(namespace.path()).unwrap();
    let run = || {
        setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
        job()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In small letters.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Asks from inside a namespace.
pub(crate) fn get(from: &Namespace, at: &str, path: &str) -> std::io::Result<Answer> {
    let address: SocketAddr = at.parse().unwrap();
    inside(from, || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
    })
}
