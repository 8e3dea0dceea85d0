//! The API server accepts good objects of our kinds and refuses bad ones, with words that help.
//!
//! The cases stand in `tests/cases/crds.yaml`; every one runs even if another fails.

use serde::Deserialize;
use serde_json::Value;

/// One object, and what the API server says to it.
#[derive(Debug, Deserialize)]
pub(crate) struct Case {
    /// What is shown, in words.
    pub(crate) name: String,
    /// The object, without `apiVersion`.
    pub(crate) object: Value,
    /// A later version of the object; then `error` is about this one.
    #[serde(default)]
    pub(crate) then: Option<Value>,
    /// A part of the refusal; absent where all is accepted.
    #[serde(default)]
    pub(crate) error: Option<String>,
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    serde_saphyr::from_str(include_str!("../cases/crds.yaml")).unwrap()
}

/// Runs every case. `apply` applies one object, given as JSON, and gives the API server's refusal; `delete` removes it
/// again. Gives what went otherwise than expected.
pub(crate) fn run(apply: impl Fn(&str) -> Result<(), String>, delete: impl Fn(&str)) -> Vec<String> {
    let mut surprises = Vec::new();
    for case in cases() {
        let versions: Vec<String> =
            [Some(&case.object), case.then.as_ref()].into_iter().flatten().map(manifest).collect();
        let last = versions.len() - 1;
        for (position, version) in versions.iter().enumerate() {
            let expected = case.error.as_deref().filter(|_| position == last);
            match (apply(version), expected) {
                (Ok(()), None) => {}
                (Ok(()), Some(part)) => surprises.push(format!("{}: accepted, not refused with {part:?}", case.name)),
                (Err(error), Some(part)) if error.contains(part) => {}
                (Err(error), _) => surprises.push(format!("{}: refused with: {error}", case.name)),
            }
        }
        versions.iter().take(1).for_each(|version| delete(version));
    }
    surprises
}

fn manifest(object: &Value) -> String {
    let mut object = object.clone();
    object["apiVersion"] = "steelyard.dev/v1alpha1".into();
    object.to_string()
}
