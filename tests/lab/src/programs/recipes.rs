//! What is built from which module and how. Versions stand in the modules' go.mod.

use std::path::{Path, PathBuf};

use super::modules::{MODULES, Module};
use crate::cache::Key;

/// Raised when the way of building changes in a manner that the flags do not show.
const KEY_VERSION: u32 = 1;

/// Clients and upstream tests look at the version that a Kubernetes program reports.
pub(crate) const KUBERNETES_VERSION: (&str, &str, &str) = ("v1.36.3", "1", "36");

/// Not empty: then Go would take those that the user set with `go env -w`.
pub(super) const GOFLAGS: &str = "-mod=readonly";

/// Go's name of this machine.
const GOARCH: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// How a package becomes a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `go build`, static.
    Static,
    /// `go build` with C code in it.
    Cgo,
    /// `go test -c`.
    Test,
}

/// One program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipe {
    /// Its path below the `bin` folder.
    pub(super) output: &'static str,
    pub(super) module: &'static str,
    pub(super) package: &'static str,
    pub(super) kind: Kind,
    pub(super) tags: &'static str,
}

const fn recipe(output: &'static str, module: &'static str, package: &'static str) -> Recipe {
    Recipe { output, module, package, kind: Kind::Static, tags: "" }
}

/// What `up` needs. The quick ones first: whatever is wrong with the machine shows early.
pub(super) const CLUSTER: &[Recipe] = &[
    recipe("cni/ptp", "cni", "github.com/containernetworking/plugins/plugins/main/ptp"),
    recipe("cni/host-local", "cni", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
    recipe("cni/loopback", "cni", "github.com/containernetworking/plugins/plugins/main/loopback"),
    recipe("cni/portmap", "cni", "github.com/containernetworking/plugins/plugins/meta/portmap"),
    Recipe {
        // Without the tag every pod fails with "config provided but seccomp not supported".
        tags: "seccomp",
        kind: Kind::Cgo,
        ..recipe("runc", "runc", "github.com/opencontainers/runc")
    },
    recipe("etcd", "etcd", "."),
    containerd("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
    containerd("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    containerd("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
    recipe("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    recipe("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    recipe("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    recipe("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    recipe("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    recipe("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
    recipe("agnhost", "kubernetes", "k8s.io/kubernetes/test/images/agnhost"),
    recipe("helm", "helm", "helm.sh/helm/v4/cmd/helm"),
    recipe("coredns", "coredns", "github.com/coredns/coredns"),
];

/// What the upstream e2e suite needs beside.
pub(super) const CONFORMANCE: &[Recipe] = &[
    recipe("ginkgo", "kubernetes", "github.com/onsi/ginkgo/v2/ginkgo"),
    recipe("regression-issue-74839", "kubernetes", "k8s.io/kubernetes/test/images/regression-issue-74839"),
    Recipe { kind: Kind::Test, ..recipe("e2e.test", "kubernetes", "k8s.io/kubernetes/test/e2e") },
];

/// Snapshotters that the lab does not use: their tags leave C code out.
const fn containerd(output: &'static str, package: &'static str) -> Recipe {
    Recipe { tags: "no_btrfs no_devmapper no_zfs", ..recipe(output, "containerd", package) }
}

impl Recipe {
    /// The name alone, `ptp` of `cni/ptp`.
    pub(super) fn name(&self) -> &'static str {
        self.output.rsplit('/').next().unwrap_or(self.output)
    }

    pub(super) fn module(&self) -> Option<&'static Module> {
        MODULES.iter().find(|module| module.name == self.module)
    }

    /// The arguments of `go`.
    pub(super) fn arguments(&self, output: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = match self.kind {
            Kind::Static | Kind::Cgo => vec!["build".into()],
            Kind::Test => vec!["test".into(), "-c".into()],
        };
        arguments.extend(["-mod=readonly", "-trimpath", "-buildvcs=false"].map(String::from));
        if !self.tags.is_empty() {
            arguments.push(format!("-tags={}", self.tags));
        }
        let mut ld = String::from("-s -w");
        if self.package.starts_with("k8s.io/kubernetes/") {
            let (version, major, minor) = KUBERNETES_VERSION;
            for (variable, value) in [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor)] {
                ld.push_str(&format!(" -X k8s.io/component-base/version.{variable}={value}"));
            }
        }
        arguments.push(format!("-ldflags={ld}"));
        arguments.push("-o".into());
        arguments.push(output.to_string_lossy().into_owned());
        arguments.push(self.package.into());
        arguments
    }

    /// The environment that decides about the result.
    pub(super) fn environment(&self) -> [(&'static str, &'static str); 5] {
        let cgo = match self.kind {
            Kind::Static | Kind::Test => "0",
            Kind::Cgo => "1",
        };
        // Flags, workspaces and targets of the user must not leak in.
        [("CGO_ENABLED", cgo), ("GOFLAGS", GOFLAGS), ("GOWORK", "off"), ("GOOS", "linux"), ("GOARCH", GOARCH)]
    }

    /// The name of the cache entry: whatever determines the result is in it.
    pub(super) fn key(&self, go_version: &str) -> String {
        let mut key = Key::new("program", KEY_VERSION).with(go_version).with(self.output);
        for argument in self.arguments(&PathBuf::new()) {
            key = key.with(argument);
        }
        for (name, value) in self.environment() {
            key = key.with(name).with(value);
        }
        if let Some(module) = self.module() {
            key = module.add_to(key);
        }
        key.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO: &str = "go version go1.26.8 linux/amd64";

    fn all() -> impl Iterator<Item = &'static Recipe> {
        CLUSTER.iter().chain(CONFORMANCE)
    }

    #[test]
    fn every_recipe_has_its_module_and_outputs_are_unique() {
        let mut outputs: Vec<_> = all().map(|recipe| recipe.output).collect();
        assert!(all().all(|recipe| recipe.module().is_some()));
        outputs.sort_unstable();
        let count = outputs.len();
        outputs.dedup();
        assert_eq!(outputs.len(), count);
    }

    #[test]
    fn keys_differ_by_program_and_by_go_version() {
        let mut keys: Vec<_> = all().map(|recipe| recipe.key(GO)).collect();
        keys.extend(all().map(|recipe| recipe.key("go version go1.26.9 linux/amd64")));
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
        assert_eq!(CLUSTER[0].key(GO), CLUSTER[0].key(GO));
    }

    #[test]
    fn keys_follow_flags_and_tags() {
        let runc = CLUSTER.iter().find(|recipe| recipe.output == "runc").unwrap();
        assert_ne!(runc.key(GO), Recipe { tags: "", ..*runc }.key(GO));
        assert_ne!(runc.key(GO), Recipe { kind: Kind::Static, ..*runc }.key(GO));
    }

    #[test]
    fn kubernetes_programs_carry_the_version_of_their_module() {
        let module = MODULES.iter().find(|module| module.name == "kubernetes").unwrap();
        let (version, major, minor) = KUBERNETES_VERSION;
        assert!(module.files[0].1.contains(&format!("k8s.io/kubernetes {version}")));
        assert!(version.starts_with(&format!("v{major}.{minor}.")));
        let kubelet = CLUSTER.iter().find(|recipe| recipe.output == "kubelet").unwrap();
        let arguments = kubelet.arguments(Path::new("/out/kubelet")).join(" ");
        assert!(arguments.contains("-mod=readonly -trimpath"), "{arguments}");
        assert!(arguments.contains("gitVersion=v1.36.3"), "{arguments}");
        assert!(arguments.ends_with("-o /out/kubelet k8s.io/kubernetes/cmd/kubelet"), "{arguments}");
    }
}
