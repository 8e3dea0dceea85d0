//! `steelyard crds`: prints the definitions of our kinds, or writes one file each.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use thiserror::Error;

use crate::api;

/// Print the CustomResourceDefinitions.
#[derive(Clone, Debug, clap::Args)]
pub struct Crds {
    /// Write one file per kind into this directory instead of printing.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Why the definitions could not be given out.
#[derive(Debug, Error)]
pub enum CrdsError {
    /// A definition could not be turned into YAML.
    #[error("failed to write {name} as YAML")]
    Render {
        /// The definition's name.
        name: String,
        /// What the YAML writer said.
        source: serde_saphyr::ser::Error,
    },
    /// A file could not be written.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The standard output could not be written.
    #[error("failed to write to the standard output")]
    Print(#[source] io::Error),
}

impl Crds {
    /// Prints or writes them.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn run(&self) -> Result<(), CrdsError> {
        let files = files()?;
        match &self.output {
            Some(directory) => files.iter().try_for_each(|(name, text)| write(&directory.join(name), text)),
            None => {
                let all: Vec<&str> = files.iter().map(|(_, text)| text.as_str()).collect();
                io::stdout().lock().write_all(all.join("---\n").as_bytes()).map_err(CrdsError::Print)
            }
        }
    }
}

/// File name and text of every definition.
///
/// # Errors
/// When one cannot be written as YAML.
pub fn files() -> Result<Vec<(String, String)>, CrdsError> {
    api::definitions().iter().map(file).collect()
}

fn file(definition: &CustomResourceDefinition) -> Result<(String, String), CrdsError> {
    let name = definition.metadata.name.clone().unwrap_or_default();
    let text =
        serde_saphyr::to_string(definition).map_err(|source| CrdsError::Render { name: name.clone(), source })?;
    let text = if text.ends_with('\n') { text } else { text + "\n" };
    Ok((format!("{}.yaml", definition.spec.names.plural), text))
}

fn write(path: &Path, text: &str) -> Result<(), CrdsError> {
    let parent = path.parent().map_or(Ok(()), fs::create_dir_all);
    parent.and_then(|()| fs::write(path, text)).map_err(|source| CrdsError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_in_the_tree_are_those_that_the_types_make() {
        for directory in ["crds", "charts/steelyard/crds"] {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
            let mut expected: Vec<String> = Vec::new();
            for (name, text) in files().unwrap() {
                let path = directory.join(&name);
                let found = fs::read_to_string(&path).unwrap_or_default();
                assert!(
                    found == text,
                    "{} is not what the types make: run `steelyard crds --output {}`",
                    path.display(),
                    directory.display()
                );
                expected.push(name);
            }
            let mut found: Vec<String> = fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            found.sort();
            assert_eq!(found, expected, "{}", directory.display());
        }
    }
}
