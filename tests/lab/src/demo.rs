//! `steelyard-lab demo`: shows Steelyard at work on a cluster in a box, in plain words, with the time of each step.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::failure::Failure;
use crate::install::steelyard_binary;
use crate::lab::{Datapath, Lab, Options};
use crate::layout::{LabName, Member};
use crate::place::{Place, Vantage};
use crate::progress::Progress;
use crate::wait::wait;

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
    let lab = if keep { Lab::start(&options, &progress)? } else { Lab::start_guarded(&options, &progress)? };
    story.done()?;

    story.step(
        "Installing Steelyard with Helm: a controller assigns addresses, an agent on each node announces and forwards",
    )?;
    lab.install_steelyard(&binary, &[])?;
    lab.wait_for_dns()?;
    story.shell(&lab, &["get", "pods", "--all-namespaces", "--output", "wide"])?;
    story.done()?;

    let shown = Demo { lab: &lab };
    shown.services(&mut story)?;
    let address = shown.spread(&mut story)?;
    shown.name_from_a_pod(&mut story)?;
    shown.client_address(&mut story, address)?;
    shown.power_off(&mut story, address)?;

    if keep {
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

    /// The node that says that it announces an address, other than `not`: a dead node's object still says what it did last.
    fn announcer(&self, address: IpAddr, not: Option<&str>) -> Result<Option<String>> {
        let list = self.lab.get_raw("/apis/steelyard.dev/v1alpha1/nodeannouncements")?;
        let nodes = list.pointer("/items").and_then(Value::as_array).cloned().unwrap_or_default();
        let announces = |node: &&Value| {
            let announcements = node.pointer("/status/announcements").and_then(Value::as_array);
            announcements.into_iter().flatten().any(|one| {
                one.get("address").and_then(Value::as_str).and_then(|text| text.parse().ok()) == Some(address)
            })
        };
        let mut names = nodes.iter().filter(announces).filter_map(|node| node.pointer("/metadata/name")?.as_str());
        Ok(names.find(|name| Some(*name) != not).map(str::to_owned))
    }

    fn power_off(&self, story: &mut Story, address: IpAddr) -> Result<()> {
        let old = wait("some node to say that it announces the address", Duration::from_secs(15), || {
            self.announcer(address, None)
        })?;
        story.step(&format!("{old} announces {address}. Powering it off while the client dials every 10 ms"))?;
        let client = self.lab.at(&Place::Client)?;
        let target = SocketAddr::new(address, 80);
        self.answers(&client, target)?;
        let off = Instant::now();
        self.lab.fail(&old, Failure::PowerOff)?;
        wait(&format!("{address} to answer again"), Duration::from_secs(30), || {
            client.http_get(&format!("http://{target}/hostname"), Duration::from_millis(100)).map(|_| Some(()))
        })?;
        let gap = off.elapsed();
        let new = wait("another node to say that it announces the address", Duration::from_secs(15), || {
            self.announcer(address, Some(&old))
        })?;
        story.say(&format!(
            "  {address} answered again {} ms after the power-off began, announced by {new}",
            gap.as_millis()
        ))?;
        story.done()
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
