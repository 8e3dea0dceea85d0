//! Container images without a container engine or a registry: OCI archives written by hand, imported on every node.

pub(crate) mod archive;
mod binary;
mod conformance;
pub(crate) mod layer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::{Key, Part};
use crate::programs::Programs;
use archive::Image;
pub(crate) use binary::source_root;
pub use binary::steelyard_binary;
pub use conformance::conformance_images;
use layer::{Layer, LayerWriter};

/// The sandbox image that containerd is told to use.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// The test server: HTTP, TCP, UDP, its name, the client address that it saw.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// The cluster's DNS server.
pub const COREDNS: &str = "registry.k8s.io/coredns/coredns:v1.14.7";
/// Our own image, under the name that the chart of this version asks for.
pub const STEELYARD: &str = concat!("steelyard.dev/steelyard:", env!("CARGO_PKG_VERSION"));

/// The part of the cache folder that is ours.
const PART: &str = "images";

/// Raised when the same inputs give other archives.
const KEY_VERSION: u32 = 1;

/// How long an archive of ours is kept.
const KEEP: Duration = Duration::from_secs(24 * 3600);

/// The file in a cache entry.
const ARCHIVE: &str = "image.tar";

/// Makes sure that the images which every lab needs are there: [`PAUSE`], [`AGNHOST`] and [`COREDNS`], each a static binary
/// and little else, all in one archive, so that importing them is quick.
///
/// # Errors
/// When the cache folder cannot be written or a program is not there.
pub fn ensure(programs: &Programs, progress: &mut dyn FnMut(&str)) -> Result<Vec<PathBuf>> {
    let (agnhost, coredns) = (programs.path("agnhost"), programs.path("coredns"));
    let key = Key::new("cluster images", KEY_VERSION)
        .with([PAUSE, AGNHOST, COREDNS].join(" "))
        .with(identity(&agnhost)?)
        .with(identity(&coredns)?);
    let part = Part::lock(PART, progress)?;
    let folder = part.make_folder(&format!("cluster-{}", key.finish()), |folder| {
        progress("making the images of pause, agnhost and CoreDNS");
        let agnhost = program_layer(folder, "agnhost", &agnhost)?;
        let coredns = program_layer(folder, "coredns", &coredns)?;
        let image = |reference: &str, layer, entrypoint, command| Image {
            reference: reference.into(),
            layers: vec![layer],
            entrypoint: vec![entrypoint],
            command,
            labels: BTreeMap::new(),
        };
        let images = [
            // The pause program is agnhost with another argument.
            image(PAUSE, &agnhost, "/agnhost", vec!["pause"]),
            image(AGNHOST, &agnhost, "/agnhost", vec!["pause"]),
            image(COREDNS, &coredns, "/coredns", vec![]),
        ];
        finish_archive(&images, &[&agnhost, &coredns], folder)
    })?;
    Ok(vec![folder.join(ARCHIVE)])
}

/// Makes our image: the static `binary` at `/steelyard`, and nothing else. It names no user: what runs as root and what
/// does not is the chart's to say.
///
/// # Errors
/// When the binary is not static, or the cache folder cannot be written.
pub fn steelyard(binary: &Path, reference: &str) -> Result<PathBuf> {
    let bytes = fs::read(binary).with_context(|| format!("reading {}", binary.display()))?;
    anyhow::ensure!(
        binary::is_static(&bytes).with_context(|| format!("looking at {}", binary.display()))?,
        "{} asks for a dynamic linker: it would not start in an empty image",
        binary.display()
    );
    let part = Part::lock(PART, &mut |_| {})?;
    // Every build of ours leaves one; whoever made it has loaded it long since.
    part.forget("steelyard-", KEEP)?;
    let entry = format!("steelyard-{}", Key::new("steelyard", KEY_VERSION).with(reference).with(&bytes).finish());
    let folder = part.make_folder(&entry, |folder| {
        let layer = program_layer(folder, "steelyard", binary)?;
        let labels = BTreeMap::from([
            ("org.opencontainers.image.title", "steelyard"),
            ("org.opencontainers.image.description", "A load balancer for bare-metal Kubernetes"),
            ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE")),
            ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
        ]);
        let image = Image {
            reference: reference.into(),
            layers: vec![&layer],
            entrypoint: vec!["/steelyard"],
            command: vec![],
            labels,
        };
        finish_archive(&[image], &[&layer], folder)
    })?;
    Ok(folder.join(ARCHIVE))
}

/// The names of the images in an archive, as pods write them.
///
/// # Errors
/// When the file is no image archive.
pub fn references(archive: &Path) -> Result<BTreeSet<String>> {
    archive::references(archive)
}

/// A layer with one program at its root and the folders that a container expects.
fn program_layer(folder: &Path, name: &str, program: &Path) -> Result<Layer> {
    let mut layer = LayerWriter::create(&folder.join(format!("{name}.layer")))?;
    for path in ["dev", "etc", "proc", "run", "sys"] {
        layer.folder(path, 0o755)?;
    }
    layer.folder("tmp", 0o1777)?;
    layer.file(name, 0o755, program)?;
    layer.finish()
}

/// Writes the archive of a cache entry; its layers are in it now, so their own files go.
fn finish_archive(images: &[Image<'_>], layers: &[&Layer], folder: &Path) -> Result<()> {
    archive::write(images, &folder.join(ARCHIVE))?;
    for layer in layers {
        fs::remove_file(&layer.path).with_context(|| format!("removing {}", layer.path.display()))?;
    }
    Ok(())
}

/// Tells one build of a program from another without reading all of it: entries of the program cache never change.
pub(crate) fn identity(program: &Path) -> Result<String> {
    let metadata = program.metadata().with_context(|| format!("looking at {}", program.display()))?;
    Ok(format!("{}:{}:{}:{}", program.display(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}
