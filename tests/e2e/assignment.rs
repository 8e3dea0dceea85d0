//! The controller on a real cluster: who gets which address, and what the objects say.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use steelyard_lab::{Error, Lab, Place, error_kind, wait};

use crate::web::{NAMESPACE, SETTLE, TestService, lab, wait_until_answers};

const ASSIGNED: &str = "steelyard.dev/AddressAssigned";

/// Holders and pool of the claim of an address.
fn claim(lab: &Lab, address: IpAddr) -> Option<(Vec<String>, String)> {
    let list = lab.get_raw("/apis/steelyard.dev/v1alpha1/addressclaims").unwrap();
    let claims = list["items"].as_array().cloned().unwrap_or_default();
    let claim = claims.into_iter().find(|claim| claim["spec"]["address"] == address.to_string())?;
    let holders = claim["spec"]["holders"].as_array().cloned().unwrap_or_default();
    let holders = holders.iter().map(|holder| holder["name"].as_str().unwrap().to_owned()).collect();
    Some((holders, claim["spec"]["pool"].as_str().unwrap().to_owned()))
}

#[test]
fn an_automatic_address_is_claimed_and_told_everywhere() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let service = TestService::create(lab, "automatic", "", "type: LoadBalancer, ipFamilyPolicy: PreferDualStack");
    let addresses = service.wait_for_addresses(2);
    for address in addresses {
        assert_eq!(claim(lab, address), Some((vec!["automatic".to_owned()], "e2e".to_owned())));
    }
    let object = service.object();
    assert_eq!(object["metadata"]["annotations"]["steelyard.dev/allocated-from-pool"], "e2e");
    assert!(
        object["status"]["loadBalancer"]["ingress"].as_array().unwrap().iter().all(|entry| entry["ipMode"] == "VIP")
    );
    let (status, reason, _) = service.condition(ASSIGNED).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Assigned"));
    wait("an event that tells of the address", SETTLE, || {
        let events = lab.kubectl(&["-n", NAMESPACE, "get", "events", "--field-selector", "reason=AddressAssigned"])?;
        Ok(events.contains("service/automatic").then_some(()))
    })
    .unwrap();
    let pool = lab.get_raw("/apis/steelyard.dev/v1alpha1/ipaddresspools/e2e").unwrap();
    assert!(pool["status"]["assigned"].as_u64().unwrap_or_default() >= 2, "{}", pool["status"]);
}

#[test]
fn a_requested_address_and_a_requested_pool_are_given() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let by_address = TestService::create(
        lab,
        "by-address",
        "annotations: {steelyard.dev/loadBalancerIPs: '192.0.2.237,2001:db8:1::f107'}",
        "type: LoadBalancer, ipFamilyPolicy: RequireDualStack",
    );
    let by_pool = TestService::create(
        lab,
        "by-pool",
        "annotations: {metallb.io/address-pool: e2e-on-request}",
        "type: LoadBalancer",
    );
    let expected: Vec<IpAddr> = vec!["192.0.2.237".parse().unwrap(), "2001:db8:1::f107".parse().unwrap()];
    assert_eq!(by_address.wait_for_addresses(2), expected);
    let given = by_pool.wait_for_addresses(1)[0];
    assert_eq!(claim(lab, given).unwrap().1, "e2e-on-request");
}

#[test]
fn a_refusal_names_the_reason_on_the_service_and_its_end_is_told_too() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let wish = "annotations: {steelyard.dev/loadBalancerIPs: 203.0.113.9}";
    let service = TestService::create(lab, "refused", wish, "type: LoadBalancer");
    let message = wait("the refusal to stand on the Service", SETTLE, || {
        Ok(service.condition(ASSIGNED).filter(|(status, ..)| status == "False").map(|(.., message)| message))
    })
    .unwrap();
    assert!(message.contains("203.0.113.9"), "{message}");
    assert!(service.addresses().is_empty());
    service.patch(r#"{"metadata":{"annotations":{"steelyard.dev/loadBalancerIPs":"192.0.2.238"}}}"#);
    assert_eq!(service.wait_for_addresses(1), ["192.0.2.238".parse::<IpAddr>().unwrap()]);
    wait("the condition to be true", SETTLE, || {
        Ok(service.condition(ASSIGNED).filter(|(status, ..)| status == "True").map(drop))
    })
    .unwrap();
}

#[test]
fn addresses_outlive_the_controller_and_a_standby_takes_over() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let old = TestService::create(lab, "before", "", "type: LoadBalancer");
    let held = old.wait_for_addresses(1);
    let lease = lab.get_raw("/apis/coordination.k8s.io/v1/namespaces/steelyard-system/leases").unwrap();
    let leader = lease["items"].as_array().into_iter().flatten().find_map(|lease| {
        let holder = lease["spec"]["holderIdentity"].as_str()?;
        holder.contains("controller").then(|| holder.to_owned())
    });
    let leader = leader.expect("a controller leads");
    lab.kubectl(&["-n", "steelyard-system", "delete", "pod", &leader, "--grace-period=0", "--force"]).unwrap();
    let new = TestService::create(lab, "after", "", "type: LoadBalancer");
    wait("the standby to assign", Duration::from_secs(10), || Ok((!new.addresses().is_empty()).then_some(()))).unwrap();
    assert_eq!(old.addresses(), held, "an address moved");
}

#[test]
fn a_service_of_another_class_is_left_alone() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let foreign = TestService::create(lab, "foreign", "", "type: LoadBalancer, loadBalancerClass: example.com/other");
    let ours = TestService::create(lab, "ours", "", "type: LoadBalancer, loadBalancerClass: steelyard.dev/steelyard");
    ours.wait_for_addresses(1);
    let object = foreign.object();
    assert_eq!(object["status"]["loadBalancer"], serde_json::json!({}));
    assert_eq!(object["metadata"]["finalizers"], Value::Null);
    assert_eq!(foreign.condition(ASSIGNED), None);
}

#[test]
fn a_released_address_is_silent_and_can_be_had_again() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let wish = "annotations: {steelyard.dev/loadBalancerIPs: 192.0.2.239}";
    let service = TestService::create(lab, "released", wish, "type: LoadBalancer");
    let address = service.wait_for_addresses(1)[0];
    let target = SocketAddr::new(address, 80);
    let client = lab.at(&Place::Client).unwrap();
    wait_until_answers(&client, target);
    service.patch(r#"{"spec":{"type":"ClusterIP"}}"#);
    wait("the status to be empty and the claim free", SETTLE, || {
        let is_free = claim(lab, address).is_none_or(|(holders, _)| holders.is_empty());
        Ok((service.addresses().is_empty() && is_free).then_some(()))
    })
    .unwrap();
    wait(&format!("nobody to say where {address} is"), SETTLE, || {
        // The client asks anew, instead of sending to where the address was.
        client.run("ip", &["neighbour", "flush", "to", &address.to_string()])?;
        // The kernel gives up asking after three seconds, and says so; whoever announced it would let it connect, drop
        // what it sends, or refuse.
        let error = client.tcp_connect(target, Duration::from_secs(8)).err().ok_or_else(|| Error::msg("it accepts"))?;
        if error_kind(&error) == Some(ErrorKind::HostUnreachable) { Ok(Some(())) } else { Err(error) }
    })
    .unwrap();
    let other = TestService::create(lab, "next-holder", wish, "type: LoadBalancer");
    assert_eq!(other.wait_for_addresses(1), [address]);
    wait_until_answers(&client, target);
}
