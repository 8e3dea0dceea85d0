//! Archives are read back as a container engine would.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::images::layer::LayerWriter;

/// Two images that share a layer.
fn two_images(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("usr/bin")).unwrap();
    fs::write(tree.join("usr/bin/tool"), "#!").unwrap();
    fs::set_permissions(tree.join("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(tree.join("usr/bin").join("n".repeat(150)), "long name").unwrap();
    symlink("usr/bin", tree.join("bin")).unwrap();
    let mut base = LayerWriter::create(&folder.join("base.tar")).unwrap();
    base.tree(&tree).unwrap();
    let base = base.finish().unwrap();
    let mut top = LayerWriter::create(&folder.join("top.tar")).unwrap();
    top.folder("tmp", 0o1777).unwrap();
    top.file("program", 0o755, &tree.join("usr/bin/tool")).unwrap();
    let top = top.finish().unwrap();
    let image = |reference: &str, layers| Image {
        reference: reference.into(),
        layers,
        entrypoint: vec!["/program"],
        command: vec!["serve"],
        labels: BTreeMap::from([("org.opencontainers.image.version", "1")]),
    };
    let path = folder.join("images.tar");
    write(&[image("example.com/a:1", vec![&base]), image("example.com/b:2", vec![&base, &top])], &path).unwrap();
    path
}

fn read_entries(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut entries = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let before = entries.insert(path.clone(), (entry.header().mode().unwrap(), content));
        assert!(before.is_none(), "{path} is there twice");
    }
    entries
}

#[test]
fn every_digest_and_size_is_that_of_the_blob() {
    let folder = tempfile::tempdir().unwrap();
    let archive = read_entries(&fs::read(two_images(folder.path())).unwrap());
    let blob = |descriptor: &Value| {
        let name = descriptor["digest"].as_str().unwrap();
        let (_, content) = &archive[&blob(name)];
        assert_eq!(digest(content), name);
        assert_eq!(descriptor["size"], content.len());
        content.clone()
    };
    assert_eq!(archive["oci-layout"].1, br#"{"imageLayoutVersion":"1.0.0"}"#);
    let index: Value = serde_json::from_slice(&archive["index.json"].1).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 2);
    for manifest in manifests {
        let manifest: Value = serde_json::from_slice(&blob(manifest)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/program"]));
        assert_eq!(config["config"]["Cmd"], json!(["serve"]));
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "1");
        let layers = manifest["layers"].as_array().unwrap();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
        assert_eq!(config["rootfs"]["diff_ids"], json!(diff_ids));
        layers.iter().for_each(|layer| drop(blob(layer)));
    }
    // Two manifests, two configurations, two layers, of which one is shared.
    assert_eq!(archive.len(), 2 + 6);
}

#[test]
fn layers_keep_modes_links_and_long_names() {
    let folder = tempfile::tempdir().unwrap();
    two_images(folder.path());
    let base = read_entries(&fs::read(folder.path().join("base.tar")).unwrap());
    assert_eq!(base["usr/bin/tool"], (0o4755, b"#!".to_vec()));
    assert!(base.contains_key("bin"));
    assert!(base.contains_key(&format!("usr/bin/{}", "n".repeat(150))));
    let top = read_entries(&fs::read(folder.path().join("top.tar")).unwrap());
    assert_eq!(top["tmp"].0, 0o1777);
    assert_eq!(top["program"].0, 0o755);
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(fs::read(two_images(one.path())).unwrap(), fs::read(two_images(other.path())).unwrap());
}

#[test]
fn references_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let expected = ["example.com/a:1", "example.com/b:2"].map(String::from);
    assert_eq!(references(&two_images(folder.path())).unwrap(), BTreeSet::from(expected));
}
