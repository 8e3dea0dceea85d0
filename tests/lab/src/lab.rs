//! The lab as a whole: bring it up, attach to it, take it down.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kube::Client;
use serde::{Deserialize, Serialize};

use crate::api::Api;
use crate::cgroup::{self, Hierarchies};
use crate::install::steelyard_binary;
use crate::layout::{LabName, Layout, MOST_NODES, Member, refuse_masked};
use crate::node::NodePlan;
use crate::progress::Progress;
use crate::shared::Guardian;
use crate::wait::wait;
use crate::{control_plane, images, machine, manifests, netns, network, node, pki, programs};

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name; two labs of different names can run side by side.
    pub name: LabName,
    /// How many nodes.
    pub nodes: u8,
    /// Who forwards Service traffic.
    pub datapath: Datapath,
}

/// Who forwards Service traffic in a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// Nobody: for those who install something themselves.
    None,
    /// The real kube-proxy, in nftables mode.
    KubeProxy,
    /// Our chart, installed with Helm.
    Steelyard,
}

impl Options {
    /// Three nodes and nobody who forwards, under the name that `STEELYARD_LAB` says, or `lab`.
    ///
    /// # Errors
    /// If `STEELYARD_LAB` is not a lab's name.
    pub fn from_env() -> Result<Self> {
        Ok(Self { name: LabName::from_env()?, nodes: 3, datapath: Datapath::None })
    }
}

/// What `up` leaves for those who come after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How many nodes it has.
    pub nodes: u8,
    /// Who forwards Service traffic.
    pub datapath: Datapath,
    /// The folder of programs that it runs.
    pub bin: PathBuf,
    /// Whether `up` came to its end.
    pub complete: bool,
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    record: Record,
    api: OnceLock<Api>,
    // Last: everything else of the lab is let go of before it takes the lab down.
    guardian: Option<Guardian>,
}

impl Lab {
    /// Bring a lab up; what a crashed run of that name left is cleaned first.
    ///
    /// # Errors
    /// If one of that name is up, or something fails; then all is taken down again.
    pub fn start(options: &Options, progress: &Progress) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces and mounts: run it as root");
        }
        if !(1..=MOST_NODES).contains(&options.nodes) {
            bail!("a lab has 1 to {MOST_NODES} nodes, not {}", options.nodes);
        }
        let layout = Layout::from_env(options.name.clone())?;
        let lock = Lock::take(&layout)?;
        if Record::read(&layout).is_ok_and(|record| record.complete) && machine::pid(&layout, Member::Control).is_some()
        {
            bail!("lab {} is up already; `steelyard-lab down --name {0}` takes it down", layout.name());
        }
        if take_down(&layout)? {
            progress.say("cleaned what a crashed run had left");
        }
        let lab = Self::bring_up(layout.clone(), options, progress);
        if lab.is_err() {
            take_down(&layout).ok();
        }
        drop(lock);
        lab
    }

    /// Attach to a lab that is up.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn attach(name: LabName) -> Result<Self> {
        let layout = Layout::from_env(name)?;
        let up = Record::read(&layout).ok().filter(|_| machine::pid(&layout, Member::Control).is_some());
        let record = up.with_context(|| format!("lab {} is not up; `steelyard-lab up` starts it", layout.name()))?;
        Ok(Self { layout, record, api: OnceLock::new(), guardian: None })
    }

    fn bring_up(layout: Layout, options: &Options, progress: &Progress) -> Result<Self> {
        let mut say = |text: &str| progress.say(text);
        let programs = programs::ensure(&mut say)?;
        let bin = fs::canonicalize(&programs.bin)?;
        refuse_masked("the folder of programs", &bin)?;
        let images = images::ensure(&programs, &mut say)?;
        let images = images.iter().map(fs::canonicalize).collect::<std::io::Result<Vec<_>>>()?;
        for image in &images {
            refuse_masked("the image archive", image)?;
        }
        let ours = options.datapath == Datapath::Steelyard;
        let binary = ours.then(|| steelyard_binary(&mut say)).transpose()?;
        progress.say("programs and images are there");

        remove_folder(&layout.logs())?;
        let mut record = Record { nodes: options.nodes, datapath: options.datapath, bin: bin.clone(), complete: false };
        record.write(&layout)?;
        pki::write(&layout, options.nodes)?;
        network::create(&layout, options.nodes)?;
        progress.say("network is there");

        machine::start(&layout, Member::Control, &control_plane::spec(&layout, &bin)?)?;
        let gate = layout.state().join("nodes-may-register");
        let kube_proxy = options.datapath == Datapath::KubeProxy;
        let plan = NodePlan { bin: &bin, images: &images, kube_proxy, gate: gate.clone() };
        for n in 1..=options.nodes {
            machine::start(&layout, Member::Node(n), &node::spec(&layout, n, &plan)?)?;
        }
        progress.say(&format!("control plane and {} nodes started", options.nodes));

        let lab = Self { layout, record: record.clone(), api: OnceLock::new(), guardian: None };
        lab.wait_for_api()?;
        progress.say("API server is ready");
        lab.apply(&manifests::nodes(options.nodes))?;
        fs::write(&gate, "")?;
        lab.apply(&manifests::coredns())?;
        lab.wait_for_nodes(progress)?;
        if let Some(binary) = binary {
            lab.install_steelyard(&binary, &[])?;
            progress.say("Steelyard is installed");
        }
        if options.datapath != Datapath::None {
            lab.wait_for_dns()?;
            progress.say("CoreDNS is ready");
        }
        record.complete = true;
        record.write(&lab.layout)?;
        Ok(Self { record, ..lab })
    }

    pub(crate) fn set_guardian(&mut self, guardian: Guardian) {
        self.guardian = Some(guardian);
    }

    /// Names, paths and addresses.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What it was started with.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Member> + use<> {
        Member::nodes(self.record.nodes)
    }

    /// Path of one of the lab's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.record.bin.join(name)
    }

    /// The client's runtime.
    pub fn api(&self) -> Result<&Api> {
        if let Some(api) = self.api.get() {
            return Ok(api);
        }
        let netns = netns::open(&self.layout.netns(Member::Control))?;
        let made = Api::new(netns, &self.layout.kubeconfig("admin"))?;
        Ok(self.api.get_or_init(|| made))
    }

    /// A client with all rights. Use it inside [`Lab::block_on`]: that is where the API server can be reached.
    pub fn client(&self) -> Result<Client> {
        Ok(self.api()?.client())
    }

    /// Run a future where the API server can be reached, and wait for it.
    pub fn block_on<F>(&self, future: F) -> Result<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.api()?.block_on(future)
    }

    /// Get a path of the API server, as JSON.
    pub fn get_raw(&self, path: &str) -> Result<serde_json::Value> {
        let client = self.client()?;
        let path = path.to_owned();
        self.block_on(async move { Ok(client.request::<serde_json::Value>(get(&path)?).await?) })?
    }

    /// Take it down: nothing is left but logs.
    pub fn down(self) -> Result<()> {
        down(&self.layout)
    }

    fn wait_for_api(&self) -> Result<()> {
        let path = self.layout.machine_logs(Member::Control);
        wait("the API server to be ready", Duration::from_secs(60), || {
            let client = self.client()?;
            let ready =
                self.block_on(async move { client.request_text(get("/readyz")?).await.map_err(anyhow::Error::from) })??;
            Ok((ready == "ok").then_some(()))
        })
        .with_context(|| format!("logs are in {}", path.display()))
    }

    fn wait_for_nodes(&self, progress: &Progress) -> Result<()> {
        let mut told = Vec::new();
        wait("all nodes to be Ready", Duration::from_secs(120), || {
            let list = self.get_raw("/api/v1/nodes")?;
            let nodes = list.get("items").and_then(|items| items.as_array()).cloned().unwrap_or_default();
            for node in nodes.iter().filter(|node| is_ready(node)) {
                let name = node.pointer("/metadata/name").and_then(|name| name.as_str()).unwrap_or_default().to_owned();
                if !told.contains(&name) {
                    progress.say(&format!("{name} is Ready"));
                    told.push(name);
                }
            }
            let missing: Vec<_> = self.nodes().map(|n| n.to_string()).filter(|name| !told.contains(name)).collect();
            if missing.is_empty() { Ok(Some(())) } else { Err(anyhow!("not Ready: {}", missing.join(", "))) }
        })
        .with_context(|| format!("logs are in {}", self.layout.logs().display()))
    }

    /// Wait until CoreDNS answers: somebody must forward Service traffic for that.
    pub fn wait_for_dns(&self) -> Result<()> {
        wait("CoreDNS to be ready", Duration::from_secs(120), || {
            let deployment = self.get_raw("/apis/apps/v1/namespaces/kube-system/deployments/coredns")?;
            let ready = deployment.pointer("/status/readyReplicas").and_then(serde_json::Value::as_u64);
            Ok((ready == deployment.pointer("/spec/replicas").and_then(serde_json::Value::as_u64)).then_some(()))
        })
    }
}

fn get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

/// Whether the condition `Ready` of a node or pod is true.
pub(crate) fn is_ready(object: &serde_json::Value) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(|conditions| conditions.as_array());
    conditions.into_iter().flatten().any(|condition| {
        condition.get("type").is_some_and(|kind| kind == "Ready")
            && condition.get("status").is_some_and(|s| s == "True")
    })
}

impl Record {
    /// Read what `up` left.
    pub fn read(layout: &Layout) -> Result<Self> {
        Ok(serde_json::from_slice(&fs::read(layout.record())?)?)
    }

    fn write(&self, layout: &Layout) -> Result<()> {
        // Whole or not at all: others may read while we write.
        let path = layout.record();
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&draft, &path).with_context(|| format!("failed to write {}", path.display()))
    }
}

/// Take a lab down, also one that crashed or is half up. Nothing is left but logs.
pub fn down(layout: &Layout) -> Result<()> {
    if !layout.state().exists() {
        return take_down(layout).map(drop);
    }
    let _lock = Lock::take(layout)?;
    take_down(layout).map(drop)
}

/// As [`down`], and remove the lab's folder too.
pub fn purge(layout: &Layout) -> Result<()> {
    if !layout.state().exists() {
        return take_down(layout).map(drop);
    }
    let _lock = Lock::take(layout)?;
    take_down(layout)?;
    remove_folder(layout.state())?;
    // The folder of all labs, if this was the last.
    layout.state().parent().map(fs::remove_dir);
    Ok(())
}

/// Remove everything of a lab, whoever made it; whether there was anything.
fn take_down(layout: &Layout) -> Result<bool> {
    let hierarchies = Hierarchies::detect()?;
    let namespaces: Vec<String> = netns::list()?.into_iter().filter(|name| layout.owns_netns(name)).collect();
    let found = hierarchies.exists(&layout.cgroup()) || !namespaces.is_empty() || layout.record().exists();

    kill_inhabitants(&namespaces)?;
    hierarchies.remove(&layout.cgroup())?;
    // An init that was just being started had not joined the cgroup when we looked.
    kill_inhabitants(&namespaces)?;
    hierarchies.remove(&layout.cgroup())?;
    for member in Member::all(MOST_NODES) {
        let ended = || Ok(machine::pid(layout, member).is_none().then_some(()));
        wait(&format!("{member} to end"), Duration::from_secs(10), ended)?;
    }
    for name in &namespaces {
        netns::delete(name)?;
    }
    netns::tidy_folder();
    let entries = match fs::read_dir(layout.state()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error).context(format!("failed to read {}", layout.state().display())),
    };
    for entry in entries {
        let path = entry?.path();
        if path != layout.logs() && path != layout.lock() {
            remove_folder(&path)?;
        }
    }
    Ok(found)
}

/// Kill whoever is in one of these network namespaces, and wait until all are gone.
fn kill_inhabitants(namespaces: &[String]) -> Result<()> {
    let ours: Vec<(u64, u64)> =
        namespaces.iter().filter_map(|name| fs::metadata(netns::path(name)).ok()).map(|m| (m.dev(), m.ino())).collect();
    wait("the processes in the lab's namespaces to end", Duration::from_secs(30), || {
        let mut inhabitants = std::collections::BTreeSet::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            // A process that ended meanwhile, or a kernel thread, has none.
            let Ok(namespace) = fs::metadata(entry.path().join("ns/net")) else { continue };
            if ours.contains(&(namespace.dev(), namespace.ino())) {
                inhabitants.insert(pid);
            }
        }
        cgroup::kill_all(&inhabitants)?;
        Ok(inhabitants.is_empty().then_some(()))
    })
}

fn remove_folder(path: &Path) -> Result<()> {
    let removed = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// How long to wait for somebody else who brings the same lab up or down.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Held by whoever brings the lab up or takes it down.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Take it, waiting a while for somebody else to finish.
    pub(crate) fn take(layout: &Layout) -> Result<Self> {
        let path = layout.lock();
        wait(&format!("whoever brings lab {} up or down", layout.name()), LOCK_LIMIT, || {
            fs::create_dir_all(layout.state())
                .with_context(|| format!("failed to create {}", layout.state().display()))?;
            // Keys of the cluster's administrator are below.
            fs::set_permissions(layout.state(), fs::Permissions::from_mode(0o700))?;
            let mut file = File::options().create(true).append(true).open(&path)?;
            if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                bail!("process {} is at it", holder.trim());
            }
            if file.metadata()?.nlink() == 0 {
                // Its holder removed the lab's folder meanwhile.
                return Ok(None);
            }
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            Ok(Some(Self { _file: file }))
        })
    }
}
