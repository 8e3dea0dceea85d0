//! The two service proxies as processes, and what they cost.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use steelyard_lab::api_server::{ApiServer, kube_proxy_config, last_lines, spawn};

use crate::kernel::Commits;
use crate::objects::NODE;
use crate::world::World;

/// The kernel's unit of CPU time in /proc.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Steelyard,
    /// Another agent, to compare with.
    Earlier,
    KubeProxy,
}

impl Who {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steelyard => "Steelyard",
            Self::Earlier => "Steelyard, earlier",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// Starts them, with what they need to reach the API server.
pub struct Launcher {
    folder: PathBuf,
    kubeconfig: PathBuf,
    kube_proxy: PathBuf,
    steelyard: String,
    earlier: Option<String>,
}

impl Launcher {
    pub fn new(server: &ApiServer, kube_proxy: PathBuf) -> Self {
        let steelyard = std::env::var("STEELYARD_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_steelyard").to_owned());
        let earlier = std::env::var("STEELYARD_EARLIER").ok();
        Self { folder: server.folder().to_owned(), kubeconfig: server.kubeconfig(), kube_proxy, steelyard, earlier }
    }

    /// Whether there is another agent to compare with.
    pub const fn has_earlier(&self) -> bool {
        self.earlier.is_some()
    }

    pub fn start(&self, who: Who, world: &World) -> Proxy {
        let log = self.folder.join(format!("{}.log", who.name()));
        let command = match who {
            Who::Steelyard => self.steelyard(&self.steelyard),
            Who::Earlier => self.steelyard(self.earlier.as_ref().unwrap()),
            Who::KubeProxy => self.kube_proxy(),
        };
        let started = Instant::now();
        let child = spawn(world.node.name(), &command, &log).unwrap();
        Proxy { who, child, log, started, most_of_children: 0.0 }
    }

    fn steelyard(&self, program: &str) -> Vec<String> {
        let kubeconfig = format!("KUBECONFIG={}", self.kubeconfig.display());
        let words = ["env", &kubeconfig, program, "node", "--node-name", NODE, "--speaker=false", "--datapath=on"];
        let rest = ["--cluster-cidr=10.244.0.0/16", "--admin-address=127.0.0.1:9791"];
        words.into_iter().chain(rest).map(str::to_owned).collect()
    }

    /// In nftables mode, programming as fast as it can and nothing that nobody changed.
    fn kube_proxy(&self) -> Vec<String> {
        let config = kube_proxy_config(&self.kubeconfig, NODE, "10.244.0.0/16", "syncPeriod: 1h");
        let path = self.folder.join("kube-proxy.yaml");
        fs::write(&path, config).unwrap();
        vec![self.kube_proxy.display().to_string(), format!("--config={}", path.display())]
    }
}

/// One that runs; it ends when this is dropped.
pub struct Proxy {
    pub who: Who,
    pub started: Instant,
    child: Child,
    log: PathBuf,
    most_of_children: f64,
}

impl Proxy {
    /// Ends the bench if it has ended.
    pub fn check(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            self.give_up(&format!("ended ({status})"));
        }
    }

    /// Ends the bench, with the end of its log.
    pub fn give_up(&self, what: &str) -> ! {
        panic!("{} {what}. The end of its log:\n{}", self.who.name(), last_lines(&self.log));
    }

    /// CPU seconds that it and its children have used.
    pub fn cpu(&self) -> f64 {
        self.children().into_iter().map(ticks).sum::<f64>() + ticks(self.child.id())
    }

    /// Resident memory in MiB, now.
    pub fn memory(&self) -> f64 {
        status(self.child.id(), "VmRSS:")
    }

    /// The most that it ever had.
    pub fn most_memory(&self) -> f64 {
        status(self.child.id(), "VmHWM:")
    }

    /// The most that one of its children was seen with.
    pub const fn most_of_children(&self) -> f64 {
        self.most_of_children
    }

    /// Looks at its children.
    pub fn watch_children(&mut self) {
        let most = self.children().into_iter().map(|child| status(child, "VmHWM:")).fold(0.0, f64::max);
        self.most_of_children = self.most_of_children.max(most);
    }

    fn children(&self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
        lists.flat_map(|list| list.split(' ').filter_map(|id| id.trim().parse().ok()).collect::<Vec<u32>>()).collect()
    }

    /// Waits until it has nothing to do: no child, no commit and next to no CPU time for half a second.
    pub fn wait_until_idle(&mut self, world: &World) {
        let commits = Commits::of(world);
        let until = Instant::now() + Duration::from_secs(300);
        let mut before = self.cpu();
        let mut quiet = 0;
        while quiet < 5 {
            thread::sleep(Duration::from_millis(100));
            self.check();
            self.watch_children();
            let now = self.cpu();
            let is_quiet = self.children().is_empty() && !commits.drain() && now - before < 0.025;
            quiet = if is_quiet { quiet + 1 } else { 0 };
            before = now;
            if Instant::now() > until {
                self.give_up("does not come to rest");
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU seconds of a process and of its children that have ended.
fn ticks(process: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // After the name, which may hold anything: state is the first, the four times are the twelfth to fifteenth.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let times = fields.iter().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok());
    times.sum::<f64>() / TICKS_PER_SECOND
}

fn status(process: u32, name: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}
