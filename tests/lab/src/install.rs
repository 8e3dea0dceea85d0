//! Our own product on the lab: the chart, and new images of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::down::Lock;
use crate::images;
use crate::lab::Lab;
use crate::layout::{API_PORT, Member, POD_RANGES};
use crate::machine;
use crate::node::CONTAINERD;
use crate::run::run_from_file;

/// Namespace and release name of the chart.
const NAMESPACE: &str = "steelyard-system";
const RELEASE: &str = "steelyard";
/// The label of everything in it.
const OURS: &str = "app.kubernetes.io/name=steelyard";

impl Lab {
    /// Install our chart, or upgrade it, with the image made of `binary`, and wait until all of it is ready.
    ///
    /// # Errors
    /// If the chart or the binary is missing, or it does not become ready.
    pub fn install_steelyard(&self, binary: &Path, extra: &[&str]) -> Result<()> {
        self.install_steelyard_in(NAMESPACE, binary, extra)
    }

    /// The same in another namespace, where [`Lab::load`] does not look for it.
    pub(crate) fn install_steelyard_in(&self, namespace: &str, binary: &Path, extra: &[&str]) -> Result<()> {
        let chart = chart()?;
        self.import(&images::steelyard(binary, images::STEELYARD)?)?;
        let chart = chart.display().to_string();
        // Without kube-proxy the agent cannot reach the API server by its Service: it is what makes that work.
        let host = format!("apiServer.host={}", Member::Control.ipv4());
        let port = format!("apiServer.port={API_PORT}");
        let mut arguments =
            vec!["upgrade", "--install", RELEASE, &chart, "--namespace", namespace, "--create-namespace"];
        // Commas inside a value of --set part list entries.
        let pods = format!("datapath.clusterCIDRs={{{POD_RANGES}}}");
        arguments.extend(["--set", &host, "--set", &port, "--set", &pods]);
        arguments.extend(extra);
        arguments.extend(["--wait", "--timeout", "90s"]);
        self.helm(&arguments).map(drop).with_context(|| self.what_our_pods_say(namespace))
    }

    /// Helm does not tell why something did not become ready.
    fn what_our_pods_say(&self, namespace: &str) -> String {
        let said = |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
        let pods = said(&["--namespace", namespace, "get", "pods", "--output", "wide"]);
        let logs =
            said(
                &[
                    &[
                        "--namespace",
                        namespace,
                        "logs",
                        "--selector",
                        OURS,
                        "--all-containers",
                        "--prefix",
                        "--tail=10",
                    ][..],
                    &["--ignore-errors", "--max-log-requests=60"],
                ]
                .concat(),
            );
        format!("Steelyard did not become ready:\n{pods}{logs}")
    }

    /// Put a newly built `binary` on all nodes and let everything of ours restart with it, one after the other.
    ///
    /// # Errors
    /// If a node refuses it, the restart does not come to its end, or the lab is not up.
    pub fn load(&self, binary: &Path) -> Result<()> {
        let _lock = Lock::take_of_running(self.layout())?;
        self.import(&images::steelyard(binary, images::STEELYARD)?)?;
        let ours = ["deployments,daemonsets", "--selector", OURS];
        let namespace = ["--namespace", NAMESPACE];
        self.kubectl(&[&["rollout", "restart"][..], &ours, &namespace].concat())?;
        self.kubectl(&[&["rollout", "status"][..], &ours, &namespace, &["--timeout", "90s"]].concat()).map(drop)
    }

    /// Put an image archive on all nodes that have power.
    ///
    /// # Errors
    /// If a node refuses it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        std::thread::scope(|scope| {
            let imports: Vec<_> = self
                .nodes()
                .filter(|node| machine::pid(self.layout(), *node).is_some())
                .map(|node| scope.spawn(move || self.import_on(node, archive)))
                .collect();
            imports.into_iter().try_for_each(|import| match import.join() {
                Ok(done) => done,
                Err(_) => bail!("the import panicked"),
            })
        })
    }

    fn import_on(&self, node: Member, archive: &Path) -> Result<()> {
        let mut command = self.enter(node)?;
        command.arg(self.program("ctr"));
        // As standard input: the node sees other folders than we do.
        command.args(["--address", CONTAINERD, "--namespace", "k8s.io", "images", "import", "--local", "-"]);
        run_from_file(&mut command, archive).map(drop).with_context(|| format!("failed to import on {node}"))
    }

    /// A command that runs its arguments in all namespaces of a machine.
    pub fn enter(&self, member: Member) -> Result<Command> {
        let pid = machine::pid(self.layout(), member).with_context(|| format!("{member} has no power"))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]);
        Ok(command)
    }
}

/// The chart of the checkout in which we are, or from which we were built.
fn chart() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let charts = here.ancestors().chain(built.ancestors()).map(|folder| folder.join("charts/steelyard"));
    charts
        .into_iter()
        .find(|chart| chart.join("Chart.yaml").is_file())
        .context("no charts/steelyard above this folder: run it in a checkout of Steelyard, or give --without-datapath")
}

/// The binary to make the image of: what `STEELYARD_BIN` names, else the static one that is built from this checkout.
///
/// # Errors
/// If it cannot be built.
pub fn steelyard_binary(progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    match std::env::var_os("STEELYARD_BIN") {
        Some(path) => Ok(path.into()),
        None => images::steelyard_binary(progress),
    }
}
