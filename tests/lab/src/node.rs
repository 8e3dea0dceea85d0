//! A Kubernetes node: containerd, the images, the kubelet, and if asked the real kube-proxy.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use crate::images;
use crate::init::{Condition, Program, Spec};
use crate::layout::{DNS_SERVICE, Layout, Member, POD_RANGES, pods_v4, pods_v6};

/// Where containerd listens, as its node sees it.
pub(crate) const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Folders of a node that outlive a power cut: they are bound from the node's folder.
const DISK: [(&str, &str); 2] = [("var-lib", "/var/lib"), ("pod-logs", "/var/log/pods")];

/// What every node of a lab is made from.
#[derive(Debug, Clone)]
pub(crate) struct NodePlan<'a> {
    /// The folder of programs.
    pub(crate) bin: &'a Path,
    /// Archives that are on every node from the start.
    pub(crate) images: &'a [PathBuf],
    /// Run the real kube-proxy.
    pub(crate) kube_proxy: bool,
    /// The kubelet starts once this file is there: the API server is ready and knows the node.
    pub(crate) gate: PathBuf,
}

/// Write the configuration of node `n` and say what it runs.
pub(crate) fn spec(layout: &Layout, n: u8, plan: &NodePlan<'_>) -> Result<Spec> {
    let node = Member::Node(n);
    let folder = layout.machine(node);
    fs::create_dir_all(folder.join("net.d"))?;
    let write = |name: &str, text: String| -> Result<String> {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path.display().to_string())
    };
    write("net.d/10-lab.conflist", network_config(n))?;
    let containerd_config = write("containerd.toml", containerd_config(plan.bin, &folder)?)?;
    // Nobody resolves the world in a lab; CoreDNS answers for the cluster.
    let resolv_conf = write("resolv.conf", format!("nameserver {}\n", Member::Router.ipv4()))?;
    let kubelet_config = write("kubelet.yaml", kubelet_config(layout, node, &resolv_conf))?;
    let program = |name: &str| plan.bin.join(name).display().to_string();
    let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", plan.bin.display());

    let containerd = Program::new("containerd", [program("containerd"), "--config".to_owned(), containerd_config]);
    let mut kubelet = Program::new(
        "kubelet",
        [
            program("kubelet"),
            format!("--config={kubelet_config}"),
            format!("--kubeconfig={}", layout.kubeconfig(&node.to_string()).display()),
            format!("--hostname-override={node}"),
            format!("--node-ip={},{}", node.ipv4(), node.ipv6()),
        ],
    )
    .after(Condition::Exists(plan.gate.clone()));
    let mut programs = vec![containerd.env("PATH", &path)];
    for archive in plan.images {
        let name = format!("import-{}", archive.file_stem().unwrap_or_default().to_string_lossy());
        let import = Program::new(&name, import_command(plan.bin, archive)).once();
        programs.push(import.after(Condition::Exists(CONTAINERD.into())));
        // A pod whose image is not there yet would be retried only after ten seconds.
        kubelet = kubelet.after(Condition::Done(name));
    }
    programs.push(kubelet.env("PATH", &path));
    if plan.kube_proxy {
        let config = write("kube-proxy.yaml", kube_proxy_config(layout, node))?;
        let proxy =
            Program::new("kube-proxy", [program("kube-proxy"), format!("--config={config}"), "-v=2".to_owned()]);
        programs.push(proxy.env("PATH", &path).after(Condition::Exists(plan.gate.clone())));
    }
    Ok(Spec {
        hostname: node.to_string(),
        cgroup: layout.machine_cgroup(node),
        writable: layout.state().to_owned(),
        binds: DISK.map(|(source, target)| (folder.join(source), target.into())).to_vec(),
        logs: layout.machine_logs(node),
        programs,
    })
}

/// Take an image archive into the node's containerd.
pub(crate) fn import_command(bin: &Path, archive: &Path) -> Vec<String> {
    let ctr = bin.join("ctr").display().to_string();
    let words = [&ctr, "--address", CONTAINERD, "--namespace", "k8s.io", "images", "import", "--local"];
    words.into_iter().map(str::to_owned).chain([archive.display().to_string()]).collect()
}

/// Pods get one address per family, and routes to everywhere; nothing is masqueraded.
fn network_config(n: u8) -> String {
    let config = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/var/lib/cni/networks",
                    "ranges": [[{"subnet": pods_v4(n)}], [{"subnet": pods_v6(n)}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true, "backend": "nftables"},
        ],
    });
    format!("{config:#}\n")
}

fn containerd_config(bin: &Path, folder: &Path) -> Result<String> {
    // An overlay cannot have its upper folder on another overlay (a lab inside a container): copy instead.
    let on_overlay = statfs(folder).context("failed to look at the file system of the state folder")?.filesystem_type()
        == OVERLAYFS_SUPER_MAGIC;
    let snapshotter = if on_overlay { "native" } else { "overlayfs" };
    let (bin, folder) = (bin.display(), folder.display());
    Ok(format!(
        "version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
[grpc]
  address = '{CONTAINERD}'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = '{snapshotter}'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{pause}'
[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE runc could not lower it, and dies.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{bin}/cni']
    conf_dir = '{folder}/net.d'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '{bin}/runc'
      SystemdCgroup = false
",
        pause = images::PAUSE,
    ))
}

fn kubelet_config(layout: &Layout, node: Member, resolv_conf: &str) -> String {
    let pki = layout.pki();
    let [dns, _] = DNS_SERVICE;
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
cgroupsPerQOS: true
enforceNodeAllocatable: []
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: '{pki}/ca.crt'}}
authorization: {{mode: Webhook}}
tlsCertFile: '{pki}/{node}.crt'
tlsPrivateKeyFile: '{pki}/{node}.key'
containerRuntimeEndpoint: unix://{CONTAINERD}
clusterDNS: ['{dns}']
clusterDomain: cluster.local
resolvConf: '{resolv_conf}'
volumePluginDir: /var/lib/kubelet/volume-plugins
failSwapOn: false
rotateCertificates: false
# The service proxy is not the kubelet's business.
makeIPTablesUtilChains: false
# A machine that is short of memory or disk is not this lab's subject.
evictionHard: {{memory.available: 1Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
",
        cgroup = layout.machine_cgroup(node),
        pki = pki.display(),
    )
}

fn kube_proxy_config(layout: &Layout, node: Member) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: '{kubeconfig}'}}
mode: nftables
clusterCIDR: '{POD_RANGES}'
detectLocalMode: ClusterCIDR
hostnameOverride: {node}
healthzBindAddress: 0.0.0.0:10256
metricsBindAddress: 127.0.0.1:10249
nodePortAddresses: ['0.0.0.0/0', '::/0']
# The table's size is the whole machine's; the timeouts are the node's own.
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 24h0m0s, tcpCloseWaitTimeout: 1h0m0s}}
",
        kubeconfig = layout.kubeconfig("proxy").display(),
    )
}
