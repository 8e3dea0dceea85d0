//! What changes while connections are made all the time, from everywhere and in both families, and loses none: a rolling
//! update, the agent's end and return, an API server that is away. And what a foreign flush of the rules costs.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use steelyard_lab::{Lab, Member, Place, wait};

use crate::load::{Account, Established, Failed, Load, WORKERS, Way};
use crate::server::Server;
use crate::web::{NAMESPACE, SETTLE, TestService, announcer, lab, pods, wait_until_answers};

const OURS: &str = "steelyard-system";
/// How long everything may take that pods must start for, on a machine that runs the whole cluster on two busy cores.
const ROLLOUT: Duration = Duration::from_secs(90);
/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(20);

/// An address that a Service gets later.
const EXTERNAL_IP: &str = "203.0.113.9";

/// A server as users deploy one that must not lose a request: what runs goes only when its successor is ready, and is still
/// there for a while after it was told to end, until everybody knows.
const ROLLING: Server =
    Server { namespace: "e2e", name: "rolling", replicas: 3, when_crowded: "ScheduleAnyway", is_gentle: true };

/// A Service under load: the node on which the load meets it, and the ways to it.
struct Scene {
    service: TestService,
    lab: &'static Lab,
    node: Member,
    ways: Vec<Way>,
}

impl Scene {
    /// From the client to the load-balancer addresses and to the NodePort of the node that announces them; from that node
    /// and from a pod on it to the cluster IPs.
    fn new(lab: &'static Lab, name: &'static str, policy: &str, app: &str) -> Self {
        let spec = format!("type: LoadBalancer, ipFamilyPolicy: RequireDualStack, externalTrafficPolicy: {policy}");
        let service = TestService::create(lab, name, "", &spec);
        service.patch(&format!(r#"{{"spec":{{"selector":{{"app":"{app}"}}}}}}"#));
        let client = lab.at(&Place::Client).unwrap();
        let addresses = service.wait_for_addresses(2);
        for address in &addresses {
            wait_until_answers(&client, SocketAddr::new(*address, 80));
        }
        let node: Member = announcer(lab, &client, addresses[0]).parse().unwrap();
        let mut ways: Vec<Way> =
            addresses.iter().map(|address| (Place::Client, SocketAddr::new(*address, 80))).collect();
        // With policy Local a NodePort answers only as long as the node has an endpoint.
        if policy == "Cluster" {
            let node_port = service.node_port();
            ways.push((Place::Client, SocketAddr::new(node.ipv4().into(), node_port)));
            ways.push((Place::Client, SocketAddr::new(node.ipv6().into(), node_port)));
        }
        let pod = pods(lab).into_iter().find(|pod| pod.node == node.to_string()).unwrap();
        for cluster_ip in service.cluster_ips() {
            ways.push((pod.place(), SocketAddr::new(cluster_ip, 80)));
            ways.push((node.into(), SocketAddr::new(cluster_ip, 80)));
        }
        for (place, target) in &ways {
            wait_until_answers(&lab.at(place).unwrap(), *target);
        }
        Self { service, lab, node, ways }
    }

    /// Connections that a change of the node that announces must not end: an address that moves leaves behind what its old
    /// node knows of connections.
    fn established_elsewhere(&self) -> Vec<Established> {
        let balancers = self.service.addresses();
        let stays = |(_, target): &&Way| !balancers.contains(&target.ip());
        Established::open_all(self.lab, &self.ways.iter().filter(stays).cloned().collect::<Vec<_>>())
    }

    fn load(&self) -> Load {
        Load::start(self.lab, &self.ways)
    }
}

/// How often load-balancer addresses went to another node, as the client saw it.
struct Moves {
    is_over: Arc<AtomicBool>,
    watcher: JoinHandle<usize>,
}

impl Moves {
    fn watch(scene: &Scene) -> Self {
        let client = scene.lab.at(&Place::Client).unwrap();
        let addresses: Vec<String> = scene.service.addresses().iter().map(ToString::to_string).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let watch = move || {
            let mut known: BTreeMap<String, String> = BTreeMap::new();
            let mut moves = 0;
            while !until.load(Ordering::Relaxed) {
                let neighbours = client.run("ip", &["neighbour", "show", "dev", "eth0"]).unwrap();
                for line in neighbours.lines() {
                    let mut words = line.split_whitespace();
                    let Some(address) = words.next().filter(|word| addresses.iter().any(|one| one == word)) else {
                        continue;
                    };
                    let Some(mac) = words.skip_while(|word| *word != "lladdr").nth(1) else { continue };
                    let before = known.insert(address.to_owned(), mac.to_owned());
                    moves += usize::from(before.is_some_and(|before| before != mac));
                }
                // A pace, not a wait: addresses stay for a second at least.
                thread::sleep(Duration::from_millis(50));
            }
            moves
        };
        Self { is_over, watcher: thread::spawn(watch) }
    }

    /// Takes out those connections that were just open while their address went to another node: that one knows nothing of
    /// them and resets them (docs/limits.md). Of each worker that is one for each move at most.
    fn forgive(self, mut account: Account, scene: &Scene) -> Account {
        self.is_over.store(true, Ordering::Relaxed);
        let moves = self.watcher.join().unwrap();
        let addresses = scene.service.addresses();
        let is_left_behind =
            |failed: &Failed| failed.kind == ErrorKind::ConnectionReset && addresses.contains(&failed.target.ip());
        let left_behind = account.failed.iter().filter(|failed| is_left_behind(failed)).count();
        eprintln!("{moves} moves of an address, {left_behind} connections that were open then were reset");
        if left_behind <= moves * WORKERS {
            account.failed.retain(|failed| !is_left_behind(failed));
        }
        account
    }
}

fn ask_all(established: &mut [Established], when: &str) {
    established.iter_mut().for_each(|connection| connection.ask(when));
}

/// Lets the load run for a while on what a change left behind.
fn go_on(span: Duration, mut meanwhile: impl FnMut()) {
    let start = Instant::now();
    wait("the load to go on", span * 3, || {
        meanwhile();
        Ok((start.elapsed() >= span).then_some(()))
    })
    .unwrap();
}

fn roll(policy: &str, name: &'static str) {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, OURS]);
    lab.apply(&ROLLING.yaml()).unwrap();
    let rollout = |verb: &str, more: &[&str]| {
        lab.kubectl(&[&["-n", NAMESPACE, "rollout", verb, "deployment/rolling"], more].concat()).unwrap()
    };
    rollout("status", &["--timeout=90s"]);
    let scene = Scene::new(lab, name, policy, "rolling");
    let (load, moves) = (scene.load(), Moves::watch(&scene));
    go_on(Duration::from_secs(1), || {});
    rollout("restart", &[]);
    rollout("status", &["--timeout=120s"]);
    wait("the old pods to be gone", ROLLOUT, || {
        let list = lab.get_raw(&format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3Drolling"))?;
        Ok((list["items"].as_array().map(Vec::len) == Some(3)).then_some(()))
    })
    .unwrap();
    go_on(Duration::from_secs(1), || {});
    moves.forgive(load.stop(), &scene).expect_no_failure(&format!("rolling update, policy {policy}"));
    lab.kubectl(&["-n", NAMESPACE, "delete", "deployment", "rolling", "--wait=false"]).unwrap();
}

#[test]
fn a_rolling_update_with_policy_cluster_loses_no_connection() {
    roll("Cluster", "roll-cluster");
}

#[test]
fn a_rolling_update_with_policy_local_loses_no_connection() {
    roll("Local", "roll-local");
}

/// Our agent's pod on a node: its name, and how often its container was started anew, if it is ready.
fn agent(lab: &Lab, node: Member) -> Option<(String, u64)> {
    let list = lab.get_raw(&format!("/api/v1/namespaces/{OURS}/pods?fieldSelector=spec.nodeName%3D{node}")).ok()?;
    let pods = list["items"].as_array()?;
    let pod = pods.iter().find(|pod| {
        pod["metadata"]["labels"]["app.kubernetes.io/component"] == "node"
            && pod["metadata"]["deletionTimestamp"].is_null()
    })?;
    let container = &pod["status"]["containerStatuses"][0];
    let is_ready = container["ready"] == Value::Bool(true);
    is_ready.then(|| Some((pod["metadata"]["name"].as_str()?.to_owned(), container["restartCount"].as_u64()?)))?
}

/// Ends the agent of the node that everything passes, in a way, and waits for the next.
fn restart_agent(what: &str, name: &'static str, end: impl Fn(&Lab, Member, &str)) {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, OURS]);
    let scene = Scene::new(lab, name, "Cluster", "web");
    let mut established = scene.established_elsewhere();
    let before = agent(lab, scene.node).unwrap();
    let (load, moves) = (scene.load(), Moves::watch(&scene));
    go_on(Duration::from_secs(1), || {});
    end(lab, scene.node, &before.0);
    wait(&format!("another agent on {}", scene.node), ROLLOUT, || {
        ask_all(&mut established, "while the agent is away");
        Ok(agent(lab, scene.node).filter(|now| *now != before).map(drop))
    })
    .unwrap();
    go_on(Duration::from_secs(3), || ask_all(&mut established, "after the agent's return"));
    moves.forgive(load.stop(), &scene).expect_no_failure(what);
    eprintln!("{what}: {} connections that stayed open went on", established.len());
    lab.kubectl(&["-n", OURS, "rollout", "status", "daemonset/steelyard-node", "--timeout=90s"]).unwrap();
}

#[test]
fn an_agent_that_is_killed_loses_no_connection() {
    const SCRIPT: &str = "for pid in $(pidof steelyard); do \
        if tr '\\0' ' ' < /proc/$pid/cmdline | grep -q ' node '; then kill -9 $pid; fi; done";
    restart_agent("agent killed", "kill", |lab, node, _| {
        let status = lab.enter(node).unwrap().args(["sh", "-c", SCRIPT]).status().unwrap();
        assert!(status.success(), "the agent of {node}: {status}");
    });
}

#[test]
fn an_agent_whose_pod_is_deleted_loses_no_connection() {
    restart_agent("agent's pod deleted", "delete", |lab, _, pod| {
        lab.kubectl(&["-n", OURS, "delete", "pod", pod, "--wait=false"]).unwrap();
    });
}

#[test]
fn a_restart_of_all_agents_loses_no_connection() {
    restart_agent("agents rolled over", "rollout", |lab, _, _| {
        lab.kubectl(&["-n", OURS, "rollout", "restart", "daemonset/steelyard-node"]).unwrap();
        lab.kubectl(&["-n", OURS, "rollout", "status", "daemonset/steelyard-node", "--timeout=90s"]).unwrap();
    });
}

/// An API server that finds no certificate and so does not start, until this value is gone.
struct Away {
    certificate: PathBuf,
    aside: PathBuf,
}

impl Away {
    fn new(lab: &Lab) -> Self {
        let certificate = lab.layout().pki().join("apiserver.crt");
        let away = Self { aside: certificate.with_extension("aside"), certificate };
        fs::rename(&away.certificate, &away.aside).unwrap();
        let status = lab.enter(Member::Control).unwrap().args(["pkill", "-9", "kube-apiserver"]).status().unwrap();
        assert!(status.success(), "the API server: {status}");
        away
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        fs::rename(&self.aside, &self.certificate).ok();
    }
}

#[test]
fn an_api_server_that_is_away_loses_no_connection() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, OURS]);
    let scene = Scene::new(lab, "api", "Cluster", "web");
    let mut established = Established::open_all(lab, &scene.ways);
    let load = scene.load();
    let away = Away::new(lab);
    go_on(OUTAGE, || ask_all(&mut established, "while the API server is away"));
    assert!(lab.kubectl(&["get", "--raw", "/readyz", "--request-timeout=1s"]).is_err(), "the API server was away");
    drop(away);
    wait("the API server to be back", ROLLOUT, || lab.kubectl(&["get", "--raw", "/readyz"]).map(Some)).unwrap();
    // Every agent follows again. The Service's endpoints stay as they are: their controller needs longer to come back.
    wait("the Service to be changed", SETTLE, || {
        let patch = format!(r#"{{"spec":{{"externalIPs":["{EXTERNAL_IP}"]}}}}"#);
        lab.kubectl(&["-n", NAMESPACE, "patch", "service", "api", "--type=merge", "-p", &patch]).map(Some)
    })
    .unwrap();
    for node in lab.nodes() {
        wait_until_answers(&lab.at(&node.into()).unwrap(), SocketAddr::new(EXTERNAL_IP.parse().unwrap(), 80));
    }
    ask_all(&mut established, "with the API server back");
    load.stop().expect_no_failure("API server away");
    eprintln!("API server away: {} connections that stayed open went on", established.len());
    wait_until_endpoints_follow(lab, &scene.service);
}

/// Kubernetes' own controllers end with their API server and come back later: whoever tests next needs endpoints.
fn wait_until_endpoints_follow(lab: &Lab, service: &TestService) {
    service.patch(r#"{"spec":{"selector":{"app":"nobody"}}}"#);
    let selector = format!("labelSelector=kubernetes.io%2Fservice-name%3D{}", service.name);
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?{selector}");
    wait("endpoints to follow their Service again", ROLLOUT, || {
        let list = lab.get_raw(&path)?;
        let slices = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_empty = slices.iter().all(|slice| slice["endpoints"].as_array().is_none_or(Vec::is_empty));
        Ok(is_empty.then_some(()))
    })
    .unwrap();
}

/// How often the rules are taken away in each way.
const FLUSHES: usize = 3;
/// What the design promises from a foreign change to its repair.
const REPAIR: Duration = Duration::from_millis(100);
/// A SYN that was lost is sent again after a second.
const RETRANSMISSION: Duration = Duration::from_secs(1);

#[test]
fn rules_that_somebody_flushes_are_back_and_new_connections_with_them() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, OURS]);
    let scene = Scene::new(lab, "flush", "Cluster", "web");
    let mut established = Established::open_all(lab, &scene.ways);
    let node = lab.at(&scene.node.into()).unwrap();
    let load = scene.load();
    let mut repairs = Vec::new();
    for arguments in [&["flush", "ruleset"][..], &["delete", "table", "ip", "steelyard"]] {
        for _ in 0..FLUSHES {
            go_on(Duration::from_secs(1), || {});
            let start = Instant::now();
            node.run("nft", arguments).unwrap();
            let gone = Instant::now();
            // Without the pause of `wait`: milliseconds count.
            while !["table ip steelyard", "table ip6 steelyard"]
                .iter()
                .all(|table| node.run("nft", &["list", "tables"]).unwrap().contains(table))
            {
                assert!(gone.elapsed() < SETTLE, "the tables do not come back after nft {arguments:?}");
            }
            repairs.push((start, gone, Instant::now()));
            ask_all(&mut established, "after the flush");
        }
    }
    go_on(Duration::from_secs(2), || {});
    let account = load.stop();
    let mut took: Vec<Duration> = repairs.iter().map(|(_, gone, back)| *back - *gone).collect();
    took.sort();
    eprintln!("flush: {account}; repairs took {took:?}; {} connections that stayed open went on", established.len());
    account.expect_load("flush");
    // The machine is busy with a whole cluster and with looking: the quickest repair says what ours takes.
    assert!(took[0] < REPAIR && took.iter().all(|one| *one < RETRANSMISSION), "repairs took {took:?}");
    // The kernel translates nothing while there are no rules: connections that exchange packets just then may be lost.
    // An answer takes some milliseconds: what was begun a little earlier may meet it too.
    let met = |at: Instant| {
        repairs.iter().any(|(start, _, back)| at + Duration::from_millis(100) >= *start && at <= *back + REPAIR)
    };
    let others: Vec<_> = account.failed.iter().filter(|failed| !met(failed.start)).collect();
    assert!(others.is_empty(), "failed, and no flush was near: {others:#?}");
}
