//! The upstream e2e suite, run against a lab from outside the cluster.
//!
//! It runs as the remote client: some of its specs judge by the runner's address, which must lie outside the nodes'
//! networks, and it expects a router that lets it reach pods and does not tell it of hosts that do not answer.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::layout::{Member, pods_v4, pods_v6};
use crate::{Lab, Place, Progress, images, netns, programs, run};

/// Which specs, and how.
#[derive(Debug, Clone)]
pub struct Conformance {
    /// Regular expression of the names to run.
    pub focus: String,
    /// Regular expression of the names to leave out.
    pub skip: Option<String>,
    /// Ginkgo's label filter, as `sig-network && !Slow`.
    pub labels: Option<String>,
    /// How many processes.
    pub procs: u8,
}

impl Lab {
    /// Run specs of the suite, its output to ours; whether all passed.
    ///
    /// # Errors
    /// If its programs or images cannot be made or put onto the nodes.
    pub fn run_conformance(&self, what: &Conformance, progress: &Progress) -> Result<bool> {
        let mut say = |text: &str| progress.say(text);
        let suite = programs::ensure_conformance(&mut say)?;
        let cluster = programs::Programs { bin: self.record().bin.clone() };
        let archive = images::conformance_images(&cluster, &suite, &mut say)?;
        progress.say("putting the suite's images onto the nodes");
        self.import(&archive)?;
        self.let_remote_reach_pods()?;
        progress.say("running the suite");

        let folder = self.layout().state().join("conformance");
        fs::create_dir_all(&folder)?;
        let mut ginkgo = self.command("kubectl");
        ginkgo = with_env_of(&ginkgo, Command::new(suite.bin.join("ginkgo")));
        ginkgo.args(["--no-color", "-v", "--timeout=3h", "--json-report=report.json"]);
        ginkgo.arg(format!("--output-dir={}", folder.display())).arg(format!("--procs={}", what.procs));
        ginkgo.arg(format!("--focus={}", what.focus));
        ginkgo.args(what.skip.iter().map(|skip| format!("--skip={skip}")));
        ginkgo.args(what.labels.iter().map(|labels| format!("--label-filter={labels}")));
        ginkgo.arg(suite.bin.join("e2e.test")).arg("--");
        ginkgo.arg(format!("--kubeconfig={}", self.layout().kubeconfig("admin").display()));
        ginkgo.args(["--provider=skeleton", "--allowed-not-ready-nodes=0", "--node-os-distro=debian"]);
        ginkgo.arg(format!("--num-nodes={}", self.record().nodes));
        ginkgo.arg(format!("--kubectl-path={}", self.program("kubectl").display()));
        ginkgo.current_dir(&folder);
        let netns = netns::open(&self.layout().netns(Member::Remote))?;
        let status = netns::within(netns, move || ginkgo.status().context("failed to run ginkgo"))?;
        progress.say(&format!("report: {}", folder.join("report.json").display()));
        if status.code().is_none() {
            bail!("ginkgo was killed ({status})");
        }
        Ok(status.success())
    }

    fn let_remote_reach_pods(&self) -> Result<()> {
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

fn with_env_of(from: &Command, mut to: Command) -> Command {
    to.envs(from.get_envs().filter_map(|(key, value)| Some((key, value?))));
    to
}
