//! The two service proxies, each in a namespace of its own: kube-proxy, and the agent under test.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use ipnet::IpNet;
use steelyard::datapath::settings::{DetectLocal, NodePortSelector, Settings};
use steelyard_lab::api_server::{kube_proxy_config, last_lines, spawn};

use crate::relay;
use crate::stage::namespace::Namespace;

/// The node that both serve.
pub const NODE: &str = "test-node";

/// What both proxies are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Prefixes of pods; of none of a family, pods cannot be told there.
    pub cluster_cidrs: Vec<IpNet>,
    pub masquerade_all: bool,
    /// As kube-proxy reads them; none means the primary address.
    pub node_port_addresses: Vec<String>,
}

impl Flags {
    /// The same as the datapath's own settings.
    pub fn settings(&self) -> Result<Settings, String> {
        let selectors: Result<Vec<NodePortSelector>, _> =
            self.node_port_addresses.iter().map(|text| text.parse()).collect();
        Ok(Settings {
            detect_local: DetectLocal::Prefixes(self.cluster_cidrs.clone()),
            masquerade_all: self.masquerade_all,
            node_port_addresses: selectors.map_err(|error| error.to_string())?,
            ..Settings::default()
        })
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cidrs: Vec<String> = self.cluster_cidrs.iter().map(ToString::to_string).collect();
        write!(f, "cluster CIDRs [{}]", cidrs.join(", "))?;
        if self.masquerade_all {
            f.write_str(", masquerade all")?;
        }
        write!(f, ", NodePorts on [{}]", self.node_port_addresses.join(", "))
    }
}

/// A proxy that runs; it ends when this is dropped.
pub struct Proxy {
    child: Child,
    log: PathBuf,
}

impl Proxy {
    /// kube-proxy, in nftables mode, programming as fast as it can.
    pub fn kube_proxy(at: &Namespace, program: &Path, folder: &Path, flags: &Flags) -> Result<Self, String> {
        let quoted = |texts: &[String]| texts.iter().map(|text| format!("'{text}'")).collect::<Vec<_>>().join(", ");
        let cidrs: Vec<String> = flags.cluster_cidrs.iter().map(ToString::to_string).collect();
        let nftables = format!("masqueradeAll: {}, syncPeriod: 30s", flags.masquerade_all);
        let mut config = kube_proxy_config(&folder.join("proxies.kubeconfig"), NODE, &cidrs.join(","), &nftables);
        config.push_str(&format!("nodePortAddresses: [{}]\n", quoted(&flags.node_port_addresses)));
        let path = folder.join("kube-proxy.yaml");
        fs::write(&path, config).map_err(|error| format!("failed to write {}: {error}", path.display()))?;
        let command = vec![program.display().to_string(), format!("--config={}", path.display()), "-v=2".to_owned()];
        Self::start(at, &command, folder.join("kube-proxy.log"))
    }

    /// The agent under test.
    pub fn steelyard(at: &Namespace, program: &Path, folder: &Path, flags: &Flags) -> Result<Self, String> {
        let kubeconfig = format!("KUBECONFIG={}", folder.join("proxies.kubeconfig").display());
        let program = program.display().to_string();
        let mut command: Vec<String> = ["env", &kubeconfig, &program, "node", "--node-name", NODE, "--speaker=false"]
            .into_iter()
            .map(str::to_owned)
            .collect();
        command.extend(["--datapath=on", "--admin-address=127.0.0.1:9791"].map(str::to_owned));
        command.extend(flags.cluster_cidrs.iter().map(|cidr| format!("--cluster-cidr={cidr}")));
        command.extend(flags.node_port_addresses.iter().map(|text| format!("--node-port-address={text}")));
        command.extend(flags.masquerade_all.then(|| "--masquerade-all".to_owned()));
        Self::start(at, &command, folder.join("steelyard.log"))
    }

    fn start(at: &Namespace, command: &[String], log: PathBuf) -> Result<Self, String> {
        let child = spawn(at.name(), command, &log).map_err(|error| format!("{error:#}"))?;
        Ok(Self { child, log })
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("the proxy ended ({status}): {}", self.last_lines())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The end of its log.
    pub fn last_lines(&self) -> String {
        last_lines(&self.log)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes the kubeconfig that both use.
pub fn write_kubeconfig(server: &steelyard_lab::api_server::ApiServer) -> Result<(), String> {
    let text = server.kubeconfig_at(relay::ADDRESS).map_err(|error| format!("{error:#}"))?;
    fs::write(server.folder().join("proxies.kubeconfig"), text).map_err(|error| error.to_string())
}
