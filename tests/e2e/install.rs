//! What `helm install` brought: the definitions, the rights, and a binary that can be replaced under way.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use serde_json::json;
use steelyard_lab::{Lab, Place, Progress, steelyard_binary, wait};

use crate::crds;
use crate::web::{NAMESPACE, SETTLE, TestService, lab, wait_until_answers};

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
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("labelled.json");
    // By server-side apply, as the agent does it: it has no right to get these objects, which kubectl otherwise does first.
    let apply = ["apply", "--server-side", "--validate=false", "--filename", manifest.to_str().unwrap(), agent];
    let label = |node: &str, of: &str| {
        let object = json!({
            "apiVersion": "steelyard.dev/v1alpha1",
            "kind": "NodeAnnouncement",
            "metadata": {"name": of, "labels": {"tried": "yes"}},
        });
        fs::write(&manifest, object.to_string()).unwrap();
        let extra = format!("--as-user-extra=authentication.kubernetes.io/node-name={node}");
        lab.kubectl(&[&apply[..], &[&extra]].concat())
    };
    label("node1", "node1").unwrap();
    let refused = format!("{:#}", label("node1", "node2").unwrap_err());
    assert!(refused.contains("only the NodeAnnouncement of its own node"), "{refused}");
}

/// The image that each of our pods runs, by digest.
fn images(lab: &Lab) -> BTreeMap<String, String> {
    let pods =
        lab.get_raw("/api/v1/namespaces/steelyard-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dsteelyard");
    let pods = pods.unwrap()["items"].as_array().cloned().unwrap_or_default();
    let live = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    live.map(|pod| {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        (text(&pod["metadata"]["name"]), text(&pod["status"]["containerStatuses"][0]["imageID"]))
    })
    .collect()
}

#[test]
fn a_new_binary_is_loaded_by_a_rolling_restart() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let service = TestService::create(lab, "rolling", "", "type: LoadBalancer");
    let address = service.wait_for_addresses(1)[0];
    let client = lab.at(&Place::Client).unwrap();
    wait_until_answers(&client, SocketAddr::new(address, 80));
    let before = images(lab);
    let progress = Progress::quiet();
    let mut binary = fs::read(steelyard_binary(&mut |text| progress.say(text)).unwrap()).unwrap();
    // The same program, another file: what follows the sections of an executable is not looked at.
    binary.push(0);
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("steelyard");
    fs::write(&other, binary).unwrap();
    lab.load(&other).unwrap();
    let after = wait("only pods of the new image", SETTLE, || {
        let after = images(lab);
        let are_new = after.values().all(|image| !image.is_empty() && !before.values().any(|old| old == image));
        Ok((are_new && after.len() == before.len()).then_some(after))
    })
    .unwrap();
    assert!(after.keys().all(|pod| !before.contains_key(pod)), "{after:?} are not all new pods");
    wait_until_answers(&client, SocketAddr::new(address, 80));
    assert_eq!(service.addresses(), [address]);
}
