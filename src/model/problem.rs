//! Something that an agent cannot do for its node or for a Service, as people should hear of it.

use crate::names::ServiceKey;

/// The reason of a Service of which a field cannot be used: the same on every node, and the least of its problems.
pub const FIELD_IGNORED: &str = "FieldIgnored";

/// Something that an agent cannot do. Those of the node as a whole come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The Service that is concerned; none for the node as a whole.
    pub service: Option<ServiceKey>,
    /// Why, as a CamelCase word: the reason of the Service's condition and event.
    pub reason: &'static str,
    /// What happened, for people.
    pub message: String,
}

impl Problem {
    /// Of one Service.
    pub fn of_service(service: ServiceKey, reason: &'static str, message: impl Into<String>) -> Self {
        Self { service: Some(service), reason, message: message.into() }
    }

    /// Of the node as a whole.
    pub fn of_node(reason: &'static str, message: impl Into<String>) -> Self {
        Self { service: None, reason, message: message.into() }
    }
}
