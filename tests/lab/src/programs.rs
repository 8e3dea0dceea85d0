//! Stand-in: the programs are taken from the folder that `STEELYARD_LAB_PROGRAMS` names.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The programs, all in one folder (CNI plugins in `cni/`).
#[derive(Debug, Clone)]
pub struct Programs {
    /// The folder.
    pub bin: PathBuf,
}

/// Find them.
pub fn ensure(_progress: &mut dyn FnMut(&str)) -> Result<Programs> {
    let bin = std::env::var_os("STEELYARD_LAB_PROGRAMS").map(PathBuf::from);
    Ok(Programs { bin: bin.context("STEELYARD_LAB_PROGRAMS is not set")? })
}
