//! Reads objects from files: YAML of many documents or JSON, single or in lists, as `kubectl get` prints them.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use super::objects::Objects;

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("failed to read {path}")]
    Read {
        /// The file or folder.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A folder without a manifest.
    #[error("{0} holds no file that ends in .yaml, .yml or .json")]
    Empty(String),
    /// It is not YAML or JSON.
    #[error("{path}, line {line}: {reason}")]
    Syntax {
        /// The file.
        path: String,
        /// Where in it.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// An object is not what its kind says.
    #[error("{path}, document at line {line}: {kind} {name} cannot be read")]
    Object {
        /// The file.
        path: String,
        /// Where its document begins.
        line: u64,
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Reads a file, all manifests of a folder, or the standard input.
pub(super) fn read(path: &Path, objects: &mut Objects) -> Result<(), FileError> {
    let shown = path.display().to_string();
    let failed = |source| FileError::Read { path: shown.clone(), source };
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(failed)?;
        return read_text("standard input", &text, objects);
    }
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return read_text(&shown, &fs::read_to_string(path).map_err(failed)?, objects);
    }
    let mut manifests: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) && file.is_file() {
            manifests.push(file);
        }
    }
    if manifests.is_empty() {
        return Err(FileError::Empty(shown));
    }
    manifests.sort();
    manifests.iter().try_for_each(|file| read(file, objects))
}

/// Reads a text of that name.
pub(super) fn read_text(path: &str, text: &str, objects: &mut Objects) -> Result<(), FileError> {
    for (first_line, document) in documents(text) {
        let value: Option<Value> = serde_saphyr::from_str(&document).map_err(|error| FileError::Syntax {
            path: path.to_owned(),
            line: first_line + error.location().map_or(1, |location| location.line()).saturating_sub(1),
            reason: error.to_string().lines().next().unwrap_or_default().to_owned(),
        })?;
        if let Some(value) = value {
            add(path, first_line, value, None, objects)?;
        }
    }
    Ok(())
}

/// Adds an object, or those of a list. In typed lists the objects may leave their kind to the list.
fn add(path: &str, line: u64, object: Value, kind: Option<&str>, objects: &mut Objects) -> Result<(), FileError> {
    let text = |field: &Value| field.as_str().map(ToOwned::to_owned);
    let kind = object.get("kind").and_then(text).or_else(|| kind.map(ToOwned::to_owned)).unwrap_or_default();
    if let (Some(of), Some(items)) = (kind.strip_suffix("List"), object.get("items").and_then(Value::as_array)) {
        let of = Some(of).filter(|of| !of.is_empty());
        return items.iter().try_for_each(|item| add(path, line, item.clone(), of, objects));
    }
    let name = object.pointer("/metadata/name").and_then(text).unwrap_or_default();
    objects.add(&kind, object).map_err(|source| FileError::Object { path: path.to_owned(), line, kind, name, source })
}

/// Takes a text apart where lines begin with `---`, each part with the number of its first line.
fn documents(text: &str) -> Vec<(u64, String)> {
    let mut documents = vec![(1, String::new())];
    for (number, line) in (1u64..).zip(text.lines()) {
        if line == "---" || line.starts_with("--- ") {
            documents.push((number + 1, String::new()));
        } else if let Some((_, document)) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let is_empty =
        |document: &str| document.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    documents.retain(|(_, document)| !is_empty(document));
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Objects, String> {
        let mut objects = Objects::default();
        read_text("web.yaml", text, &mut objects)
            .map_err(|error| crate::runtime::telemetry::chain(&error))
            .map(|()| objects)
    }

    const SERVICE: &str = "kind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";

    #[test]
    fn documents_lists_and_json_are_read() {
        let list = r#"{"kind": "List", "items": [{"kind": "Node", "metadata": {"name": "n"}}]}"#;
        let typed = r#"{"kind": "NodeList", "items": [{"metadata": {"name": "m"}}]}"#;
        let objects = read(&format!("# a comment\n---\n{SERVICE}---\n{list}\n---\nkind: Pod\n---\n{typed}\n")).unwrap();
        assert_eq!(objects.services[0].key.to_string(), "default/web");
        let nodes: Vec<&str> = objects.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(nodes, ["n", "m"]);
    }

    #[test]
    fn what_cannot_be_read_is_said_with_its_line() {
        let error = read(&format!("{SERVICE}---\nkind: Service\nspec: [\n")).unwrap_err();
        assert!(error.starts_with("web.yaml, line 6") || error.starts_with("web.yaml, line 7"), "{error}");
        let error =
            read(&format!("{SERVICE}---\nkind: Service\nmetadata: {{name: b}}\nspec: {{ports: 3}}\n")).unwrap_err();
        assert!(error.starts_with("web.yaml, document at line 5: Service b cannot be read: invalid type"), "{error}");
    }
}
