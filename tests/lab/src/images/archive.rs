//! The OCI archive: a tar of `oci-layout`, `index.json` and blobs, as `ctr images import` and others read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tar::Builder;

use super::layer::{Layer, append_bytes, append_layer, digest};

/// What a container gets when its pod names no PATH.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One image of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Image<'a> {
    /// The full name that pods use, `registry.k8s.io/pause:3.10.2`.
    pub(crate) reference: String,
    /// From the bottom up.
    pub(crate) layers: Vec<&'a Layer>,
    pub(crate) entrypoint: Vec<&'a str>,
    pub(crate) command: Vec<&'a str>,
    pub(crate) labels: BTreeMap<&'a str, &'a str>,
}

/// Writes `images` into one archive. Blobs that they share are written once.
pub(crate) fn write(images: &[Image<'_>], path: &Path) -> Result<()> {
    write_inner(images, path).with_context(|| format!("writing the image archive {}", path.display()))
}

fn write_inner(images: &[Image<'_>], path: &Path) -> Result<()> {
    let mut layers = BTreeMap::new();
    let mut documents = BTreeMap::new();
    let mut manifests = Vec::new();
    for image in images {
        layers.extend(image.layers.iter().map(|layer| (layer.digest.as_str(), *layer)));
        let config = serde_json::to_vec(&config(image))?;
        let manifest = serde_json::to_vec(&manifest(image, &config))?;
        let mut entry = descriptor(MANIFEST, &digest(&manifest), manifest.len() as u64);
        if let Value::Object(fields) = &mut entry {
            fields.insert("annotations".into(), annotations(&image.reference));
            fields.insert("platform".into(), json!({ "architecture": architecture(), "os": "linux" }));
        }
        manifests.push(entry);
        documents.insert(digest(&config), config);
        documents.insert(digest(&manifest), manifest);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    let mut tar = Builder::new(BufWriter::new(File::create(path)?));
    append_bytes(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append_bytes(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
    for (digest, document) in &documents {
        append_bytes(&mut tar, &blob(digest), document)?;
    }
    for (digest, layer) in &layers {
        append_layer(&mut tar, &blob(digest), layer)?;
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

fn config(image: &Image<'_>) -> Value {
    let mut config = json!({ "Env": [PATH] });
    if let Value::Object(fields) = &mut config {
        for (name, words) in [("Entrypoint", &image.entrypoint), ("Cmd", &image.command)] {
            if !words.is_empty() {
                fields.insert(name.into(), json!(words));
            }
        }
        if !image.labels.is_empty() {
            fields.insert("Labels".into(), json!(image.labels));
        }
    }
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": digests(image) },
    })
}

fn manifest(image: &Image<'_>, config: &[u8]) -> Value {
    let layers: Vec<Value> = image.layers.iter().map(|layer| descriptor(LAYER, &layer.digest, layer.size)).collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &digest(config), config.len() as u64),
        "layers": layers,
    })
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// containerd takes the name from its own annotation, others the tag from the standard one.
fn annotations(reference: &str) -> Value {
    let tag = reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    json!({ "io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag })
}

fn digests<'a>(image: &Image<'a>) -> Vec<&'a str> {
    image.layers.iter().map(|layer| layer.digest.as_str()).collect()
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// This machine's architecture in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The references that an archive brings, read back from its index.
pub(crate) fn references(path: &Path) -> Result<BTreeSet<String>> {
    let context = || format!("reading the image archive {}", path.display());
    let mut tar = tar::Archive::new(File::open(path).with_context(context)?);
    for entry in tar.entries().with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.path().with_context(context)?.as_os_str() == "index.json" {
            let index: Value = serde_json::from_reader(entry).with_context(context)?;
            let manifests = index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
            return Ok(manifests
                .iter()
                .filter_map(|manifest| manifest.pointer("/annotations/io.containerd.image.name")?.as_str())
                .map(str::to_owned)
                .collect());
        }
    }
    anyhow::bail!("{} has no index.json: it is no image archive", path.display())
}

#[cfg(test)]
mod tests;
