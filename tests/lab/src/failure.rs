//! Break a node in the ways that real nodes break, and heal it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::cgroup::Hierarchies;
use crate::down::Lock;
use crate::lab::Lab;
use crate::layout::Member;
use crate::{machine, network};

/// A way to break a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Failure {
    /// Its power is cut: every process dies at once, the kernel's state (rules, routes, connections) is lost.
    PowerOff,
    /// Its cable is pulled: it sees no carrier.
    LinkDown,
    /// It hangs: every process is frozen, the kernel goes on (answers ping, forwards packets).
    Pause,
    /// Its switch port passes nothing: it sees carrier and hears nobody.
    Isolate,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "power-off",
            Self::LinkDown => "link-down",
            Self::Pause => "pause",
            Self::Isolate => "isolate",
        })
    }
}

impl FromStr for Failure {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::PowerOff, Self::LinkDown, Self::Pause, Self::Isolate];
        all.into_iter()
            .find(|failure| failure.to_string() == text)
            .with_context(|| format!("{text:?} is not one of power-off, link-down, pause, isolate"))
    }
}

impl Lab {
    /// Break a node. Failures add up.
    ///
    /// # Errors
    /// If there is no such node, or the lab is not up.
    pub fn fail(&self, node: &str, failure: Failure) -> Result<()> {
        let node = self.node(node)?;
        let _lock = Lock::take_of_running(self.layout())?;
        match failure {
            Failure::PowerOff => {
                // No packet of the dying node may get out: first the cable, then the power.
                network::set_port(self.layout(), node, false)?;
                machine::kill_machine(self.layout(), node)
            }
            Failure::LinkDown => network::set_port(self.layout(), node, false),
            Failure::Pause => Hierarchies::detect()?.freeze(&self.layout().machine_cgroup(node)),
            Failure::Isolate => network::set_forwarding(self.layout(), node, false),
        }
    }

    /// Undo every failure of a node. One whose power was cut boots; its disk is as it was.
    ///
    /// # Errors
    /// If there is no such node, it does not start, or the lab is not up.
    pub fn heal(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        let _lock = Lock::take_of_running(self.layout())?;
        if machine::pid(self.layout(), node).is_none() {
            network::disconnect(self.layout(), node)?;
            network::connect(self.layout(), node, self.record().nodes)?;
            return machine::boot(self.layout(), node);
        }
        let cgroup = self.layout().machine_cgroup(node);
        Hierarchies::detect()?.thaw(&cgroup)?;
        network::set_port(self.layout(), node, true)?;
        network::set_forwarding(self.layout(), node, true)
    }

    /// What is broken of a node.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn failures(&self, node: &str) -> Result<Vec<Failure>> {
        let node = self.node(node)?;
        if machine::pid(self.layout(), node).is_none() {
            return Ok(vec![Failure::PowerOff]);
        }
        let (up, forwarding) = network::port(self.layout(), node)?;
        let frozen = Hierarchies::detect()?.is_frozen(&self.layout().machine_cgroup(node));
        let found = [(!up, Failure::LinkDown), (frozen, Failure::Pause), (up && !forwarding, Failure::Isolate)];
        Ok(found.into_iter().filter_map(|(broken, failure)| broken.then_some(failure)).collect())
    }

    fn node(&self, name: &str) -> Result<Member> {
        match name.parse() {
            Ok(node @ Member::Node(n)) if n <= self.record().nodes => Ok(node),
            _ => bail!(
                "{name:?} is no node of lab {}, which has node1 to node{}",
                self.layout().name(),
                self.record().nodes
            ),
        }
    }
}
