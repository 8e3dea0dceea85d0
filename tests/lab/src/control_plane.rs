//! The machine `control`: etcd, API server, controller manager, scheduler.

use std::path::Path;

use anyhow::Result;

use crate::init::{Condition, Program, Spec};
use crate::layout::{API_PORT, Layout, Member, POD_RANGES, SERVICE_RANGES};

/// What it runs; `bin` holds the programs.
pub fn spec(layout: &Layout, bin: &Path) -> Result<Spec> {
    let pki = layout.pki();
    let file = |name: &str| pki.join(name).display().to_string();
    let program = |name: &str| bin.join(name).display().to_string();
    let kubeconfig = |user: &str| layout.kubeconfig(user).display().to_string();
    let address = Member::Control.ipv4();
    let etcd_address = "127.0.0.1:2379";

    let etcd = Program::new(
        "etcd",
        [
            program("etcd"),
            format!("--data-dir={}", layout.machine(Member::Control).join("etcd").display()),
            // A lab that loses its power starts anew.
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls=http://{etcd_address}"),
            format!("--advertise-client-urls=http://{etcd_address}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
        ],
    );
    let api_server = Program::new(
        "kube-apiserver",
        [
            program("kube-apiserver"),
            format!("--etcd-servers=http://{etcd_address}"),
            format!("--advertise-address={address}"),
            format!("--secure-port={API_PORT}"),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-signing-key-file={}", file("service-accounts.key")),
            format!("--service-account-key-file={}", file("service-accounts.pub")),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--kubelet-certificate-authority={}", file("ca.crt")),
            format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
            format!("--kubelet-client-key={}", file("kubelet-client.key")),
        ],
    )
    .after(Condition::Accepts(etcd_address.parse()?));
    let api_accepts = Condition::Accepts((address, API_PORT).into());
    let controller_manager = Program::new(
        "kube-controller-manager",
        [
            program("kube-controller-manager"),
            format!("--kubeconfig={}", kubeconfig("controller-manager")),
            format!("--service-account-private-key-file={}", file("service-accounts.key")),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--cluster-signing-cert-file={}", file("ca.crt")),
            format!("--cluster-signing-key-file={}", file("ca.key")),
            "--use-service-account-credentials".to_owned(),
            "--allocate-node-cidrs=true".to_owned(),
            format!("--cluster-cidr={POD_RANGES}"),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            "--leader-elect=false".to_owned(),
        ],
    )
    .after(api_accepts.clone());
    let scheduler = Program::new(
        "kube-scheduler",
        [
            program("kube-scheduler"),
            format!("--kubeconfig={}", kubeconfig("scheduler")),
            "--leader-elect=false".to_owned(),
        ],
    )
    .after(api_accepts);

    Ok(Spec {
        hostname: Member::Control.to_string(),
        cgroup: layout.machine_cgroup(Member::Control),
        writable: layout.state().to_owned(),
        binds: Vec::new(),
        logs: layout.machine_logs(Member::Control),
        programs: vec![etcd, api_server, controller_manager, scheduler],
    })
}
