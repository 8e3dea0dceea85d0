//! The Debian base file system under the images of the upstream e2e suite, made by debootstrap.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cache::{Key, Part, Say};
use crate::images::layer::{Layer, LayerWriter};
use crate::programs::build;

/// Raised when the same packages give another layer.
const KEY_VERSION: u32 = 1;

/// What the suite's pods call.
const PACKAGES: &[&str] = &[
    "bind9-dnsutils",
    "busybox",
    "ca-certificates",
    "conntrack",
    "curl",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-ping",
    "netcat-openbsd",
    "nftables",
    "procps",
    "socat",
    "wget",
];

/// Of no use in a container, half of the size.
const LEFT_OUT: &[&str] = &[
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log",
];

const LAYER: &str = "layer.tar";
const DIGEST: &str = "digest";

/// Makes sure that the base layer is there. Cold, that takes a minute or two and the network.
pub(crate) fn ensure(progress: Say<'_>) -> Result<Layer> {
    let suite = suite(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    let mirror = std::env::var("STEELYARD_DEBIAN_MIRROR").ok().filter(|mirror| !mirror.is_empty());
    let key = Key::new("rootfs", KEY_VERSION).with(&suite).with(std::env::consts::ARCH).with(PACKAGES.join(" "));
    let part = Part::lock("rootfs", progress)?;
    let log = part.folder().join("debootstrap.log");
    let folder = part.make_folder(&format!("{suite}-{}", key.finish()), |folder| {
        ensure!(nix::unistd::geteuid().is_root(), "making the Debian base of the test images needs root");
        let root = folder.join("root");
        let mut command = Command::new("debootstrap");
        command
            .arg("--variant=minbase")
            .arg(format!("--include={}", PACKAGES.join(",")))
            .arg(&suite)
            .arg(&root)
            .args(&mirror)
            // Names of the machine's language mean nothing in there.
            .env("LC_ALL", "C");
        progress(&format!("making a Debian {suite} base for the test images"));
        if let Err(error) = build::run(command, "making the Debian base", &log, progress) {
            let missing = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if missing == Some(std::io::ErrorKind::NotFound) {
                bail!("debootstrap is not installed: apt-get install debootstrap");
            }
            return Err(error);
        }
        for path in LEFT_OUT {
            empty(&root.join(path))?;
        }
        let mut layer = LayerWriter::create(&folder.join(LAYER))?;
        layer.tree(&root)?;
        let layer = layer.finish()?;
        fs::write(folder.join(DIGEST), &layer.digest).context("writing the digest of the Debian base")?;
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))
    })?;
    let path = folder.join(LAYER);
    let digest = fs::read_to_string(folder.join(DIGEST)).context("reading the digest of the Debian base")?;
    let size = path.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
    Ok(Layer { path, digest, size })
}

/// Removes what is in a folder and leaves the folder.
fn empty(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
        fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    Ok(())
}

/// The machine's own release if it is a Debian: its keys are installed. Else the one that this was tried with.
fn suite(os_release: &str) -> String {
    let fields: BTreeMap<_, _> = os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key, value.trim_matches('"')))
        .collect();
    match (fields.get("ID"), fields.get("VERSION_CODENAME")) {
        (Some(&"debian"), Some(codename)) => (*codename).to_owned(),
        _ => "bookworm".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debian_uses_its_own_release_and_others_the_one_we_tried() {
        assert_eq!(suite("ID=debian\nVERSION_CODENAME=trixie\n"), "trixie");
        assert_eq!(suite("ID=ubuntu\nVERSION_CODENAME=noble\n"), "bookworm");
        assert_eq!(suite(""), "bookworm");
    }
}
