//! What the tests share: the lab, a pool, a test server on every node, Services for it, and who answered.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use serde_json::Value;
use steelyard_lab::{Datapath, Error, Lab, Member, Place, Vantage, wait};

use crate::server::Server;

/// How long one request may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(3);
/// How long the cluster may take to follow a change.
pub(crate) const SETTLE: Duration = Duration::from_secs(30);

/// The namespace of everything here.
pub(crate) const NAMESPACE: &str = "e2e";

/// A pool for everybody, and one for those who ask.
const POOLS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: e2e}
---
apiVersion: steelyard.dev/v1alpha1
kind: IPAddressPool
metadata: {name: e2e}
spec: {addresses: [192.0.2.230-192.0.2.239, "2001:db8:1::f100/124"], cooldown: 1s}
---
apiVersion: steelyard.dev/v1alpha1
kind: IPAddressPool
metadata: {name: e2e-on-request}
spec: {addresses: [192.0.2.240/30, "2001:db8:1::f200/126"], autoAssign: false, cooldown: 1s}
---
apiVersion: steelyard.dev/v1alpha1
kind: L2Advertisement
metadata: {name: e2e}
"#;

/// Twice on every node.
const WEB: Server =
    Server { namespace: NAMESPACE, name: "web", replicas: 6, when_crowded: "DoNotSchedule", is_gentle: false };

/// The lab with the test servers on it. Tests change what all share, so one runs at a time: hold on to the guard.
pub(crate) fn lab() -> (&'static Lab, MutexGuard<'static, ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    static WEB_IS_THERE: Once = Once::new();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::shared(Datapath::Steelyard).unwrap();
    WEB_IS_THERE.call_once(|| {
        lab.apply(POOLS).unwrap();
        lab.apply(&WEB.yaml()).unwrap();
        lab.kubectl(&["-n", NAMESPACE, "rollout", "status", "deployment/web", "--timeout=90s"]).unwrap();
    });
    (lab, alone)
}

/// A Service of the test servers that goes with the value.
pub(crate) struct TestService {
    lab: &'static Lab,
    pub(crate) name: &'static str,
}

impl Drop for TestService {
    fn drop(&mut self) {
        self.lab.kubectl(&["-n", NAMESPACE, "delete", "service", self.name, "--wait=false"]).ok();
    }
}

impl TestService {
    /// Creates it; `metadata` and `spec` are inner parts of YAML flow mappings, as in `type: NodePort`.
    pub(crate) fn create(lab: &'static Lab, name: &'static str, metadata: &str, spec: &str) -> Self {
        let ports =
            "ports: [{name: http, port: 80, targetPort: 8080}, {name: udp, protocol: UDP, port: 81, targetPort: 8081}]";
        lab.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}, {metadata}}}\n\
             spec: {{selector: {{app: web}}, {ports}, {spec}}}"
        ))
        .unwrap();
        Self { lab, name }
    }

    /// The object as it is now.
    pub(crate) fn object(&self) -> Value {
        self.lab.get_raw(&format!("/api/v1/namespaces/{NAMESPACE}/services/{}", self.name)).unwrap()
    }

    /// Changes it by a merge patch.
    pub(crate) fn patch(&self, patch: &str) {
        self.lab.kubectl(&["-n", NAMESPACE, "patch", "service", self.name, "--type=merge", "-p", patch]).unwrap();
    }

    /// Its addresses in status.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let object = self.object();
        let ingress = object.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).cloned();
        ingress.into_iter().flatten().filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect()
    }

    /// Waits until it has `count` addresses.
    pub(crate) fn wait_for_addresses(&self, count: usize) -> Vec<IpAddr> {
        wait(&format!("{} to have {count} addresses", self.name), SETTLE, || {
            let addresses = self.addresses();
            Ok((addresses.len() == count).then_some(addresses))
        })
        .unwrap()
    }

    /// Its cluster IPs.
    pub(crate) fn cluster_ips(&self) -> Vec<IpAddr> {
        let object = self.object();
        let addresses = object["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
        addresses.iter().map(|address| address.as_str().unwrap().parse().unwrap()).collect()
    }

    /// The node port of its HTTP port.
    pub(crate) fn node_port(&self) -> u16 {
        self.object()["spec"]["ports"][0]["nodePort"].as_u64().unwrap().try_into().unwrap()
    }

    /// Status, reason and message of a condition.
    pub(crate) fn condition(&self, kind: &str) -> Option<(String, String, String)> {
        let object = self.object();
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        let condition = conditions.into_iter().find(|condition| condition["type"] == kind)?;
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }
}

/// A pod of the test server.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ready: bool,
}

impl Pod {
    pub(crate) fn place(&self) -> Place {
        Place::pod(NAMESPACE, &self.name)
    }
}

/// All pods of the test server.
pub(crate) fn pods(lab: &Lab) -> Vec<Pod> {
    let list = lab.get_raw(&format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3Dweb")).unwrap();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let live = items.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    live.map(|pod| Pod {
        name: pod["metadata"]["name"].as_str().unwrap().to_owned(),
        node: pod["spec"]["nodeName"].as_str().unwrap().to_owned(),
        addresses: pod["status"]["podIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|ip| ip["ip"].as_str().unwrap().parse().unwrap())
            .collect(),
        ready: pod["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")),
    })
    .collect()
}

/// Waits until `target` answers.
pub(crate) fn wait_until_answers(from: &Vantage, target: SocketAddr) {
    wait(&format!("{target} to answer {}", from.name()), SETTLE, || {
        from.http_get(&format!("http://{target}/hostname"), Duration::from_millis(500)).map(|_| Some(()))
    })
    .unwrap();
}

/// The names of the pods that answer `requests` requests.
pub(crate) fn who_answers(from: &Vantage, target: SocketAddr, requests: usize) -> BTreeSet<String> {
    (0..requests).map(|_| from.http_get(&format!("http://{target}/hostname"), LIMIT).unwrap().body).collect()
}

/// The client address that a pod behind `target` sees.
pub(crate) fn client_seen(from: &Vantage, target: SocketAddr) -> IpAddr {
    let body = from.http_get(&format!("http://{target}/clientip"), LIMIT).unwrap().body;
    body.parse::<SocketAddr>().unwrap_or_else(|_| panic!("{body:?} is no address and port")).ip()
}

/// The node to which packets of `client` for an address go, by the hardware address that the client learned for it. What
/// nodes say of themselves (NodeAnnouncement) may be old: a dead one's object stays as it was.
pub(crate) fn announcer(lab: &Lab, client: &Vantage, address: IpAddr) -> String {
    wait(&format!("{} to know who has {address}", client.name()), SETTLE, || {
        let learned = client.run("ip", &["neighbour", "show", "to", &address.to_string(), "dev", "eth0"])?;
        for node in lab.nodes() {
            let own = lab.at(&node.into())?.run("ip", &["-brief", "link", "show", "eth0"])?;
            if own.split_whitespace().any(|mac| mac.contains(':') && learned.contains(&format!("lladdr {mac} "))) {
                return Ok(Some(node.to_string()));
            }
        }
        Err(Error::msg(format!("no node has the hardware address of {learned:?}")))
    })
    .unwrap()
}

/// The node of the pod that answers now.
pub(crate) fn answering_node(from: &Vantage, pods: &[Pod], target: SocketAddr) -> String {
    let name = from.http_get(&format!("http://{target}/hostname"), LIMIT).unwrap().body;
    node_of(pods, &name)
}

/// The node on which a pod runs.
pub(crate) fn node_of(pods: &[Pod], name: &str) -> String {
    let pod = pods.iter().find(|pod| pod.name == name);
    pod.unwrap_or_else(|| panic!("{name} is no pod of ours")).node.clone()
}

/// The outside client's address of the same family as `address`.
pub(crate) fn client_address(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Member::Client.ipv4().into() } else { Member::Client.ipv6().into() }
}
