//! From kube-proxy to Steelyard on a real cluster, under load: `make e2e`, or `cargo test --test takeover` as root. A lab of
//! its own is started, with the real kube-proxy, and goes down when the test ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[allow(dead_code, reason = "the end-to-end tests ask for more of it")]
#[path = "../e2e/load.rs"]
mod load;
#[path = "../e2e/server.rs"]
mod server;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use steelyard_lab::{Datapath, Lab, Member, Options, Place, Progress, steelyard_binary, wait};

use load::{Established, Load, Way};
use server::Server;

const SETTLE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "takeover";
const OURS: &str = "steelyard-system";

const WEB: Server =
    Server { namespace: NAMESPACE, name: "web", replicas: 4, when_crowded: "DoNotSchedule", is_gentle: false };
const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: takeover}
---
apiVersion: steelyard.dev/v1alpha1
kind: IPAddressPool
metadata: {name: takeover}
spec: {addresses: [192.0.2.230-192.0.2.239, "2001:db8:1::f100/124"]}
---
apiVersion: steelyard.dev/v1alpha1
kind: L2Advertisement
metadata: {name: takeover}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: takeover}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
"#;

/// Two Services that want one address and port: the older has it.
const RIVALS: [&str; 2] = ["first", "second"];

fn rival(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {{selector: {{app: web}}, externalIPs: [203.0.113.7], ports: [{{port: 80, targetPort: 8080}}]}}"
    )
}

fn service(lab: &Lab, name: &str) -> Value {
    lab.get_raw(&format!("/api/v1/namespaces/{NAMESPACE}/services/{name}")).unwrap()
}

fn announcements(lab: &Lab) -> Vec<Value> {
    let list = lab.get_raw("/apis/steelyard.dev/v1alpha1/nodeannouncements").unwrap();
    list["items"].as_array().cloned().unwrap_or_default()
}

/// The reasons of all problems that nodes have as a whole, one list for each node.
fn problems(lab: &Lab) -> Vec<Vec<String>> {
    let of_node = |object: &Value| {
        let problems = object["status"]["problems"].as_array().cloned().unwrap_or_default();
        let whole = problems.iter().filter(|problem| problem["service"].is_null());
        whole.map(|problem| problem["reason"].as_str().unwrap().to_owned()).collect()
    };
    announcements(lab).iter().map(of_node).collect()
}

fn wait_for_datapath(lab: &Lab, mode: &str) {
    wait(&format!("all agents to say {mode}"), SETTLE, || {
        let all = announcements(lab);
        let says = |object: &Value| object["status"]["datapath"] == mode;
        Ok((all.len() == lab.nodes().count() && all.iter().all(says)).then_some(()))
    })
    .unwrap();
}

fn tables(lab: &Lab, node: Member) -> String {
    lab.at(&node.into()).unwrap().run("nft", &["list", "tables"]).unwrap()
}

fn events(lab: &Lab, namespace: &str) -> String {
    let format = "jsonpath={range .items[*]}{.reason}|{.involvedObject.name}|{.message}{\"\\n\"}{end}";
    lab.kubectl(&["--namespace", namespace, "get", "events", "--output", format]).unwrap()
}

/// Stops kube-proxy and keeps it from being started again.
fn stop_kube_proxy(lab: &Lab, node: Member) {
    const SCRIPT: &str = "pid=$(pidof kube-proxy) && \
        config=$(tr '\\0' '\\n' < /proc/$pid/cmdline | sed -n 's/^--config=//p') && mv $config $config.off && kill $pid";
    let status = lab.enter(node).unwrap().args(["sh", "-c", SCRIPT]).status().unwrap();
    assert!(status.success(), "kube-proxy of {node}: {status}");
}

#[test]
fn kube_proxy_is_stood_aside_for_and_then_succeeded_without_a_lost_connection() {
    let progress = Progress::new();
    let options = Options { name: "takeover".parse().unwrap(), nodes: 2, datapath: Datapath::KubeProxy };
    let lab = Lab::start_guarded(&options, &progress).unwrap();
    let _diagnosis = lab.diagnose_on_panic(&[NAMESPACE, OURS]);
    let binary = steelyard_binary(&mut |text| progress.say(text)).unwrap();

    // With the chart's default, beside kube-proxy: it stands aside, visibly, and announces.
    lab.install_steelyard(&binary, &[]).unwrap();
    let decision = lab.get_raw(&format!("/api/v1/namespaces/{OURS}/configmaps/steelyard-datapath")).unwrap();
    assert_eq!(decision["data"]["mode"], "off", "{decision}");
    assert!(decision["data"]["reason"].as_str().unwrap().contains("another service proxy is at work"), "{decision}");
    assert_eq!(decision["metadata"]["ownerReferences"][0]["kind"], "DaemonSet", "it goes with the chart: {decision}");
    assert!(events(&lab, OURS).contains("DatapathDecided|steelyard-datapath"), "{}", events(&lab, OURS));
    wait_for_datapath(&lab, "Off");
    for node in lab.nodes() {
        assert!(!tables(&lab, node).contains("steelyard"), "nothing of ours is in the kernel of {node}");
    }
    lab.apply(OBJECTS).unwrap();
    lab.apply(&WEB.yaml()).unwrap();
    lab.kubectl(&["-n", NAMESPACE, "rollout", "status", "deployment/web", "--timeout=90s"]).unwrap();
    let addresses: Vec<IpAddr> = wait("two addresses", SETTLE, || {
        let ingress = service(&lab, "web")["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        let addresses: Vec<IpAddr> =
            ingress.iter().map(|entry| entry["ip"].as_str().unwrap().parse().unwrap()).collect();
        Ok((addresses.len() == 2).then_some(addresses))
    })
    .unwrap();
    let client = lab.at(&Place::Client).unwrap();
    let answers = |what: &str| {
        for address in &addresses {
            let target = SocketAddr::new(*address, 80);
            wait(&format!("{target} to answer {what}"), SETTLE, || {
                client.http_get(&format!("http://{target}/hostname"), Duration::from_secs(1)).map(|_| Some(()))
            })
            .unwrap();
        }
    };
    answers("where kube-proxy forwards");
    progress.say("kube-proxy forwards, Steelyard announces");

    // Connections that stay, and new ones all the time: from outside to a NodePort, masqueraded; from a pod to the cluster IP.
    // Not to the load-balancer addresses: they move as the agents restart, and connections do not go along (docs/limits.md).
    let web = service(&lab, "web");
    let node_port = u16::try_from(web["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).unwrap();
    let mut ways: Vec<Way> = vec![
        (Place::Client, SocketAddr::new(Member::Node(1).ipv4().into(), node_port)),
        (Place::Client, SocketAddr::new(Member::Node(1).ipv6().into(), node_port)),
    ];
    let pods = lab.get_raw(&format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3Dweb")).unwrap();
    let pod = pods["items"][0]["metadata"]["name"].as_str().unwrap();
    for cluster_ip in web["spec"]["clusterIPs"].as_array().unwrap() {
        ways.push((Place::pod(NAMESPACE, pod), SocketAddr::new(cluster_ip.as_str().unwrap().parse().unwrap(), 80)));
    }
    let mut established = Established::open_all(&lab, &ways);
    let load = Load::start(&lab, &ways);
    let ask_all = |established: &mut Vec<Established>, when: &str| {
        established.iter_mut().for_each(|connection| connection.ask(when));
    };

    lab.install_steelyard(&binary, &["--set", "datapath.mode=on"]).unwrap();
    wait_for_datapath(&lab, "On");
    wait("every agent to tell of the other proxy", SETTLE, || {
        Ok(problems(&lab).iter().all(|of_node| of_node.contains(&"AnotherServiceProxy".to_owned())).then_some(()))
    })
    .unwrap();
    for node in lab.nodes() {
        let tables = tables(&lab, node);
        assert!(tables.contains("ip steelyard") && tables.contains("ip kube-proxy"), "both, on {node}: {tables}");
    }
    ask_all(&mut established, "with both in place");
    progress.say("both forward");

    lab.nodes().for_each(|node| stop_kube_proxy(&lab, node));
    for node in lab.nodes() {
        wait(&format!("kube-proxy's tables to go from {node}"), SETTLE, || {
            Ok((!tables(&lab, node).contains("kube-proxy")).then_some(()))
        })
        .unwrap();
    }
    ask_all(&mut established, "without kube-proxy");
    answers("where Steelyard forwards");
    wait("the problem to be gone", SETTLE, || Ok(problems(&lab).iter().all(Vec::is_empty).then_some(()))).unwrap();
    load.stop().expect_no_failure("take-over from kube-proxy");
    progress.say(&format!("{} connections that stayed open went on", established.len()));

    // What a node cannot do for a Service is said on the Service.
    lab.apply(&rival(RIVALS[0])).unwrap();
    wait("the second to be younger", SETTLE, || {
        let created = service(&lab, RIVALS[0])["metadata"]["creationTimestamp"].as_str().unwrap().to_owned();
        let now = lab.at(&Place::Client)?.run("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])?;
        Ok((now.trim() > created.as_str()).then_some(()))
    })
    .unwrap();
    lab.apply(&rival(RIVALS[1])).unwrap();
    let programmed = |name: &str| {
        let conditions = service(&lab, name)["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == "steelyard.dev/Programmed")
    };
    let told = wait("the younger to be told", SETTLE, || Ok(programmed(RIVALS[1]))).unwrap();
    assert_eq!((&told["status"], &told["reason"]), (&"False".into(), &"FrontendTaken".into()), "{told}");
    assert!(told["message"].as_str().unwrap().contains("203.0.113.7:80/TCP"), "{told}");
    assert_eq!(programmed(RIVALS[0]), None);
    lab.kubectl(&["-n", NAMESPACE, "delete", "service", RIVALS[0]]).unwrap();
    wait("the condition to go", SETTLE, || Ok(programmed(RIVALS[1]).is_none().then_some(()))).unwrap();
    let events = events(&lab, NAMESPACE);
    for reason in ["NotProgrammed|second", "Programmed|second"] {
        assert!(events.lines().any(|line| line.starts_with(reason)), "{reason} is not among\n{events}");
    }
}
