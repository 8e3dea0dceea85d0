//! Nodes break as asked, and heal.

use std::net::SocketAddr;
use std::time::Duration;

use steelyard_lab::{Failure, Lab, Member, Place, wait};

use crate::{alone, lab_with_web, web_pods};

/// Heals the node whatever becomes of the test.
struct Broken<'a>(&'a Lab, &'a str);

impl Drop for Broken<'_> {
    fn drop(&mut self) {
        self.0.heal(self.1).unwrap();
    }
}

/// Whether the client gets an answer to a ping of the node's kernel.
fn pings(lab: &Lab, node: Member) -> bool {
    let client = lab.at(&Place::Client).unwrap();
    client.run("ping", &["-c1", "-W1", &node.ipv4().to_string()]).is_ok()
        && client.run("ping", &["-c1", "-W1", &node.ipv6().to_string()]).is_ok()
}

/// Whether the test server on the node answers.
fn serves(lab: &Lab, node: &str) -> bool {
    let pod = web_pods(lab).unwrap().into_iter().find(|pod| pod.node == node).unwrap();
    let url = format!("http://{}/hostname", SocketAddr::new(pod.addresses[0], 8080));
    lab.at(&Place::Control).unwrap().http_get(&url, Duration::from_secs(1)).is_ok()
}

fn carrier(lab: &Lab, node: Member) -> String {
    lab.at(&node.into()).unwrap().run("ip", &["-br", "link", "show", "eth0"]).unwrap()
}

#[test]
#[ignore = "needs root and a lab"]
fn a_node_without_cable_or_with_a_deaf_port_is_silent_until_healed() {
    let _alone = alone();
    let lab = lab_with_web();
    let _diagnosis = lab.diagnose_on_panic(&["default"]);
    let node = Member::Node(2);
    for (failure, has_carrier) in [(Failure::LinkDown, false), (Failure::Isolate, true)] {
        assert!(pings(lab, node) && serves(lab, "node2"), "before {failure}");
        {
            let _broken = Broken(lab, "node2");
            lab.fail("node2", failure).unwrap();
            assert_eq!(lab.failures("node2").unwrap(), [failure]);
            assert!(!pings(lab, node) && !serves(lab, "node2"), "{failure}");
            assert_eq!(!carrier(lab, node).contains("NO-CARRIER"), has_carrier, "{failure}: {}", carrier(lab, node));
        }
        assert_eq!(lab.failures("node2").unwrap(), []);
        wait("the healed node to answer", Duration::from_secs(10), || {
            Ok((pings(lab, node) && serves(lab, "node2")).then_some(()))
        })
        .unwrap();
    }
}

#[test]
#[ignore = "needs root and a lab"]
fn a_paused_node_answers_ping_but_its_pods_are_still() {
    let _alone = alone();
    let lab = lab_with_web();
    let _diagnosis = lab.diagnose_on_panic(&["default"]);
    {
        let _broken = Broken(lab, "node3");
        lab.fail("node3", Failure::Pause).unwrap();
        assert_eq!(lab.failures("node3").unwrap(), [Failure::Pause]);
        assert!(pings(lab, Member::Node(3)));
        assert!(!serves(lab, "node3"));
    }
    wait("the thawed pod to answer", Duration::from_secs(10), || Ok(serves(lab, "node3").then_some(()))).unwrap();
}

#[test]
#[ignore = "needs root and a lab"]
fn a_node_whose_power_was_cut_boots_and_runs_its_pods_again() {
    let _alone = alone();
    let lab = lab_with_web();
    let _diagnosis = lab.diagnose_on_panic(&["default"]);
    // A rule that a reboot must lose.
    let node = lab.at(&Place::Node(1)).unwrap();
    node.run("nft", &["add", "table", "ip", "before-the-cut"]).unwrap();
    {
        let _broken = Broken(lab, "node1");
        lab.fail("node1", Failure::PowerOff).unwrap();
        assert_eq!(lab.failures("node1").unwrap(), [Failure::PowerOff]);
        assert!(!pings(lab, Member::Node(1)));
        assert!(lab.fail("node1", Failure::Pause).is_err(), "a node without power has nothing to pause");
    }
    wait("the pod to run again", Duration::from_secs(60), || Ok(serves(lab, "node1").then_some(()))).unwrap();
    let rules = lab.at(&Place::Node(1)).unwrap().run("nft", &["list", "tables"]).unwrap();
    assert!(!rules.contains("before-the-cut"), "{rules}");
    wait("the API server to hold it for Ready", Duration::from_secs(60), || {
        let pods = web_pods(lab)?;
        Ok(pods.iter().any(|pod| pod.node == "node1" && pod.ready).then_some(()))
    })
    .unwrap();
}
