//! Two network namespaces joined by a veth pair, and code and programs that run inside them.

use std::process::{Command, Output};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The interface in both namespaces.
pub(crate) const INTERFACE: &str = "veth0";

/// A network namespace, gone when dropped.
#[derive(Debug)]
pub(crate) struct Namespace(String);

/// Two namespaces on one wire: `node` has .11, `client` has .9.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) node: Namespace,
    pub(crate) client: Namespace,
}

impl Pair {
    pub(crate) fn new(test: &str) -> Self {
        let pair = Self {
            node: Namespace::new(&format!("steelyard-speaker-{test}-node")),
            client: Namespace::new(&format!("steelyard-speaker-{test}-client")),
        };
        ip(&[
            "link",
            "add",
            INTERFACE,
            "netns",
            &pair.node.0,
            "type",
            "veth",
            "peer",
            INTERFACE,
            "netns",
            &pair.client.0,
        ]);
        for (namespace, number) in [(&pair.node, 11), (&pair.client, 9)] {
            namespace.ip(&format!("link set {INTERFACE} up"));
            namespace.ip(&format!("addr add 192.0.2.{number}/24 dev {INTERFACE}"));
            namespace.ip(&format!("addr add 2001:db8::{number}/64 dev {INTERFACE} nodad"));
        }
        wait(Duration::from_secs(5), "carrier and link-local addresses", || {
            [&pair.node, &pair.client].iter().all(|namespace| {
                let text = namespace.ip(&format!("addr show dev {INTERFACE}"));
                text.contains("LOWER_UP") && text.contains("fe80::") && !text.contains("tentative")
            })
        });
        pair
    }
}

impl Namespace {
    fn new(name: &str) -> Self {
        // Left behind by a run that was killed.
        let _absent = Command::new("ip").args(["netns", "del", name]).output();
        ip(&["netns", "add", name]);
        let namespace = Self(name.to_owned());
        namespace.ip("link set lo up");
        namespace
    }

    /// The file by which it is entered.
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Runs `ip` inside; must succeed.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.0];
        all.extend(arguments.split_whitespace());
        ip(&all)
    }

    /// Runs a program inside.
    pub(crate) fn run(&self, command: &str) -> Output {
        let program = command.split_whitespace().next().unwrap();
        assert!(is_installed(program), "{program} is missing: install its Debian package");
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", &self.0]).args(command.split_whitespace()).output().unwrap()
    }

    /// Runs a future on a thread and a runtime of its own, whose sockets all belong to this namespace.
    pub(crate) fn spawn<T, F>(&self, future: F) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: AsyncFnOnce() -> T + Send + 'static,
    {
        let path = self.path();
        std::thread::spawn(move || {
            let file = std::fs::File::open(path).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(future())
        })
    }

    /// The Ethernet address of the interface.
    pub(crate) fn mac(&self) -> String {
        let text = self.ip(&format!("-br link show dev {INTERFACE}"));
        text.split_whitespace().nth(2).unwrap().to_owned()
    }

    /// What the kernel knows of a neighbour: address and state.
    pub(crate) fn neighbour(&self, address: &str) -> String {
        self.ip(&format!("neigh show {address} dev {INTERFACE}")).trim().to_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip is missing: install iproute2");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {errors} (these tests need root and network namespaces)");
    String::from_utf8(output.stdout).unwrap()
}

fn is_installed(program: &str) -> bool {
    std::env::var("PATH").unwrap().split(':').any(|folder| std::path::Path::new(folder).join(program).exists())
}

/// The value of a thread, or its panic.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Waits for a condition; gives the time it took.
pub(crate) fn wait(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    start.elapsed()
}
