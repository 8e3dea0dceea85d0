//! The speaker on a real cluster: another node takes over, and nobody announces what it cannot forward.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use steelyard_lab::{Failure, Lab, Place, Vantage, wait};

use crate::web::{NAMESPACE, TestService, announcer, lab, wait_until_answers};

/// How long an address may be silent after its node went, on a machine that runs the whole cluster on two busy cores.
const LONGEST_GAP: Duration = Duration::from_secs(3);

/// Breaks the node that announces an address of a Service with policy `Local`, so that whoever answers can also forward.
fn take_over(failure: Failure, name: &'static str) {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let spec = "type: LoadBalancer, ipFamilyPolicy: RequireDualStack, externalTrafficPolicy: Local";
    let service = TestService::create(lab, name, "", spec);
    let addresses = service.wait_for_addresses(2);
    let client = lab.at(&Place::Client).unwrap();
    for address in &addresses {
        wait_until_answers(&client, SocketAddr::new(*address, 80));
    }
    let old = announcer(lab, addresses[0], None);
    assert_eq!(announcer(lab, addresses[1], None), old, "both families of a Service stay together");
    let healed = Healed { lab, node: &old };
    let start = Instant::now();
    lab.fail(&old, failure).unwrap();
    for address in &addresses {
        let gap = gap(&client, *address, start);
        println!("{failure:?} of {old}: {address} answered again after {} ms", gap.as_millis());
        assert!(gap < LONGEST_GAP, "{address} was silent for {gap:?}");
    }
    for address in &addresses {
        announcer(lab, *address, Some(&old));
    }
    let (status, ..) = service.condition("steelyard.dev/Announced").expect("the Service says who announces it");
    assert_eq!(status, "True");
    drop(healed);
}

/// Time from `start` until an address answers.
fn gap(client: &Vantage, address: IpAddr, start: Instant) -> Duration {
    let target = SocketAddr::new(address, 80);
    wait(&format!("{target} to answer again"), Duration::from_secs(30), || {
        client.http_get(&format!("http://{target}/hostname"), Duration::from_millis(100)).map(|_| Some(()))
    })
    .unwrap();
    start.elapsed()
}

/// Heals a node and waits until it is of use again, also when the test fails.
struct Healed<'a> {
    lab: &'a Lab,
    node: &'a str,
}

impl Drop for Healed<'_> {
    fn drop(&mut self) {
        self.lab.heal(self.node).ok();
        let ready = ["wait", "--for=condition=Ready", "node", self.node, "--timeout=60s"];
        self.lab.kubectl(&ready).ok();
        let rollout = ["-n", NAMESPACE, "rollout", "status", "deployment/web", "--timeout=90s"];
        self.lab.kubectl(&rollout).ok();
        let agents = ["-n", "steelyard-system", "rollout", "status", "daemonset/steelyard-node", "--timeout=90s"];
        self.lab.kubectl(&agents).ok();
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
