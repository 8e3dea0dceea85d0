//! The datapath on a real cluster: every kind of Service, from everywhere, in both families.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use steelyard_lab::{Error, Place, Vantage, error_kind, wait};

use crate::web::{
    LIMIT, NAMESPACE, SETTLE, TestService, announcer, client_address, client_seen, lab, node_of, pods,
    wait_until_answers, who_answers,
};

#[test]
fn an_outside_client_reaches_pods_of_all_nodes_by_the_load_balancer_address() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let service = TestService::create(lab, "balancer", "", "type: LoadBalancer, ipFamilyPolicy: RequireDualStack");
    let pods = pods(lab);
    for place in [Place::Client, Place::Remote] {
        let client = lab.at(&place).unwrap();
        for address in service.wait_for_addresses(2) {
            let target = SocketAddr::new(address, 80);
            wait_until_answers(&client, target);
            let answered = who_answers(&client, target, 60);
            let nodes: BTreeSet<_> =
                pods.iter().filter(|pod| answered.contains(&pod.name)).map(|pod| &pod.node).collect();
            assert_eq!(nodes.len(), 3, "{place} got answers from {answered:?} only");
            assert_ne!(client_seen(&client, target), client_address(address), "policy Cluster is masqueraded");
            let udp = client.udp_exchange(SocketAddr::new(address, 81), b"echo steelyard", LIMIT).unwrap();
            assert_eq!(udp, b"steelyard");
        }
    }
}

#[test]
fn a_node_port_answers_on_every_node() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let service = TestService::create(lab, "node-port", "", "type: NodePort, ipFamilyPolicy: RequireDualStack");
    let client = lab.at(&Place::Client).unwrap();
    for node in lab.nodes() {
        for address in [node.ipv4().into(), node.ipv6().into()] {
            let target = SocketAddr::new(address, service.node_port());
            wait_until_answers(&client, target);
            assert!(who_answers(&client, target, 30).len() > 1, "{target} is always answered by one pod");
        }
    }
}

#[test]
fn pods_reach_a_cluster_ip_by_name_and_keep_their_address() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "kube-system", "steelyard-system"]);
    let service = TestService::create(lab, "my-service", "", "ipFamilyPolicy: RequireDualStack");
    let pods = pods(lab);
    let control = lab.at(&Place::Control).unwrap();
    for pod in &pods {
        let dial = "dial?host=my-service&port=80&protocol=http&request=hostname";
        let answer = control.http_get(&format!("http://{}/{dial}", SocketAddr::new(pod.addresses[0], 8080)), SETTLE);
        let body = answer.unwrap().body;
        assert!(body.contains("\"responses\":[\"web-"), "{} got {body}", pod.name);
        let vantage = lab.at(&pod.place()).unwrap();
        for (cluster_ip, own) in service.cluster_ips().into_iter().zip(&pod.addresses) {
            let target = SocketAddr::new(cluster_ip, 80);
            wait_until_answers(&vantage, target);
            assert!(who_answers(&vantage, target, 20).len() > 1);
            let others = (0..20).map(|_| client_seen(&vantage, target)).filter(|seen| seen == own).count();
            assert!(others > 0, "no pod sees {own}, the address of {}", pod.name);
        }
    }
    let node = lab.at(&Place::Node(1)).unwrap();
    for cluster_ip in service.cluster_ips() {
        wait_until_answers(&node, SocketAddr::new(cluster_ip, 80));
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let service = TestService::create(lab, "hairpin", "", "ipFamilyPolicy: RequireDualStack");
    let pod = pods(lab).remove(0);
    let vantage = lab.at(&pod.place()).unwrap();
    for cluster_ip in service.cluster_ips() {
        let target = SocketAddr::new(cluster_ip, 80);
        wait_until_answers(&vantage, target);
        assert!(who_answers(&vantage, target, 60).contains(&pod.name), "{} never reached itself", pod.name);
    }
}

#[test]
fn policy_local_keeps_the_client_and_stays_on_the_node() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let spec = "type: LoadBalancer, ipFamilyPolicy: RequireDualStack, externalTrafficPolicy: Local";
    let service = TestService::create(lab, "local", "", spec);
    let client = lab.at(&Place::Client).unwrap();
    let pods = pods(lab);
    for address in service.wait_for_addresses(2) {
        let target = SocketAddr::new(address, 80);
        wait_until_answers(&client, target);
        assert_eq!(client_seen(&client, target), client_address(address));
        let node = announcer(lab, &client, address);
        for name in who_answers(&client, target, 30) {
            assert_eq!(node_of(&pods, &name), node, "{name} answered for {address}, which {node} announces");
        }
        let pod = lab.at(&pods[0].place()).unwrap();
        assert!(who_answers(&pod, target, 40).len() > 2, "a pod is inside the cluster: it may reach all endpoints");
    }
}

#[test]
fn without_endpoints_a_connection_is_refused_at_once() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let service = TestService::create(lab, "empty", "", "type: NodePort, ipFamilyPolicy: RequireDualStack");
    service.patch(r#"{"spec":{"selector":{"app":"nobody"}}}"#);
    let client = lab.at(&Place::Client).unwrap();
    let pod = lab.at(&pods(lab)[0].place()).unwrap();
    for node in lab.nodes() {
        for address in [node.ipv4().into(), node.ipv6().into()] {
            expect_refused(&client, SocketAddr::new(address, service.node_port()));
        }
    }
    for cluster_ip in service.cluster_ips() {
        expect_refused(&pod, SocketAddr::new(cluster_ip, 80));
    }
}

/// Waits until `target` refuses, which must come long before a time-out.
fn expect_refused(from: &Vantage, target: SocketAddr) {
    wait(&format!("{target} to refuse {}", from.name()), SETTLE, || {
        // An ICMP error that comes while connect() still holds the socket, as between namespaces of one machine, counts
        // only at the first retransmission, a second later.
        match from.tcp_connect(target, LIMIT) {
            Ok(_) => not_yet("it accepts"),
            Err(error) if error_kind(&error) == Some(ErrorKind::ConnectionRefused) => Ok(Some(())),
            Err(error) => Err(error),
        }
    })
    .unwrap();
}

/// Not yet: the reason shows when the wait ends.
fn not_yet<T>(reason: &'static str) -> Result<Option<T>, Error> {
    Err(Error::msg(reason))
}

#[test]
fn policy_local_drops_where_only_other_nodes_have_endpoints() {
    let (lab, _alone) = lab();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, "steelyard-system"]);
    let pod = pods(lab).remove(0);
    lab.kubectl(&["-n", NAMESPACE, "label", "pod", &pod.name, "alone=yes"]).unwrap();
    let spec = "type: NodePort, ipFamilyPolicy: RequireDualStack, externalTrafficPolicy: Local";
    let service = TestService::create(lab, "local-drop", "", spec);
    service.patch(r#"{"spec":{"selector":{"alone":"yes"}}}"#);
    let client = lab.at(&Place::Client).unwrap();
    for node in lab.nodes() {
        for address in [node.ipv4().into(), node.ipv6().into()] {
            let target = SocketAddr::new(address, service.node_port());
            if node.to_string() == pod.node {
                wait_until_answers(&client, target);
                continue;
            }
            wait(&format!("{target} to be silent"), SETTLE, || {
                match client.tcp_connect(target, Duration::from_millis(700)) {
                    Err(error) if error_kind(&error) == Some(ErrorKind::TimedOut) => Ok(Some(())),
                    Ok(_) => not_yet("it accepts"),
                    Err(error) => Err(error),
                }
            })
            .unwrap();
        }
    }
    lab.kubectl(&["-n", NAMESPACE, "label", "pod", &pod.name, "alone-"]).unwrap();
}
