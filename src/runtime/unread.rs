//! API objects of any kind as they come, before somebody reads them as what they are.
//!
//! All watches and lists ask for these: so the program has one watch rather than one for each kind, and reads each kind in
//! one way alone. Code for that is the largest part of an agent, and what it touches of it is memory on every node. And an
//! object that cannot be read stops nothing: it is known by its metadata.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::error_boundary::InvalidObject;
use kube::core::{ApiResource, DeserializeGuard, DynamicResourceScope};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// An object of a kind that only its reader knows.
#[derive(Clone, Debug)]
pub struct Unread {
    metadata: ObjectMeta,
    /// All of it, with empty metadata.
    object: Value,
}

impl Unread {
    /// Reads it.
    pub fn read<K>(self) -> DeserializeGuard<K>
    where
        K: Resource + DeserializeOwned,
    {
        let Self { metadata, object } = self;
        DeserializeGuard(match serde_json::from_value::<K>(object) {
            Ok(mut read) => {
                *read.meta_mut() = metadata;
                Ok(read)
            }
            Err(error) => Err(InvalidObject { error: error.to_string(), metadata }),
        })
    }
}

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Value::deserialize(deserializer)?;
        let metadata = object.get_mut("metadata").map(|metadata| std::mem::replace(metadata, Map::new().into()));
        let metadata = metadata.map(serde_json::from_value).transpose().map_err(D::Error::custom)?;
        Ok(Self { metadata: metadata.unwrap_or_default(), object })
    }
}

impl Resource for Unread {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(kind: &ApiResource) -> Cow<'_, str> {
        kind.kind.as_str().into()
    }

    fn group(kind: &ApiResource) -> Cow<'_, str> {
        kind.group.as_str().into()
    }

    fn version(kind: &ApiResource) -> Cow<'_, str> {
        kind.version.as_str().into()
    }

    fn plural(kind: &ApiResource) -> Cow<'_, str> {
        kind.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_read_as_if_it_had_been_read_at_once() {
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "a", "namespace": "b", "labels": { "c": "d" }, "resourceVersion": "7" },
            "spec": { "clusterIP": "10.0.0.1", "ports": [{ "port": 80 }] },
        });
        let unread: Unread = serde_json::from_str(&object.to_string()).unwrap();
        assert_eq!(unread.meta().resource_version.as_deref(), Some("7"));
        assert_eq!(unread.read::<Service>().0.unwrap(), serde_json::from_value(object).unwrap());
    }

    #[test]
    fn what_cannot_be_read_is_known_by_its_metadata() {
        let unread: Unread = serde_json::from_value(json!({ "metadata": { "name": "a" }, "spec": 5 })).unwrap();
        let invalid = unread.read::<Service>().0.unwrap_err();
        assert_eq!(invalid.metadata.name.as_deref(), Some("a"));
        let nothing: Unread = serde_json::from_value(json!(5)).unwrap();
        assert_eq!(nothing.read::<Service>().0.unwrap_err().metadata, ObjectMeta::default());
    }
}
