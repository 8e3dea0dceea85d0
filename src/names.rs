//! Identifiers, one type each, so that no two can be swapped.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use arcstr::ArcStr;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::Protocol;

/// A text where an identifier was expected.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// `namespace/name` was expected.
    #[error("{0:?} is not of the form NAMESPACE/NAME")]
    NotNamespaced(String),
}

/// Text that its copies share: names stand in many places at once, and there are tens of thousands of them.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Text(ArcStr);

/// Of two that share their text it is not read: that is most of what finding a Service among many takes, since all those of
/// a namespace have its name.
impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        if ArcStr::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.as_str().cmp(other.as_str()) }
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Text {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One copy of each text that many hold.
#[derive(Debug, Default)]
pub struct Texts(BTreeSet<Text>);

impl Texts {
    /// Puts the copy that is here in place of this one.
    pub fn share(&mut self, text: &mut Text) {
        match self.0.get(text) {
            Some(known) => text.clone_from(known),
            None => drop(self.0.insert(text.clone())),
        }
    }

    /// Drops those that nobody else holds any more.
    pub fn forget_unused(&mut self) {
        self.0.retain(|text| ArcStr::strong_count(&text.0).is_some_and(|count| count > 1));
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        // The empty text, the name of most ports, takes no memory.
        Self(text.into())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.as_str().to_owned()
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(Text);

        impl $type {
            /// Takes the text as it is: the API server has checked it.
            pub fn new(name: impl Into<Text>) -> Self {
                Self(name.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Lets it be one copy with all others that do this.
            pub fn share(&mut self, texts: &mut Texts) {
                texts.share(&mut self.0);
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), self.0)
            }
        }

        impl From<&str> for $type {
            fn from(name: &str) -> Self {
                Self::new(name)
            }
        }
    };
}

name!(
    /// The name of a Kubernetes Node.
    NodeName
);
name!(
    /// The name of an `IPAddressPool`.
    PoolName
);
name!(
    /// The name of an `L2Advertisement`.
    AdvertisementName
);
name!(
    /// The name of an `AddressClaim`: its address, written as an API object's name.
    ClaimName
);
name!(
    /// The name of a network interface, at most 15 bytes (`IFNAMSIZ`).
    InterfaceName
);
name!(
    /// The name of a Service port; empty where a Service has a single unnamed port.
    PortName
);
name!(
    /// The value of `topology.kubernetes.io/zone`.
    ZoneName
);

/// A Service by namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: Text,
    /// The name inside the namespace.
    pub name: Text,
}

impl ServiceKey {
    /// Names a Service.
    pub fn new(namespace: impl Into<Text>, name: impl Into<Text>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceKey({self})")
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::new(namespace, name))
            }
            Some(_) | None => Err(NameError::NotNamespaced(text.to_owned())),
        }
    }
}

/// One port of one Service: what the datapath programs independently of all others.
///
/// The protocol belongs to the key because one port name never spans protocols but one port number may.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServicePortKey {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name, empty for a single unnamed port.
    pub port: PortName,
    /// The port's protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.as_str().is_empty() {
            write!(f, "{}/{}", self.service, self.protocol)
        } else {
            write!(f, "{}:{}/{}", self.service, self.port, self.protocol)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_keys_read_back_what_they_print() {
        let key = ServiceKey::new("default", "web");
        assert_eq!(key.to_string().parse::<ServiceKey>(), Ok(key));
    }

    #[test]
    fn a_service_key_needs_both_halves() {
        for text in ["web", "/web", "default/", "a/b/c", ""] {
            assert_eq!(text.parse::<ServiceKey>(), Err(NameError::NotNamespaced(text.to_owned())));
        }
    }
}
