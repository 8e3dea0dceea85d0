//! The lab's network: one bridge in a namespace of its own, a leg for every member, a router to a second network.
//!
//! ```text
//!  control .10  node1 .11  node2 .12 …  client .200         remote .200
//!      └───────────┴──────────┴────────────┴──── bridge     │
//!                  192.0.2.0/24                   │.1     .1│  198.51.100.0/24
//!                  2001:db8:1::/64              router ─────┘  2001:db8:2::/64
//! ```

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::layout::{Layout, Member, pods_v4, pods_v6};
use crate::netns;
use crate::run::{run, run_with_input};
use crate::wait::wait;

/// The bridge in the fabric's namespace; its ports are named after the members.
const BRIDGE: &str = "segment";

/// Make all namespaces and connect them.
pub(crate) fn create(layout: &Layout, nodes: u8) -> Result<()> {
    netns::create(&layout.fabric())?;
    set_sysctls(&layout.fabric(), &[("ipv6/conf/default/disable_ipv6", "1")])?;
    ip(
        &layout.fabric(),
        &format!("link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0\nlink set {BRIDGE} up\n"),
    )?;
    for member in Member::all(nodes) {
        connect(layout, member, nodes)?;
    }
    ip(
        &layout.netns(Member::Router),
        &format!(
            "link add eth1 type veth peer name eth0 address {} netns {}\nlink set eth1 up\n\
             addr add 198.51.100.1/24 dev eth1\naddr add 2001:db8:2::1/64 dev eth1 nodad\n",
            Member::Remote.mac(),
            layout.netns(Member::Remote)
        ),
    )?;
    ip(&layout.netns(Member::Remote), &member_setup(Member::Remote, nodes))
}

/// Make a member's namespace and, but for the remote client, its leg on the bridge.
pub(crate) fn connect(layout: &Layout, member: Member, nodes: u8) -> Result<()> {
    let name = layout.netns(member);
    netns::create(&name)?;
    set_sysctls(&name, member_sysctls(member))?;
    if member == Member::Remote {
        return Ok(());
    }
    ip(
        &layout.fabric(),
        &format!(
            "link add {member} type veth peer name eth0 address {} netns {name}\nlink set {member} master {BRIDGE} up\n",
            member.mac()
        ),
    )?;
    ip(&name, &member_setup(member, nodes))
}

/// Take a node's namespace and leg away, as a machine that reboots loses its kernel's state.
pub(crate) fn disconnect(layout: &Layout, member: Member) -> Result<()> {
    ip(&layout.fabric(), &format!("link delete {member}\n")).ok();
    netns::delete(&layout.netns(member))
}

/// Pull a member's cable, or put it back.
pub(crate) fn set_port(layout: &Layout, member: Member, up: bool) -> Result<()> {
    ip(&layout.fabric(), &format!("link set {member} {}\n", if up { "up" } else { "down" }))
}

/// Let the bridge drop every frame of a member, which keeps its carrier; or let them pass again.
pub(crate) fn set_forwarding(layout: &Layout, member: Member, forwarding: bool) -> Result<()> {
    // 0 is disabled, 3 is forwarding. `ip link set … type bridge_slave state 0` has no effect.
    let state = if forwarding { "3" } else { "0" };
    let (fabric, port) = (layout.fabric(), member.to_string());
    let set = || run(Command::new("bridge").args(["-n", &fabric, "link", "set", "dev", &port, "state", state]));
    if !forwarding {
        return set().map(drop);
    }
    // A port that has just got its cable back is down for the bridge until the kernel has looked at its carrier, which it does
    // once a second while many links change.
    wait("the bridge to take the port up", Duration::from_secs(5), || set().map(Some)).map(drop)
}

/// What the bridge says of a member's port: `(up, forwarding)`.
pub(crate) fn port(layout: &Layout, member: Member) -> Result<(bool, bool)> {
    let text =
        run(Command::new("ip").args(["-n", &layout.fabric(), "-d", "link", "show", "dev", &member.to_string()]))?;
    let flags = text.split(['<', '>']).nth(1).unwrap_or_default();
    let up = flags.split(',').any(|flag| flag == "UP");
    Ok((up, !text.contains("state disabled")))
}

fn member_sysctls(member: Member) -> &'static [(&'static str, &'static str)] {
    match member {
        // What an installation of Kubernetes asks of its nodes.
        Member::Node(_) | Member::Router => &[
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/disable_ipv6", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/forwarding", "1"),
            // A new namespace copies these from the machine.
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ],
        Member::Control | Member::Client | Member::Remote => &[
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/disable_ipv6", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
        ],
    }
}

/// The `ip -batch` lines that set up a member inside its namespace.
fn member_setup(member: Member, nodes: u8) -> String {
    let (v4, v6) = (member.ipv4(), member.ipv6());
    let mut lines =
        format!("link set lo up\nlink set eth0 up\naddr add {v4}/24 brd + dev eth0\naddr add {v6}/64 dev eth0 nodad\n");
    let gateways: Option<[IpAddr; 2]> = match member {
        Member::Router => None,
        Member::Remote => Some([[198, 51, 100, 1].into(), [0x2001, 0xdb8, 2, 0, 0, 0, 0, 1].into()]),
        Member::Control | Member::Client | Member::Node(_) => {
            Some([Member::Router.ipv4().into(), Member::Router.ipv6().into()])
        }
    };
    for gateway in gateways.into_iter().flatten() {
        // Writing to a String cannot fail.
        writeln!(lines, "route add default via {gateway}").ok();
    }
    // Who reaches pods: nodes and the API server. Clients reach Services only, as outside a real cluster.
    if matches!(member, Member::Node(_) | Member::Control) {
        for n in (1..=nodes).filter(|n| Member::Node(*n) != member) {
            writeln!(lines, "route add {} via {}", pods_v4(n), Member::Node(n).ipv4()).ok();
            writeln!(lines, "route add {} via {}", pods_v6(n), Member::Node(n).ipv6()).ok();
        }
    }
    lines
}

fn set_sysctls(name: &str, values: &[(&str, &str)]) -> Result<()> {
    netns::within(netns::open(name)?, || {
        for (key, value) in values {
            let path = format!("/proc/sys/net/{key}");
            fs::write(&path, value).with_context(|| format!("failed to set {path}"))?;
        }
        Ok(())
    })
}

fn ip(netns: &str, lines: &str) -> Result<()> {
    run_with_input(Command::new("ip").args(["-n", netns, "-batch", "-"]), lines).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_route_to_the_pods_of_other_nodes_only() {
        let lines = member_setup(Member::Node(2), 3);
        assert!(lines.contains("route add 10.244.1.0/24 via 192.0.2.11\n"));
        assert!(lines.contains("route add fd00:10:244:3::/64 via 2001:db8:1::13\n"));
        assert!(!lines.contains("10.244.2.0/24"));
        assert!(lines.contains("route add default via 2001:db8:1::1\n"));
    }

    #[test]
    fn clients_do_not_reach_pods() {
        for client in [Member::Client, Member::Remote] {
            assert!(!member_setup(client, 3).contains("10.244."), "{client}");
        }
    }
}
