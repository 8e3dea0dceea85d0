//! An API server by itself: etcd and kube-apiserver in a namespace of the caller's, for tests that need API objects, the
//! watches on them and the checks of a real server, and no cluster behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::api::Api;
use crate::init::{Condition, Program};
use crate::lab::get;
use crate::layout::{LabName, Layout, Member};
use crate::programs::Programs;
use crate::run::run;
use crate::wait::wait;
use crate::{control_plane, netns, pki};

/// How long a program may take to answer.
const LIMIT: Duration = Duration::from_secs(60);
/// What its state folder is called, with the process that made it.
const NAME: &str = "api-server-";

/// A running API server; it ends, and what it kept is gone, when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    layout: Layout,
    programs: Vec<Child>,
    api: Option<Api>,
}

impl ApiServer {
    /// Starts one in the namespace `netns`, which needs no link. `flags` are added to those of a lab's API server.
    ///
    /// # Errors
    /// If a program cannot be started or does not answer; the error says where its log is.
    pub fn start(netns: &str, programs: &Programs, flags: &[&str]) -> Result<Self> {
        remove_leftovers()?;
        let name: LabName = format!("{NAME}{}", std::process::id()).parse()?;
        let layout = Layout::from_env(name)?;
        fs::create_dir_all(layout.machine_logs(Member::Control))?;
        pki::write(&layout, 0)?;
        run(Command::new("ip").args(["-n", netns, "address", "replace"]).args([
            format!("{}/32", Member::Control.ipv4()).as_str(),
            "dev",
            "lo",
        ]))?;
        run(Command::new("ip").args(["-n", netns, "link", "set", "lo", "up"]))?;
        let mut server = Self { layout, programs: Vec::new(), api: None };
        let spec = control_plane::spec(&server.layout, &programs.bin)?;
        for mut program in spec.programs.into_iter().filter(|it| it.name == "etcd" || it.name == "kube-apiserver") {
            if program.name == "kube-apiserver" {
                program.command.extend(flags.iter().map(|flag| (*flag).to_owned()));
            }
            server.wait_for(netns, &program)?;
            let child = spawn(netns, &program.command, &server.log(&program.name))?;
            server.programs.push(child);
        }
        let api = Api::new(netns::open(netns)?, &server.kubeconfig())?;
        let client = api.client();
        wait("the API server", LIMIT, || {
            let client = client.clone();
            let ready =
                api.block_on(async move { Ok::<_, anyhow::Error>(client.request_text(get("/readyz")?).await?) });
            ready??;
            Ok(Some(()))
        })
        .with_context(|| format!("see {}", server.log("kube-apiserver").display()))?;
        server.api = Some(api);
        Ok(server)
    }

    /// A client of the administrator's.
    ///
    /// # Errors
    /// Never once it has started.
    pub fn api(&self) -> Result<&Api> {
        self.api.as_ref().context("the API server has not started")
    }

    /// The administrator's kubeconfig, which names the server by an address of its own namespace.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig("admin")
    }

    /// The same for a namespace where the server is reached at `server`, such as `127.0.0.1:6443`.
    ///
    /// # Errors
    /// If the kubeconfig cannot be read.
    pub fn kubeconfig_at(&self, server: &str) -> Result<String> {
        let text = fs::read_to_string(self.kubeconfig())?;
        Ok(text.replace(&format!("{}:{}", Member::Control.ipv4(), crate::layout::API_PORT), server))
    }

    /// A folder that goes with it.
    pub fn folder(&self) -> &Path {
        self.layout.state()
    }

    fn log(&self, program: &str) -> PathBuf {
        self.layout.machine_logs(Member::Control).join(format!("{program}.log"))
    }

    fn wait_for(&self, netns: &str, program: &Program) -> Result<()> {
        for condition in &program.after {
            let Condition::Accepts(address) = condition else { bail!("{} waits for what is not there", program.name) };
            wait(&format!("somebody at {address}"), LIMIT, || {
                let connected = netns::within(netns::open(netns)?, || Ok(std::net::TcpStream::connect(address)?));
                connected.map(|_| Some(()))
            })?;
        }
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.api = None;
        for program in self.programs.iter_mut().rev() {
            program.kill().ok();
            program.wait().ok();
        }
        fs::remove_dir_all(self.layout.state()).ok();
    }
}

/// Starts a program in a namespace; it is killed when the thread that started it ends, so do that in the main one.
///
/// # Errors
/// If it cannot be started.
pub fn spawn(netns: &str, command: &[String], log: &Path) -> Result<Child> {
    let output = File::options().create(true).append(true).open(log);
    let output = output.with_context(|| format!("failed to write {}", log.display()))?;
    Command::new("nsenter")
        .arg(format!("--net={}", netns::path(netns).display()))
        .args(["setpriv", "--pdeathsig", "KILL", "--"])
        .args(command)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("failed to run nsenter (apt-get install util-linux)")
}

/// The configuration of a kube-proxy in nftables mode that serves `node` and programs as fast as it can; `nftables` is the
/// rest of what it says of that mode, as in `syncPeriod: 1h`.
pub fn kube_proxy_config(kubeconfig: &Path, node: &str, cluster_cidr: &str, nftables: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: '{}', qps: 100, burst: 200}}
mode: nftables
detectLocalMode: ClusterCIDR
clusterCIDR: '{cluster_cidr}'
hostnameOverride: {node}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
nftables: {{minSyncPeriod: 10ms, {nftables}}}
# The table's size is the whole machine's.
conntrack: {{maxPerCore: 0, min: 0}}
",
        kubeconfig.display()
    )
}

/// The end of a program's log.
pub fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}

/// Folders of processes that died.
fn remove_leftovers() -> Result<()> {
    let example = Layout::from_env(format!("{NAME}0").parse()?)?;
    let home = example.state().parent().context("a state folder without a parent")?;
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix(NAME).filter(|maker| !Path::new(&format!("/proc/{maker}")).exists());
        if maker.is_some() {
            fs::remove_dir_all(entry.path()).with_context(|| format!("failed to remove {name}"))?;
        }
    }
    Ok(())
}
