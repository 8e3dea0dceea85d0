//! The lab tried as a whole: `cargo test -p steelyard-lab --test lab -- --ignored` (as root, some minutes).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

mod cluster;
mod failures;
mod hygiene;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steelyard_lab::{Datapath, Lab, Place, wait};

/// Labs are heavy and nodes are broken here: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A test server on every node, and a Service for it.
const WEB: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
        args: [netexec, --http-port=8080, --udp-port=8081]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: udp, protocol: UDP, port: 81, targetPort: 8081, nodePort: 30081}
";

/// A lab with kube-proxy and [`WEB`] on it.
fn lab_with_web() -> &'static Lab {
    let lab = Lab::shared(Datapath::KubeProxy).unwrap();
    lab.apply(WEB).unwrap();
    let nodes = lab.nodes().count();
    wait("a test server on every node", Duration::from_secs(60), || {
        Ok((web_pods(lab)?.iter().filter(|pod| pod.ready).count() == nodes).then_some(()))
    })
    .unwrap();
    lab
}

/// A pod of [`WEB`].
struct WebPod {
    name: String,
    node: String,
    addresses: Vec<std::net::IpAddr>,
    ready: bool,
}

impl WebPod {
    fn place(&self) -> Place {
        Place::pod("default", &self.name)
    }
}

fn web_pods(lab: &Lab) -> anyhow::Result<Vec<WebPod>> {
    let list = lab.get_raw("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb")?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| WebPod {
            name: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
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
        .collect())
}
