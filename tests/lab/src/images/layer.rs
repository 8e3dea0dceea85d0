//! One layer of an image: a tar that comes out the same, byte for byte, whenever its content is the same.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::cache::hex;

/// The time of every file: 2020-01-01. Zero would do, were it not for tools that warn about it.
const MTIME: u64 = 1_577_836_800;

/// A finished layer: an uncompressed tar in a file, which is the blob too.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) path: PathBuf,
    /// `sha256:…`
    pub(crate) digest: String,
    pub(crate) size: u64,
}

/// A layer that is being written. Entries appear in the order of the calls.
pub(crate) struct LayerWriter {
    path: PathBuf,
    tar: Builder<Hashing<BufWriter<File>>>,
}

impl LayerWriter {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path: path.to_owned(), tar: Builder::new(Hashing::new(BufWriter::new(file))) })
    }

    /// Adds an empty folder that belongs to root.
    pub(crate) fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        let mut header = header(EntryType::Directory, mode, 0);
        self.append(&mut header, Path::new(path), io::empty())
    }

    /// Adds a program or another file of the machine; it belongs to root.
    pub(crate) fn file(&mut self, path: &str, mode: u32, source: &Path) -> Result<()> {
        let file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
        let size = file.metadata().with_context(|| format!("asking for the size of {}", source.display()))?.len();
        let mut header = header(EntryType::Regular, mode, size);
        self.append(&mut header, Path::new(path), file.take(size))
    }

    /// Adds all that is in `root`, sorted, with owners and modes as they are. Devices, sockets and pipes are left out: a
    /// container gets its own.
    pub(crate) fn tree(&mut self, root: &Path) -> Result<()> {
        self.tree_below(root, Path::new(""))
    }

    fn tree_below(&mut self, root: &Path, below: &Path) -> Result<()> {
        let folder = root.join(below);
        let mut names = fs::read_dir(&folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>())
            .with_context(|| format!("reading {}", folder.display()))?;
        names.sort();
        for name in names {
            let path = below.join(name);
            let source = root.join(&path);
            let metadata = source.symlink_metadata().with_context(|| format!("looking at {}", source.display()))?;
            let kind = metadata.file_type();
            let owned = |entry_type, size| {
                let mut header = header(entry_type, metadata.mode() & 0o7777, size);
                header.set_uid(metadata.uid().into());
                header.set_gid(metadata.gid().into());
                header
            };
            if kind.is_dir() {
                let mut header = owned(EntryType::Directory, 0);
                self.append(&mut header, &path, io::empty())?;
                self.tree_below(root, &path)?;
            } else if kind.is_symlink() {
                let target =
                    fs::read_link(&source).with_context(|| format!("reading the link {}", source.display()))?;
                self.tar
                    .append_link(&mut owned(EntryType::Symlink, 0), &path, target)
                    .with_context(|| format!("adding {} to a layer", path.display()))?;
            } else if kind.is_file() {
                let file = File::open(&source).with_context(|| format!("opening {}", source.display()))?;
                let mut header = owned(EntryType::Regular, metadata.len());
                self.append(&mut header, &path, file.take(metadata.len()))?;
            } else {
                debug_assert!(kind.is_char_device() || kind.is_block_device() || kind.is_socket() || kind.is_fifo());
            }
        }
        Ok(())
    }

    fn append(&mut self, header: &mut Header, path: &Path, content: impl Read) -> Result<()> {
        self.tar.append_data(header, path, content).with_context(|| format!("adding {} to a layer", path.display()))
    }

    pub(crate) fn finish(self) -> Result<Layer> {
        let context = || format!("writing {}", self.path.display());
        let mut hashing = self.tar.into_inner().with_context(context)?;
        hashing.flush().with_context(context)?;
        let (digest, size) = hashing.finish();
        Ok(Layer { path: self.path, digest, size })
    }
}

/// A header in which nothing depends on when and where it was made.
fn header(entry_type: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(MTIME);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Adds a file to the outer archive.
pub(super) fn append_bytes<W: Write>(tar: &mut Builder<W>, path: &str, content: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(EntryType::Regular, 0o644, content.len() as u64), path, content)
}

/// Adds a layer's blob to the outer archive.
pub(super) fn append_layer<W: Write>(tar: &mut Builder<W>, path: &str, layer: &Layer) -> io::Result<()> {
    let file = File::open(&layer.path)?;
    tar.append_data(&mut header(EntryType::Regular, 0o644, layer.size), path, file.take(layer.size))
}

/// `sha256:…` of bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Hashes and counts what passes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    fn finish(self) -> (String, u64) {
        (format!("sha256:{}", hex(&self.hash.finalize())), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(buffer.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
