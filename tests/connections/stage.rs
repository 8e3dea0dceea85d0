//! A client, a node and a network of pods.
//!
//! ```text
//!   client ── .9   .1 ── node ── .1   .11 to .14 ── pods
//!          198.51.100.0/24        10.244.1.0/24
//!          2001:db8:100::/64      fd00:244:1::/64
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use steelyard::model::Family;

use crate::agent::Agent;
use crate::namespace::{Namespace, prepare, run_program};

/// How long a thing may take that is not measured.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Outside of the node.
    Outside,
    /// In the node's own network.
    Node,
}

/// Each family with each place.
pub(crate) const VARIANTS: [(Family, Place); 4] =
    [(Family::V4, Place::Outside), (Family::V4, Place::Node), (Family::V6, Place::Outside), (Family::V6, Place::Node)];

/// The three namespaces, and the agent on the node.
pub(crate) struct Stage {
    pub(crate) family: Family,
    pub(crate) client: Namespace,
    pub(crate) node: Namespace,
    pub(crate) pods: Namespace,
    pub(crate) agent: Option<Agent>,
    /// How long the agent waits before it resets connections.
    pub(crate) grace: Option<Duration>,
    pub(crate) drop_invalid: bool,
    _alone: MutexGuard<'static, ()>,
}

impl Stage {
    /// With an agent that knows its node and nothing else.
    pub(crate) fn new(family: Family) -> Self {
        let mut stage = Self::without_agent(family);
        stage.start_agent();
        stage
    }

    pub(crate) fn without_agent(family: Family) -> Self {
        // What others do on this machine shall not show in the figures. Threads begun from here on have it too.
        let thread = nix::unistd::gettid().to_string();
        run_program("renice", &["-n", "-19", "-p", &thread], "").unwrap();
        // Nor what other tests do, which measure milliseconds too.
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        static PREPARED: Once = Once::new();
        PREPARED.call_once(|| prepare().unwrap());
        let [client, node, pods] =
            ["client", "node", "pods"].map(|purpose| Namespace::new(&format!("{number}-{purpose}")).unwrap());
        for namespace in [&client, &node, &pods] {
            namespace.ip("link set lo up\n").unwrap();
            namespace.set(&[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")]).unwrap();
        }
        for (device, far, number) in [("client", &client, 1), ("pods", &pods, 2)] {
            let (own, theirs) = (format!("02:00:00:00:0{number}:01"), format!("02:00:00:00:0{number}:02"));
            let far = far.name();
            node.ip(&format!(
                "link add {device} address {own} type veth peer name node address {theirs} netns {far}\n"
            ))
            .unwrap();
        }
        for (namespace, device, addresses) in [
            (&client, "node", vec!["198.51.100.9/24", "2001:db8:100::9/64"]),
            (&node, "client", vec!["198.51.100.1/24", "2001:db8:100::1/64"]),
            (&node, "pods", vec!["10.244.1.1/24", "fd00:244:1::1/64"]),
            (&pods, "node", vec!["203.0.113.7/32", "2001:db8:7::7/128"]),
        ] {
            for address in addresses {
                let nodad = if address.contains(':') { " nodad" } else { "" };
                namespace.ip(&format!("addr add {address} dev {device}{nodad}\n")).unwrap();
            }
            namespace.ip(&format!("link set {device} up\n")).unwrap();
        }
        for number in 11..=14 {
            pods.ip(&format!("addr add 10.244.1.{number}/24 dev node\n")).unwrap();
            pods.ip(&format!("addr add fd00:244:1::{number}/64 dev node nodad\n")).unwrap();
        }
        for (namespace, v4, v6) in
            [(&client, "198.51.100.1", "2001:db8:100::1"), (&pods, "10.244.1.1", "fd00:244:1::1")]
        {
            namespace.ip(&format!("route add default via {v4}\nroute add ::/0 via {v6}\n")).unwrap();
        }
        // Each knows the other's: a link that has just come up loses what asks for it, for a second.
        for (namespace, device, theirs, addresses) in [
            (&client, "node", "02:00:00:00:01:01", &["198.51.100.1", "2001:db8:100::1"][..]),
            (&node, "client", "02:00:00:00:01:02", &["198.51.100.9", "2001:db8:100::9"]),
            (&pods, "node", "02:00:00:00:02:01", &["10.244.1.1", "fd00:244:1::1"]),
        ] {
            for address in addresses {
                namespace.ip(&format!("neigh replace {address} lladdr {theirs} nud permanent dev {device}\n")).unwrap();
            }
        }
        for number in 11..=14 {
            for address in [format!("10.244.1.{number}"), format!("fd00:244:1::{number}")] {
                node.ip(&format!("neigh replace {address} lladdr 02:00:00:00:02:02 nud permanent dev pods\n")).unwrap();
            }
        }
        node.ip("route add 203.0.113.7 via 10.244.1.11\nroute add 2001:db8:7::7 via fd00:244:1::11\n").unwrap();
        node.set(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // Each of many packets shall be answered.
            ("ipv4/icmp_ratemask", "0"),
            ("ipv6/icmp/ratemask", "200"),
        ])
        .unwrap();
        // Where a packet goes that nobody translates: to somewhere that is silent.
        node.ip(&format!("link add nowhere type veth peer name void netns {}\n", pods.name())).unwrap();
        pods.ip("link set void up\n").unwrap();
        node.ip("link set nowhere up\n\
             neigh add 192.0.2.254 lladdr 02:00:00:00:00:99 nud permanent dev nowhere\n\
             neigh add 2001:db8:200::fe lladdr 02:00:00:00:00:99 nud permanent dev nowhere\n\
             route add default via 192.0.2.254 dev nowhere onlink\n\
             route add ::/0 via 2001:db8:200::fe dev nowhere onlink\n")
            .unwrap();
        Self { family, client, node, pods, agent: None, grace: None, drop_invalid: false, _alone: alone }
    }

    pub(crate) fn start_agent(&mut self) {
        self.agent = Some(Agent::start(&self.node, self.grace, self.drop_invalid));
    }

    pub(crate) fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    /// Where a client is.
    pub(crate) fn namespace(&self, place: Place) -> &Namespace {
        match place {
            Place::Outside => &self.client,
            Place::Node => &self.node,
        }
    }

    /// The address of an endpoint, from 1.
    pub(crate) fn endpoint(&self, number: u8, port: u16) -> SocketAddr {
        let address: IpAddr = match self.family {
            Family::V4 => format!("10.244.1.{}", number + 10).parse().unwrap(),
            Family::V6 => format!("fd00:244:1::{}", number + 10).parse().unwrap(),
        };
        SocketAddr::new(address, port)
    }

    pub(crate) fn cluster_ip(&self, port: u16) -> SocketAddr {
        self.pick("10.96.0.10", "fd00:96::10", port)
    }

    pub(crate) fn balancer(&self, port: u16) -> SocketAddr {
        self.pick("192.0.2.10", "2001:db8:200::10", port)
    }

    pub(crate) fn external(&self, port: u16) -> SocketAddr {
        self.pick("192.0.2.20", "2001:db8:200::20", port)
    }

    pub(crate) fn node_port(&self, port: u16) -> SocketAddr {
        self.pick("198.51.100.1", "2001:db8:100::1", port)
    }

    fn pick(&self, v4: &str, v6: &str, port: u16) -> SocketAddr {
        let address = match self.family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        SocketAddr::new(address.parse().unwrap(), port)
    }
}

/// How long a thing may take that shall take this long on a machine that has no more to do than it has processors.
pub(crate) fn on_a_busy_machine(limit: Duration) -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split_whitespace().next().unwrap().parse().unwrap();
    let processors =
        std::thread::available_parallelism().map_or(1.0, |count| f64::from(u32::try_from(count.get()).unwrap()));
    limit.mul_f64((load / processors).max(1.0))
}

/// Waits for a condition; gives the time it took.
pub(crate) fn wait(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    start.elapsed()
}
