//! Bring a lab up.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::down::{Lock, remove_folder, take_down};
use crate::install::steelyard_binary;
use crate::lab::{Datapath, Lab, Options, Record, get};
use crate::layout::{Layout, MOST_NODES, Member, refuse_masked};
use crate::node::NodePlan;
use crate::progress::Progress;
use crate::wait::wait;
use crate::{control_plane, images, machine, manifests, network, node, pki, programs};

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
        let record = Record { nodes: options.nodes, datapath: options.datapath, bin: bin.clone(), complete: false };
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

        let mut lab = Self::new(layout, record);
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
        lab.set_complete()?;
        Ok(lab)
    }

    fn wait_for_api(&self) -> Result<()> {
        let path = self.layout().machine_logs(Member::Control);
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
        .with_context(|| format!("logs are in {}", self.layout().logs().display()))
    }

    /// Wait until CoreDNS answers: somebody must forward Service traffic for that.
    pub fn wait_for_dns(&self) -> Result<()> {
        wait("CoreDNS to be ready", Duration::from_secs(120), || {
            let deployment = self.get_raw("/apis/apps/v1/namespaces/kube-system/deployments/coredns")?;
            let ready = deployment.pointer("/status/readyReplicas").and_then(Value::as_u64);
            Ok((ready == deployment.pointer("/spec/replicas").and_then(Value::as_u64)).then_some(()))
        })
    }
}

/// Whether the condition `Ready` of a node or pod is true.
fn is_ready(object: &Value) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(|conditions| conditions.as_array());
    conditions.into_iter().flatten().any(|condition| {
        condition.get("type").is_some_and(|kind| kind == "Ready")
            && condition.get("status").is_some_and(|s| s == "True")
    })
}
