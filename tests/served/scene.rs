//! A node with a pod on one side, a client on the other, and a remote client behind that one.
//!
//! ```text
//!   remote ── client ──(192.0.2.0/24, 2001:db8::/64)── node ── pod
//! ```

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use socket2::{Domain, Protocol, Socket, Type};
use steelyard::datapath::apply::Programmer;
use steelyard::datapath::desired::Desired;
use steelyard::datapath::index::Index;
use steelyard::datapath::plan::Scope;
use steelyard::datapath::settings::Settings;
use steelyard::model::service::Service;

use crate::namespace::{self, Namespace, run_program};

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const SERVED: [&str; 2] = ["192.0.2.100", "2001:db8::64"];
const ENDPOINT: [&str; 2] = ["10.0.0.2", "fd00:10::2"];
pub const PORT: u16 = 80;

/// Counts what the node sends to the client that is addressed to a served address.
const WATCH: &str = "\
table inet watch {
  chain prerouting {
    type filter hook prerouting priority -300
    ip daddr 192.0.2.100 iifname eth0 counter
    ip6 daddr 2001:db8::64 iifname eth0 counter
  }
}";

pub struct Scene {
    pub node: Namespace,
    pub client: Namespace,
    pub pod: Namespace,
    pub remote: Namespace,
    programmer: RefCell<Programmer>,
}

impl Scene {
    /// Everything but the rules.
    pub fn new(name: &str) -> Self {
        namespace::prepare().unwrap();
        let [node, client, pod, remote] =
            ["n", "c", "p", "r"].map(|place| Namespace::new(&format!("{name}-{place}")).unwrap());
        // Else nobody speaks IPv6 for the first second.
        for place in [&node, &client, &pod, &remote] {
            place.set(&[("ipv6/conf/default/accept_dad", "0"), ("ipv6/conf/default/dad_transmits", "0")]).unwrap();
        }
        let (in_client, in_pod, in_remote) = (client.name(), pod.name(), remote.name());
        node.ip(&format!(
            "link set lo up
             link add out0 type veth peer name eth0 netns {in_client}
             link add pod0 type veth peer name eth0 netns {in_pod}
             link set out0 up
             link set pod0 up
             addr add 192.0.2.1/24 dev out0
             addr add 2001:db8::1/64 dev out0 nodad
             route add 10.0.0.2 dev pod0
             route add fd00:10::2 dev pod0
             route add 203.0.113.0/24 via 192.0.2.9
             route add 2001:db8:7::/64 via 2001:db8::9
             neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev pod0
             neigh add fd00:10::2 lladdr 02:00:00:00:00:02 dev pod0
             link set out0 address 02:00:00:00:00:01
             link set pod0 address 02:00:00:00:00:11
             "
        ))
        .unwrap();
        // The node's end of a pod's link has no address, as with many network plugins.
        pod.ip("link set lo up
                link set eth0 address 02:00:00:00:00:02
                link set eth0 up
                addr add 10.0.0.2/32 dev eth0
                addr add fd00:10::2/128 dev eth0 nodad
                route add 169.254.1.1 dev eth0
                route add default via 169.254.1.1 dev eth0
                route add fd00:10::ff dev eth0
                route add ::/0 via fd00:10::ff dev eth0
                neigh add 169.254.1.1 lladdr 02:00:00:00:00:11 dev eth0
                neigh add fd00:10::ff lladdr 02:00:00:00:00:11 dev eth0
                ")
            .unwrap();
        client
            .ip(&format!(
                "link set lo up
                 link add far0 type veth peer name eth0 netns {in_remote}
                 link set eth0 up
                 link set far0 up
                 addr add 192.0.2.9/24 dev eth0
                 addr add 2001:db8::9/64 dev eth0 nodad
                 addr add 203.0.113.1/24 dev far0
                 addr add 2001:db8:7::1/64 dev far0 nodad
                 neigh add 192.0.2.100 lladdr 02:00:00:00:00:01 dev eth0
                 neigh add 2001:db8::64 lladdr 02:00:00:00:00:01 dev eth0
                 "
            ))
            .unwrap();
        remote
            .ip("link set lo up
                 link set eth0 up
                 addr add 203.0.113.2/24 dev eth0
                 addr add 2001:db8:7::2/64 dev eth0 nodad
                 route add default via 203.0.113.1
                 route add ::/0 via 2001:db8:7::1
                 ")
            .unwrap();
        for router in [&node, &client] {
            router
                .set(&[
                    ("ipv4/ip_forward", "1"),
                    ("ipv6/conf/all/forwarding", "1"),
                    ("ipv4/conf/all/send_redirects", "0"),
                    ("ipv4/icmp_ratelimit", "0"),
                    ("ipv6/icmp/ratelimit", "0"),
                ])
                .unwrap();
        }
        client.run(|| run_program("nft", &["-f", "-"], WATCH)).unwrap();
        // What the node does not answer for goes on to the client, as to a router.
        node.ip(
            "route replace 192.0.2.100 via 192.0.2.9 dev out0\nroute replace 2001:db8::64 via 2001:db8::9 dev out0\n",
        )
        .unwrap();
        let programmer = RefCell::new(node.run(Programmer::new).unwrap());
        Self { node, client, pod, remote, programmer }
    }

    /// Programs the one Service.
    pub fn program(&self, policy: &str, answer_ping: bool) {
        let desired = desired(Some(policy), answer_ping);
        apply(&mut self.programmer.borrow_mut(), &desired);
    }

    /// Programs that there is none, by an agent that knew of it or not.
    pub fn program_nothing(&self) {
        apply(&mut self.programmer.borrow_mut(), &desired(None, true));
    }

    /// The same by an agent that was not there when there was one.
    pub fn program_without_service_by_another_agent(&self) {
        let mut programmer = self.node.run(Programmer::new).unwrap();
        apply(&mut programmer, &desired(None, true));
    }

    /// Programs the Service as one of another proxy.
    pub fn program_for_another_proxy(&self) {
        apply(
            &mut self.programmer.borrow_mut(),
            &desired_of(Some("Cluster"), true, "{service.kubernetes.io/service-proxy-name: other}"),
        );
    }

    /// How many packets to a served address came out of the node again.
    pub fn sent_back(&self) -> u64 {
        let listing = self.client.run(|| run_program("nft", &["list", "table", "inet", "watch"], "")).unwrap();
        let counts = listing.split("counter packets ").skip(1);
        counts.map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// The pod's servers.
    pub fn listen(&self) -> Vec<TcpListener> {
        let bind = |address: &str| {
            let address = SocketAddr::new(address.parse().unwrap(), PORT);
            self.pod.run(|| TcpListener::bind(address)).unwrap()
        };
        ENDPOINT.into_iter().map(bind).collect()
    }

    /// Between client and remote client, and between node and pod, only small packets pass in the direction away from here.
    pub fn make_narrow(&self) {
        self.client.ip("link set far0 mtu 1300\n").unwrap();
        self.node.ip("link set pod0 mtu 1300\n").unwrap();
    }

    /// Whether somebody has been told in both families.
    pub fn has_learnt_narrow_path(&self, place: &Namespace) -> bool {
        let cached = |family: &str| {
            let routes = run_program("ip", &["-n", place.name(), family, "route", "show", "cache"], "").unwrap();
            routes.contains("mtu 1300")
        };
        cached("-4") && cached("-6")
    }
}

fn apply(programmer: &mut Programmer, desired: &Desired) {
    let report = programmer.apply(desired.entries(), &Scope::All, desired.node()).unwrap();
    assert!(report.quarantined.is_empty(), "{report:?}");
}

fn desired(policy: Option<&str>, answer_ping: bool) -> Desired {
    desired_of(policy, answer_ping, "{}")
}

fn desired_of(policy: Option<&str>, answer_ping: bool, labels: &str) -> Desired {
    let mut index = Index::default();
    let node = "{metadata: {name: n}, spec: {podCIDRs: [10.0.0.0/24, 'fd00:10::/64']}, status: {addresses: [
        {type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: '2001:db8::1'}]}}";
    index.apply_node((&serde_saphyr::from_str::<core::Node>(node).unwrap()).try_into().unwrap());
    let local: [IpAddr; 4] = ["127.0.0.1", "::1", NODE[0], NODE[1]].map(|text| text.parse().unwrap());
    index.set_local_addresses(BTreeSet::from(local));
    if let Some(policy) = policy {
        let service = format!(
            "{{metadata: {{name: web, namespace: d, labels: {labels}}}, spec: {{type: LoadBalancer, externalTrafficPolicy: {policy},
              clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{{name: http, port: {PORT}}}]}},
              status: {{loadBalancer: {{ingress: [{{ip: {}}}, {{ip: '{}'}}]}}}}}}",
            SERVED[0], SERVED[1]
        );
        index.apply_service(Service::try_from(&serde_saphyr::from_str::<core::Service>(&service).unwrap()).unwrap());
        for (family, endpoint) in ["IPv4", "IPv6"].into_iter().zip(ENDPOINT) {
            let slice = format!(
                "{{metadata: {{name: web-{family}, namespace: d, labels: {{kubernetes.io/service-name: web}}}},
                  addressType: {family}, ports: [{{name: http, port: {PORT}}}],
                  endpoints: [{{addresses: ['{endpoint}'], nodeName: n}}]}}"
            );
            index.apply_slice(
                (&serde_saphyr::from_str::<discovery::EndpointSlice>(&slice).unwrap()).try_into().unwrap(),
            );
        }
    }
    Desired::from_index(&index, &Settings { answer_ping, ..Settings::default() })
}

/// One echo request; the answer as `ping` tells it.
pub fn ping(from: &Namespace, address: &str) -> Result<String, String> {
    from.run(|| run_program("ping", &["-n", "-c", "1", "-W", "10", address], ""))
}

/// Whether an echo request goes unanswered for as long as an answer would take many times.
pub fn is_silent(from: &Namespace, address: &str) -> bool {
    from.run(|| run_program("ping", &["-n", "-c", "1", "-W", "0.5", address], "")).is_err()
}

/// A packet of some other protocol.
pub fn send_protocol(from: &Namespace, address: &str, protocol: i32) -> io::Result<usize> {
    let to = SocketAddr::new(address.parse().unwrap(), 0);
    from.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.send_to(&[0; 32], &to.into())
    })
}
