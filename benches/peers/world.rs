//! A node with a client on one side and a server on the other. All worlds are equal but for who forwards.

use std::net::Ipv4Addr;

use steelyard_lab::Member;

use crate::space::Space;

/// The node's address towards the clients.
pub const NODE_ADDRESS: &str = "198.18.0.1";
/// Endpoints of the Services that get traffic; the server answers at each.
pub const ENDPOINTS: [u8; 3] = [10, 244, 1];
/// Addresses of the client as a pod of another node, and as somebody outside.
const PODS: [u8; 3] = [10, 244, 2];
const OUTSIDE: [u8; 3] = [198, 18, 0];
/// How many of each.
const CLIENTS: u8 = 64;

pub struct World {
    pub client: Space,
    pub node: Space,
    pub server: Space,
}

impl World {
    /// `number` tells worlds apart on their links to the API server.
    pub fn new(name: &str, control: &Space, number: u8) -> Self {
        let space = |role: &str| Space::new(&format!("{name}-{role}"));
        let world = Self { client: space("client"), node: space("node"), server: space("server") };
        world.node.link("client", &world.client, "node");
        world.node.link("server", &world.server, "node");
        world.node.link("api", control, &format!("w{number}"));
        let (near, far) = (format!("198.18.2.{}", number * 4 + 1), format!("198.18.2.{}", number * 4 + 2));
        world.node.ip(&format!(
            "address add {NODE_ADDRESS}/24 dev client\naddress add 198.18.1.1/24 dev server\n\
             address add {near}/30 dev api\nroute add {}/32 via {far}\n\
             route add 10.244.1.0/24 via 198.18.1.2\nroute add 10.244.2.0/24 dev client\n",
            Member::Control.ipv4()
        ));
        control.ip(&format!("address add {far}/30 dev w{number}"));
        world.node.set("ipv4/ip_forward", "1");
        let mut lines = String::new();
        for client in (0..CLIENTS).flat_map(|number| [address(PODS, number), address(OUTSIDE, number)]) {
            lines.push_str(&format!("address add {client}/24 dev node\n"));
        }
        lines.push_str(&format!("route add default via {NODE_ADDRESS}\n"));
        world.client.ip(&lines);
        world.server.ip(
            "address add 198.18.1.2/24 dev node\nroute add default via 198.18.1.1\nroute add local 10.244.1.0/24 dev lo",
        );
        world.server.set("core/somaxconn", "4096");
        world
    }

    /// Removes all rules and tracked connections.
    pub fn flush(&self) {
        self.node.run("nft", &["flush", "ruleset"]);
        self.forget_connections();
    }

    /// Removes the tracked connections.
    pub fn forget_connections(&self) {
        self.node.run("conntrack", &["-F"]);
    }
}

/// Addresses of pods of another node.
pub fn pods() -> Vec<Ipv4Addr> {
    (0..CLIENTS).map(|number| address(PODS, number)).collect()
}

/// Addresses of clients that are no pods.
pub fn outside() -> Vec<Ipv4Addr> {
    (0..CLIENTS).map(|number| address(OUTSIDE, number)).collect()
}

fn address([a, b, c]: [u8; 3], number: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, 10 + number)
}
