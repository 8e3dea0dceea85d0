//! Let the remote client reach pods, as tests that run outside a cluster but look into it need.

use std::process::Command;

use anyhow::Result;

use crate::lab::Lab;
use crate::layout::{Member, pods_v4, pods_v6};
use crate::place::Place;
use crate::run;

impl Lab {
    /// Give the router routes to pods, and let it keep to itself that a host does not answer.
    ///
    /// # Errors
    /// If the lab's router is not there.
    pub fn let_remote_reach_pods(&self) -> Result<()> {
        let mut lines = String::new();
        for n in 1..=self.record().nodes {
            let node = Member::Node(n);
            lines.push_str(&format!("route replace {} via {}\n", pods_v4(n), node.ipv4()));
            lines.push_str(&format!("route replace {} via {}\n", pods_v6(n), node.ipv6()));
        }
        run::run_with_input(
            Command::new("ip").args(["-n", &self.layout().netns(Member::Router), "-batch", "-"]),
            &lines,
        )?;
        // "Host unreachable", which an unanswered ARP request also gives, counts as an answer to UDP.
        let rules = "table inet no-unreachables
            delete table inet no-unreachables
            table inet no-unreachables {
              chain output {
                type filter hook output priority 0
                icmp type destination-unreachable drop
                icmpv6 type destination-unreachable drop
              }
            }";
        self.at(&Place::Router)?.within(|| run::run_with_input(Command::new("nft").args(["-f", "-"]), rules)).map(drop)
    }
}
