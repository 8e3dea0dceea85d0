//! A lab that is up: what it is, and its API server.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use kube::Client;
use serde::{Deserialize, Serialize};

use crate::api::Api;
use crate::down::down;
use crate::layout::{LabName, Layout, Member};
use crate::shared::Guardian;
use crate::{machine, netns};

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
    /// Attach to a lab that is up.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn attach(name: LabName) -> Result<Self> {
        let layout = Layout::from_env(name)?;
        let up = Record::read(&layout).ok().filter(|_| machine::pid(&layout, Member::Control).is_some());
        let record = up.with_context(|| format!("lab {} is not up; `steelyard-lab up` starts it", layout.name()))?;
        Ok(Self::new(layout, record))
    }

    /// The value for a lab whose machines were started.
    pub(crate) fn new(layout: Layout, record: Record) -> Self {
        Self { layout, record, api: OnceLock::new(), guardian: None }
    }

    pub(crate) fn set_complete(&mut self) -> Result<()> {
        self.record.complete = true;
        self.record.write(&self.layout)
    }

    /// Record that somebody forwards Service traffic since `up`.
    pub(crate) fn set_datapath(&mut self, datapath: Datapath) -> Result<()> {
        self.record.datapath = datapath;
        self.record.write(&self.layout)
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
}

pub(crate) fn get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

impl Record {
    /// Read what `up` left.
    pub fn read(layout: &Layout) -> Result<Self> {
        Ok(serde_json::from_slice(&fs::read(layout.record())?)?)
    }

    pub(crate) fn write(&self, layout: &Layout) -> Result<()> {
        // Whole or not at all: others may read while we write.
        let path = layout.record();
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&draft, &path).with_context(|| format!("failed to write {}", path.display()))
    }
}
