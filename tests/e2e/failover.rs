//! The speaker on a real cluster: another node takes over, and nobody announces what it cannot forward.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use steelyard_lab::{Error, Failure, Lab, Place, wait};

use crate::web::{NAMESPACE, Pod, TestService, announcer, answering_node, lab, node_of, pods, wait_until_answers};

/// How long an address may be silent after its node went, on a machine that runs the whole cluster on two busy cores.
const LONGEST_GAP: Duration = Duration::from_secs(3);
/// How long a node may take to boot and to be of use.
const BOOT: Duration = Duration::from_secs(90);

/// Breaks the node that announces an address of a Service with policy `Local`: who answers then is a pod on the node to
/// which the client's packets go.
fn take_over(failure: Failure, name: &'static str) {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let spec = "type: LoadBalancer, ipFamilyPolicy: RequireDualStack, externalTrafficPolicy: Local";
    let service = TestService::create(lab, name, "", spec);
    let targets: Vec<_> = service.wait_for_addresses(2).into_iter().map(|ip| SocketAddr::new(ip, 80)).collect();
    let client = lab.at(&Place::Client).unwrap();
    for target in &targets {
        wait_until_answers(&client, *target);
    }
    let pods = pods(lab);
    let old = answering_node(&client, &pods, targets[0]);
    for target in &targets {
        assert_eq!(answering_node(&client, &pods, *target), old, "both families of a Service stay together");
        assert_eq!(announcer(lab, &client, target.ip()), old);
    }
    let healed = Healed::new(lab, &old);
    let start = Instant::now();
    lab.fail(&old, failure).unwrap();
    let mut new = String::new();
    for target in &targets {
        // One that cannot be heard cannot be the one that answers.
        let name = wait(&format!("{target} to answer again"), Duration::from_secs(30), || {
            client.http_get(&format!("http://{target}/hostname"), Duration::from_millis(100)).map(|got| Some(got.body))
        })
        .unwrap();
        let gap = start.elapsed();
        new = node_of(&pods, &name);
        assert_ne!(new, old, "{name} answered for {target} from a node that is broken");
        eprintln!("{failure:?} of {old}: {target} was answered by {name} of {new} after {} ms", gap.as_millis());
        assert!(gap < LONGEST_GAP, "{target} was silent for {gap:?}");
    }
    wait("the Service to say who announces it now", BOOT, || {
        let (status, _, message) = service.condition("steelyard.dev/Announced").unwrap_or_default();
        let by = |node: &str| {
            targets.iter().all(|at| message.contains(&format!("{} is announced by node {node} ", at.ip())))
        };
        if status == "True" && by(&new) { Ok(Some(())) } else { Err(Error::msg(format!("{status}: {message}"))) }
    })
    .unwrap();
    drop(healed);
}

/// Heals a node and waits until it is of use again, also when the test fails.
struct Healed<'a> {
    lab: &'a Lab,
    node: &'a str,
}

impl<'a> Healed<'a> {
    fn new(lab: &'a Lab, node: &'a str) -> Self {
        Self { lab, node }
    }

    /// What the node's kubelet and our agent on it wrote last. Until they write anew, everything that the API server says
    /// of the node (Ready, its pods Ready) may be from before it broke.
    fn marks(&self) -> Result<[String; 2], Error> {
        let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", self.node);
        let agent = format!("/apis/steelyard.dev/v1alpha1/nodeannouncements/{}", self.node);
        let version = |path: &str| Ok::<_, Error>(self.lab.get_raw(path)?["metadata"]["resourceVersion"].to_string());
        Ok([version(&lease)?, version(&agent)?])
    }

    fn heal(&self) -> Result<(), Error> {
        // Nothing of a node that is cut off can be under way.
        let before = self.marks()?;
        self.lab.heal(self.node)?;
        wait(&format!("the kubelet and the agent of {} to write", self.node), BOOT, || {
            let after = self.marks()?;
            Ok(before.iter().zip(&after).all(|(before, after)| before != after).then_some(()))
        })?;
        self.lab.kubectl(&["wait", "--for=condition=Ready", "node", self.node, "--timeout=60s"])?;
        let agents = ["-n", "steelyard-system", "rollout", "status", "daemonset/steelyard-node", "--timeout=90s"];
        self.lab.kubectl(&agents)?;
        wait(&format!("the pods of {} to serve", self.node), BOOT, || {
            let pods: Vec<_> = pods(self.lab).into_iter().filter(|pod| pod.node == self.node).collect();
            pods.iter().try_for_each(|pod| self.serves(pod))?;
            Ok((!pods.is_empty()).then_some(()))
        })
    }

    /// Whether the pod answers at the addresses that the API server knows: a boot gives it others.
    fn serves(&self, pod: &Pod) -> Result<(), Error> {
        let from = self.lab.at(&Place::Control)?;
        for address in &pod.addresses {
            let url = format!("http://{}/hostname", SocketAddr::new(*address, 8080));
            let name = from.http_get(&url, Duration::from_secs(1))?.body;
            if name != pod.name {
                return Err(Error::msg(format!("{url} is {name}, not {}", pod.name)));
            }
        }
        if pod.ready && pod.addresses.len() == 2 {
            Ok(())
        } else {
            Err(Error::msg(format!("{} is not ready", pod.name)))
        }
    }
}

impl Drop for Healed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed already and says why; a second panic would end the whole run.
            catch_unwind(AssertUnwindSafe(|| self.heal().ok())).ok();
        } else {
            self.heal().unwrap();
        }
    }
}

#[test]
fn an_address_moves_when_its_node_loses_power() {
    take_over(Failure::PowerOff, "power-off");
}

#[test]
fn an_address_moves_when_its_node_loses_its_link() {
    take_over(Failure::LinkDown, "link-down");
}
