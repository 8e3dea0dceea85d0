//! What packets go by: a node in a namespace with a link to pods and one to the rest of the world, whose far ends are in
//! another namespace without a network stack; and sockets at all three.

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use steelyard::model::Family;

use super::namespace::Namespace;
use super::sockets::{Link, Own};

const OUT_NODE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PODS_NODE: [u8; 6] = [2, 0, 0, 0, 1, 1];

/// The two namespaces, and the sockets.
pub struct Links {
    pub node: Namespace,
    pub beyond: Namespace,
    /// Where the rest of the world is.
    pub outside: Link,
    /// Where pods are.
    pub pods: Link,
    /// The node's own.
    pub own: Own,
}

impl Links {
    /// Makes a node that has these addresses, loopback aside, and reaches these prefixes by the link of the pods. The name
    /// tells it from others of this process.
    pub fn lay<'a>(
        name: &str,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
        pod_prefixes: impl IntoIterator<Item = IpNet>,
    ) -> Result<Self, String> {
        let node = Namespace::new(&format!("{name}node"))?;
        let beyond = Namespace::new(&format!("{name}world"))?;
        beyond.set(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])?;
        node.set(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // Each of many packets shall be answered.
            ("ipv4/icmp_ratemask", "0"),
            ("ipv6/icmp/ratemask", "200"),
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
        ])?;
        node.ip(&commands(beyond.name(), addresses, pod_prefixes))?;
        beyond.ip("link set outside up\nlink set pods up\n")?;
        let open = || Ok((Link::open("outside", OUT_NODE)?, Link::open("pods", PODS_NODE)?));
        let (outside, pods) =
            beyond.run(open).map_err(|error: std::io::Error| format!("failed to open links: {error}"))?;
        let own = node.run(Own::open).map_err(|error| format!("failed to open raw sockets: {error}"))?;
        Ok(Self { node, beyond, outside, pods, own })
    }
}

fn commands<'a>(
    beyond: &str,
    addresses: impl IntoIterator<Item = &'a IpAddr>,
    pod_prefixes: impl IntoIterator<Item = IpNet>,
) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").unwrap();
    line("link set lo up".to_owned());
    for (name, peer, node, far, number) in
        [("out0", "outside", OUT_NODE, "02:00:00:00:00:02", 1), ("pods0", "pods", PODS_NODE, "02:00:00:00:01:02", 2)]
    {
        let own = node.map(|byte| format!("{byte:02x}")).join(":");
        line(format!("link add {name} address {own} type veth peer name {peer} address {far} netns {beyond}"));
        line(format!("link set {name} up"));
        // Nobody answers ARP or NDP there.
        line(format!("neigh add 198.18.{number}.254 lladdr {far} nud permanent dev {name}"));
        line(format!("neigh add 2001:2:{number}::fe lladdr {far} nud permanent dev {name}"));
    }
    for address in addresses.into_iter().filter(|address| !address.is_loopback()) {
        line(match Family::of(*address) {
            Family::V4 => format!("addr add {address}/32 dev out0"),
            Family::V6 => format!("addr add {address}/128 dev out0 nodad"),
        });
    }
    // No address of a Service or a node: who was masqueraded towards pods comes from here.
    line("addr add 198.18.2.1/32 dev pods0".to_owned());
    line("addr add 2001:2:2::1/128 dev pods0 nodad".to_owned());
    line("route add default via 198.18.1.254 dev out0 onlink".to_owned());
    line("route add ::/0 via 2001:2:1::fe dev out0 onlink".to_owned());
    for prefix in pod_prefixes {
        line(match Family::of(prefix.addr()) {
            Family::V4 => format!("route replace {prefix} via 198.18.2.254 dev pods0 onlink"),
            Family::V6 => format!("route replace {prefix} via 2001:2:2::fe dev pods0 onlink"),
        });
    }
    out
}
