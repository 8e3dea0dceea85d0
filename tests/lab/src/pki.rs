//! Who is who in the cluster: the certificate authority, the tokens and the kubeconfigs of a lab, made anew at each start.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::layout::{API_PORT, KUBERNETES_SERVICE, Layout, Member};

/// Write everything into the lab's `pki` folder.
pub fn write(layout: &Layout, nodes: u8) -> Result<()> {
    let folder = layout.pki();
    fs::create_dir_all(&folder)?;
    let authority = Authority::new()?;
    write_secret(&folder.join("ca.crt"), &authority.0.pem())?;
    write_secret(&folder.join("ca.key"), &authority.0.key().serialize_pem())?;

    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .into_iter()
        .chain(["kubernetes.default.svc.cluster.local", "127.0.0.1", "::1"])
        .chain(KUBERNETES_SERVICE)
        .map(str::to_owned)
        .collect();
    names.extend([Member::Control.ipv4().to_string(), Member::Control.ipv6().to_string()]);
    authority.issue(&folder, "apiserver", "kube-apiserver", None, names, ExtendedKeyUsagePurpose::ServerAuth)?;
    let masters = Some("system:masters");
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    authority.issue(&folder, "kubelet-client", "kube-apiserver-kubelet-client", masters, vec![], client)?;
    for node in Member::nodes(nodes) {
        let name = node.to_string();
        let names = vec![name.clone(), node.ipv4().to_string(), node.ipv6().to_string()];
        let user = format!("system:node:{name}");
        authority.issue(&folder, &name, &user, Some("system:nodes"), names, ExtendedKeyUsagePurpose::ServerAuth)?;
    }

    let service_accounts = KeyPair::generate()?;
    write_secret(&folder.join("service-accounts.key"), &service_accounts.serialize_pem())?;
    write_secret(&folder.join("service-accounts.pub"), &service_accounts.public_key_pem())?;

    let mut users = vec![
        ("admin".to_owned(), "admin".to_owned(), "system:masters"),
        ("controller-manager".to_owned(), "system:kube-controller-manager".to_owned(), ""),
        ("scheduler".to_owned(), "system:kube-scheduler".to_owned(), ""),
        ("proxy".to_owned(), "system:kube-proxy".to_owned(), ""),
    ];
    for node in Member::nodes(nodes) {
        users.push((node.to_string(), format!("system:node:{node}"), "system:nodes"));
    }
    let mut tokens = String::new();
    for (short, user, group) in users {
        let token = random_token()?;
        // token, user, uid, groups
        tokens.push_str(&format!("{token},{user},{short},\"{group}\"\n"));
        write_secret(&layout.kubeconfig(&short), &kubeconfig(&folder, &short, &token))?;
    }
    write_secret(&folder.join("tokens.csv"), &tokens)
}

/// The lab's own certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject("steelyard-lab", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Write `<file>.crt` and `<file>.key`.
    fn issue(
        &self,
        folder: &Path,
        file: &str,
        user: &str,
        group: Option<&str>,
        names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = subject(user, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.0).with_context(|| format!("failed to sign {user}"))?;
        write_secret(&folder.join(format!("{file}.crt")), &certificate.pem())?;
        write_secret(&folder.join(format!("{file}.key")), &key.serialize_pem())
    }
}

fn subject(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

fn kubeconfig(folder: &Path, user: &str, token: &str) -> String {
    let (server, ca) = (Member::Control.ipv4(), folder.join("ca.crt"));
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: lab, cluster: {{server: 'https://{server}:{API_PORT}', certificate-authority: '{ca}'}}}}]
users: [{{name: '{user}', user: {{token: {token}}}}}]
contexts: [{{name: lab, context: {{cluster: lab, user: '{user}'}}}}]
current-context: lab
",
        ca = ca.display()
    )
}

fn random_token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("failed to write {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}
