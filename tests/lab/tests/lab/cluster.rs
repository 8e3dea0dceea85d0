//! It is a real cluster, in both families.

use std::net::SocketAddr;
use std::time::Duration;

use steelyard_lab::{Place, SctpReply, error_kind};

use crate::{alone, lab_with_web, web_pods};

const LIMIT: Duration = Duration::from_secs(5);

#[test]
#[ignore = "needs root and a lab"]
fn pods_reach_pods_of_other_nodes_in_both_families() {
    let _alone = alone();
    let lab = lab_with_web();
    let _diagnosis = lab.diagnose_on_panic(&["default"]);
    let pods = web_pods(lab).unwrap();
    for from in &pods {
        let vantage = lab.at(&from.place()).unwrap();
        for to in &pods {
            assert_eq!(to.addresses.len(), 2, "{} has {:?}", to.name, to.addresses);
            for address in &to.addresses {
                let answer = vantage.http_get(&format!("http://{}/hostname", SocketAddr::new(*address, 8080)), LIMIT).unwrap();
                assert_eq!((answer.status, answer.body.as_str()), (200, to.name.as_str()));
            }
        }
    }
}

#[test]
#[ignore = "needs root and a lab"]
fn clients_reach_services_but_not_pods() {
    let _alone = alone();
    let lab = lab_with_web();
    let _diagnosis = lab.diagnose_on_panic(&["default"]);
    let pod = web_pods(lab).unwrap().remove(0);
    for place in [Place::Client, Place::Remote] {
        let vantage = lab.at(&place).unwrap();
        for node in lab.nodes() {
            for address in [node.ipv4().into(), node.ipv6().into()] {
                let answer = vantage.http_get(&format!("http://{}/hostname", SocketAddr::new(address, 30080)), LIMIT).unwrap();
                assert!(answer.body.starts_with("web-"), "{place}: {answer:?}");
                let answer = vantage.udp_exchange(SocketAddr::new(address, 30081), b"echo over", LIMIT).unwrap();
                assert_eq!(answer, b"over");
            }
        }
        let direct = SocketAddr::new(pod.addresses[0], 8080);
        assert!(vantage.tcp_connect(direct, Duration::from_secs(1)).is_err(), "{place} reaches pods");
    }
    let refused = lab.at(&Place::Client).unwrap().tcp_connect("192.0.2.11:9".parse().unwrap(), LIMIT).unwrap_err();
    assert_eq!(error_kind(&refused), Some(std::io::ErrorKind::ConnectionRefused), "{refused:#}");
}

#[test]
#[ignore = "needs root and a lab"]
fn the_api_server_reaches_pods_and_pods_resolve_names() {
    let _alone = alone();
    let lab = lab_with_web();
    let _diagnosis = lab.diagnose_on_panic(&["default", "kube-system"]);
    for pod in web_pods(lab).unwrap() {
        assert!(lab.kubectl(&["logs", &pod.name]).unwrap().contains("Started HTTP server"));
        for name in ["web", "web.default", "web.default.svc.cluster.local"] {
            lab.kubectl(&["exec", &pod.name, "--", "/agnhost", "connect", "--timeout=5s", &format!("{name}:80")]).unwrap();
        }
        let direct = format!("/api/v1/namespaces/default/pods/{}:8080/proxy/hostname", pod.name);
        assert_eq!(lab.kubectl(&["get", "--raw", &direct]).unwrap(), pod.name);
    }
}

#[test]
#[ignore = "needs root and a lab"]
fn nodes_are_what_the_upstream_suite_expects() {
    let _alone = alone();
    let lab = lab_with_web();
    let list = lab.get_raw("/api/v1/nodes").unwrap();
    let mut zones = std::collections::BTreeSet::new();
    for node in list["items"].as_array().unwrap() {
        zones.insert(node["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str().unwrap().to_owned());
        assert!(node["spec"]["taints"].is_null(), "{}", node["spec"]);
        let n: u8 = node["metadata"]["name"].as_str().unwrap().trim_start_matches("node").parse().unwrap();
        let ranges = [steelyard_lab::layout::pods_v4(n).to_string(), steelyard_lab::layout::pods_v6(n).to_string()];
        assert_eq!(node["spec"]["podCIDRs"], serde_json::json!(ranges));
        let addresses: Vec<_> = node["status"]["addresses"].as_array().unwrap().iter().map(|a| a["address"].as_str().unwrap()).collect();
        let member = steelyard_lab::Member::Node(n);
        assert!(addresses.contains(&member.ipv4().to_string().as_str()) && addresses.contains(&member.ipv6().to_string().as_str()));
    }
    assert_eq!(zones.len(), lab.nodes().count().min(3));
}

#[test]
#[ignore = "needs root and a lab"]
fn sctp_associations_open_by_raw_packets() {
    let _alone = alone();
    let lab = lab_with_web();
    let pod = web_pods(lab).unwrap().remove(0);
    let server = lab.at(&pod.place()).unwrap();
    let _serving = server.sctp_serve(9999).unwrap();
    let client = lab.at(&Place::Control).unwrap();
    for address in &pod.addresses {
        let reply = client.sctp_probe(40001, SocketAddr::new(*address, 9999), LIMIT).unwrap();
        let SctpReply::InitAck { server, client } = reply else { panic!("{reply:?}") };
        assert_eq!(server, format!("default/{}", pod.name));
        assert_eq!(client.port(), 40001);
    }
    let silent = client.sctp_probe(40002, SocketAddr::new(pod.addresses[0], 9998), Duration::from_millis(300)).unwrap_err();
    assert_eq!(error_kind(&silent), Some(std::io::ErrorKind::TimedOut), "{silent:#}");
}
