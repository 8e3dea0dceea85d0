//! `steelyard-lab demo`: shows Steelyard at work on a cluster in a box, in plain words, with the time of each step.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::failure::Failure;
use crate::install::steelyard_binary;
use crate::lab::{Datapath, Lab, Options};
use crate::layout::{LabName, Member};
use crate::place::{Place, Vantage};
use crate::progress::Progress;
use crate::wait::{pause, wait};

const MANIFEST: &str = include_str!("manifests/demo.yaml");
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// Runs the demonstration; with `keep` the lab stays up.
///
/// # Errors
/// If anything that it wants to show does not happen.
pub fn demo(name: LabName, keep: bool) -> Result<()> {
    let mut story = Story::new();
    story.say("Steelyard on a real Kubernetes cluster, inside network namespaces of this machine.")?;

    story.step("Building Steelyard's binary and the cluster's programs (only the first time takes long)")?;
    let progress = Progress::new();
    let binary = steelyard_binary(&mut |text| progress.say(text))?;
    story.done()?;

    story.step("Raising a cluster of three nodes: etcd, API server, kubelets, containerd; no kube-proxy")?;
    let options = Options { name: name.clone(), nodes: 3, datapath: Datapath::None };
    let mut lab = if keep { Lab::start(&options, &progress)? } else { Lab::start_guarded(&options, &progress)? };
    story.done()?;

    story.step(
        "Installing Steelyard with Helm: a controller assigns addresses, an agent on each node announces and forwards",
    )?;
    lab.install_steelyard(&binary, &[])?;
    lab.set_datapath(Datapath::Steelyard)?;
    lab.wait_for_dns()?;
    story.shell(&lab, &["get", "pods", "--all-namespaces", "--output", "wide"])?;
    story.done()?;

    let shown = Demo { lab: &lab };
    shown.services(&mut story)?;
    let address = shown.spread(&mut story)?;
    shown.name_from_a_pod(&mut story)?;
    shown.client_address(&mut story, address)?;
    let dead = shown.power_off(&mut story, address)?;

    if keep {
        shown.power_on(&mut story, &dead)?;
        return story.say(&how_to_go_on(&name, address));
    }
    story.step("Taking everything down")?;
    lab.down()?;
    story.done()?;
    story.say(&format!(
        "That was all of it, in {:.0} s. `make demo KEEP=1` leaves the cluster up.",
        story.start.elapsed().as_secs_f32()
    ))
}

fn how_to_go_on(name: &LabName, address: IpAddr) -> String {
    let lab = format!("cargo run -q -p steelyard-lab -- --name {name}");
    format!(
        "The cluster stays up. Go on with:\n  \
         {lab} kubectl get svc,pods,addressclaims,nodeannouncements -o wide\n  \
         {lab} exec client -- curl -s http://{address}/hostname\n  \
         {lab} exec node1 -- nft list table ip steelyard\n  \
         {lab} fail node2 link-down\n  \
         {lab} heal node2\n  \
         {lab} down"
    )
}

struct Demo<'a> {
    lab: &'a Lab,
}

impl Demo<'_> {
    fn services(&self, story: &mut Story) -> Result<()> {
        story.step("Applying a pool of addresses, a Deployment of six pods, and three Services for it")?;
        self.lab.apply(MANIFEST)?;
        self.lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
        wait("my-balancer to have its addresses", Duration::from_secs(30), || {
            Ok((self.balancer_addresses()?.len() == 2).then_some(()))
        })?;
        story.shell(self.lab, &["get", "services"])?;
        story.shell(self.lab, &["get", "addressclaims"])?;
        story.done()
    }

    fn balancer_addresses(&self) -> Result<Vec<IpAddr>> {
        let service = self.lab.get_raw("/api/v1/namespaces/default/services/my-balancer")?;
        let ingress = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
        let addresses = ingress.into_iter().flatten().filter_map(|entry| entry.get("ip")?.as_str()?.parse().ok());
        Ok(addresses.collect())
    }

    /// Node of every pod of the Deployment.
    fn pods(&self) -> Result<BTreeMap<String, String>> {
        let list = self.lab.get_raw("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb")?;
        let pods = list.pointer("/items").and_then(Value::as_array).cloned().unwrap_or_default();
        let text = |pod: &Value, path: &str| pod.pointer(path).and_then(Value::as_str).map(str::to_owned);
        Ok(pods.iter().filter_map(|pod| Some((text(pod, "/metadata/name")?, text(pod, "/spec/nodeName")?))).collect())
    }

    fn spread(&self, story: &mut Story) -> Result<IpAddr> {
        story.step(
            "Dialling from a client outside the cluster: ClusterIP is for pods, the other two are for everybody",
        )?;
        let client = self.lab.at(&Place::Client)?;
        let nodes = self.pods()?;
        let addresses = self.balancer_addresses()?;
        let node_port = SocketAddr::new(IpAddr::V4(Member::Node(2).ipv4()), 30080);
        let frontends = addresses.iter().map(|address| ("EXTERNAL-IP", SocketAddr::new(*address, 80)));
        for (what, target) in frontends.chain([("NodePort of node2", node_port)]) {
            self.answers(&client, target)?;
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for _ in 0..60 {
                let response = client.http_get(&format!("http://{target}/hostname"), REQUEST_LIMIT)?;
                let node = nodes.get(&response.body).with_context(|| format!("{} is no pod of ours", response.body))?;
                *counts.entry(node).or_default() += 1;
            }
            let spread: Vec<_> = counts.iter().map(|(node, count)| format!("{node} {count}")).collect();
            story.say(&format!("  {what} {target}: 60 requests, answered by pods of {}", spread.join(", ")))?;
            ensure!(counts.len() == 3, "the requests reached pods of only {} nodes", counts.len());
        }
        story.done()?;
        addresses.into_iter().find(IpAddr::is_ipv4).context("my-balancer has no IPv4 address")
    }

    fn answers(&self, client: &Vantage, target: SocketAddr) -> Result<()> {
        wait(&format!("{target} to answer"), Duration::from_secs(15), || {
            client.http_get(&format!("http://{target}/hostname"), Duration::from_millis(500)).map(|_| Some(()))
        })
    }

    fn name_from_a_pod(&self, story: &mut Story) -> Result<()> {
        story.step("Asking a pod to get http://my-service:80: its name by cluster DNS, its address by our datapath")?;
        let list = self.lab.get_raw("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb")?;
        let pod = list.pointer("/items/0").context("no pod of the Deployment")?;
        let text = |path: &str| pod.pointer(path).and_then(Value::as_str).context("a pod without name or address");
        let (name, ip) = (text("/metadata/name")?, text("/status/podIP")?);
        let dial = "dial?host=my-service&port=80&protocol=http&request=hostname&tries=6";
        let control = self.lab.at(&Place::Control)?;
        let response = control.http_get(&format!("http://{ip}:8080/{dial}"), Duration::from_secs(20))?;
        ensure!(response.body.contains("web-"), "the pod got no answer: {}", response.body);
        story.say(&format!("  {name} got {}", response.body.trim()))?;
        story.done()
    }

    fn client_address(&self, story: &mut Story, address: IpAddr) -> Result<()> {
        story.step("Which client does a pod see? First as it is, then with externalTrafficPolicy: Local")?;
        let client = self.lab.at(&Place::Client)?;
        let url = format!("http://{address}/clientip");
        let before = client.http_get(&url, REQUEST_LIMIT)?.body;
        story.say(&format!("  Cluster: a pod sees {before}, the node that forwarded"))?;
        let local = r#"{"spec":{"externalTrafficPolicy":"Local"}}"#;
        self.lab.kubectl(&["patch", "service", "my-balancer", "--patch", local])?;
        let own = Member::Client.ipv4().to_string();
        let seen = wait("a pod to see the client itself", Duration::from_secs(15), || {
            let seen = client.http_get(&url, Duration::from_millis(500))?.body;
            if seen.starts_with(&own) { Ok(Some(seen)) } else { bail!("a pod still sees {seen}") }
        })?;
        story.say(&format!("  Local: a pod sees {seen}, the client"))?;
        story.done()
    }

    /// Powers off the node that announces an address of policy `Local`, which is that of the pod that answers there.
    fn power_off(&self, story: &mut Story, address: IpAddr) -> Result<String> {
        let client = self.lab.at(&Place::Client)?;
        let target = SocketAddr::new(address, 80);
        self.answers(&client, target)?;
        let url = format!("http://{target}/hostname");
        let nodes = self.pods()?;
        let node_of = |pod: &str| nodes.get(pod).with_context(|| format!("{pod} is no pod of ours"));
        let old = node_of(&client.http_get(&url, REQUEST_LIMIT)?.body)?;
        story.step(&format!(
            "{old} announces {address}. Powering it off while the client dials on and on, 10 ms after each answer"
        ))?;
        let (last, first, new) = std::thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            scope.spawn(|| dial_on_and_on(&client, &url, tell));
            // It answers until the power goes.
            let (mut last, _) = next_answer(&told, REQUEST_LIMIT)?;
            self.lab.fail(old, Failure::PowerOff)?;
            loop {
                let (when, pod) = next_answer(&told, Duration::from_secs(30))?;
                let node = node_of(&pod)?;
                if node != old {
                    break anyhow::Ok((last, when, node));
                }
                last = when;
            }
        })?;
        story.say(&format!(
            "  between the last answer from {old} and the first from {new}, which announces {address} now: {} ms",
            first.duration_since(last).as_millis()
        ))?;
        story.done()?;
        Ok(old.clone())
    }

    fn power_on(&self, story: &mut Story, node: &str) -> Result<()> {
        story.step(&format!("Powering {node} on again"))?;
        // Until its kubelet and our agent there write anew, all that the API server knows of the node is from before.
        let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}");
        let agent = format!("/apis/steelyard.dev/v1alpha1/nodeannouncements/{node}");
        let version =
            |path: &str| anyhow::Ok(self.lab.get_raw(path)?.pointer("/metadata/resourceVersion").map(Value::to_string));
        let before = (version(&lease)?, version(&agent)?);
        self.lab.heal(node)?;
        wait(&format!("the kubelet and the agent of {node} to be there"), Duration::from_secs(90), || {
            Ok((version(&lease)? != before.0 && version(&agent)? != before.1).then_some(()))
        })?;
        self.lab.kubectl(&["wait", "--for=condition=Ready", "node", node, "--timeout=90s"])?;
        let agents = ["-n", "steelyard-system", "rollout", "status", "daemonset/steelyard-node", "--timeout=90s"];
        self.lab.kubectl(&agents)?;
        story.shell(self.lab, &["get", "nodes"])?;
        story.done()
    }
}

/// When an answer came and from which pod, if one came.
type Dialled = Option<(Instant, String)>;

/// Tells what became of each dial, until nobody listens. Each is a connection of its own and has little time: one that
/// was begun in a silence does not outlast it by much.
fn dial_on_and_on(client: &Vantage, url: &str, tell: mpsc::Sender<Dialled>) {
    loop {
        let answer = client.http_get(url, Duration::from_millis(100));
        if tell.send(answer.ok().map(|answer| (Instant::now(), answer.body))).is_err() {
            return;
        }
        pause(Duration::from_millis(10));
    }
}

fn next_answer(told: &mpsc::Receiver<Dialled>, limit: Duration) -> Result<(Instant, String)> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if let Some(answer) = told.recv_timeout(left).with_context(|| format!("no answer for {limit:?}"))? {
            return Ok(answer);
        }
    }
}

/// Tells what happens, with times.
struct Story {
    start: Instant,
    step: Instant,
}

impl Story {
    fn new() -> Self {
        Self { start: Instant::now(), step: Instant::now() }
    }

    fn say(&self, text: &str) -> Result<()> {
        Ok(writeln!(std::io::stdout().lock(), "{text}")?)
    }

    fn step(&mut self, text: &str) -> Result<()> {
        self.step = Instant::now();
        self.say(&format!("\n▸ {text}"))
    }

    fn done(&self) -> Result<()> {
        self.say(&format!("  ({:.1} s)", self.step.elapsed().as_secs_f32()))
    }

    /// Runs kubectl and shows both the command and what it says.
    fn shell(&self, lab: &Lab, arguments: &[&str]) -> Result<()> {
        let output = lab.kubectl(arguments)?;
        self.say(&format!("  $ kubectl {}", arguments.join(" ")))?;
        output.lines().try_for_each(|line| self.say(&format!("  {line}")))
    }
}
