//! What `helm install` brought: the definitions, the rights, and a binary that can be replaced under way.

use std::net::SocketAddr;

use steelyard_lab::{Place, Progress, steelyard_binary};

use crate::crds;
use crate::web::{NAMESPACE, TestService, lab, wait_until_answers};

#[test]
fn the_api_server_takes_good_objects_and_refuses_bad_ones() {
    let (lab, _alone) = lab();
    let apply = |manifest: &str| lab.apply(manifest).map(drop).map_err(|error| format!("{error:#}"));
    let delete = |manifest: &str| drop(lab.delete(manifest));
    let surprises = crds::run(apply, delete);
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
    assert!(crds::cases().len() > 20, "only {} cases", crds::cases().len());
}

#[test]
fn an_agent_writes_only_for_its_own_node() {
    let (lab, _alone) = lab();
    let agent = "--as=system:serviceaccount:steelyard-system:steelyard-node";
    let label = |node: &str, of: &str| {
        let extra = format!("--as-user-extra=authentication.kubernetes.io/node-name={node}");
        lab.kubectl(&["label", "nodeannouncement", of, "tried=yes", "--overwrite", agent, &extra])
    };
    label("node1", "node1").unwrap();
    let refused = format!("{:#}", label("node1", "node2").unwrap_err());
    assert!(refused.contains("only the NodeAnnouncement of its own node"), "{refused}");
}

#[test]
fn a_new_binary_is_loaded_by_a_rolling_restart() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let service = TestService::create(lab, "rolling", "", "type: LoadBalancer");
    let address = service.wait_for_addresses(1)[0];
    let client = lab.at(&Place::Client).unwrap();
    wait_until_answers(&client, SocketAddr::new(address, 80));
    let progress = Progress::quiet();
    lab.load(&steelyard_binary(&mut |text| progress.say(text)).unwrap()).unwrap();
    wait_until_answers(&client, SocketAddr::new(address, 80));
    assert_eq!(service.addresses(), [address]);
}
