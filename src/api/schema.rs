//! Pieces of schema that several kinds use, checked by the API server before we ever see an object.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// True for a range `FIRST-LAST` of two addresses of one family. CEL cannot compare two addresses, so their order is
/// left to the controller. Nothing here loops: the API server refuses a definition whose rules could cost too much.
const IS_RANGE: &str = "self.split('-').size() == 2 \
                        && isIP(self.split('-')[0].trim()) && isIP(self.split('-')[1].trim()) \
                        && ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family()";

/// The longest text that any of these can have: two IPv6 addresses, a dash, and white space.
const LONGEST: usize = 84;

macro_rules! text {
    ($(#[$doc:meta])* $type:ident, $description:literal, $rule:expr, $message:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub String);

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "description": $description,
                    "type": "string",
                    "minLength": 1,
                    "maxLength": LONGEST,
                    "x-kubernetes-validations": [{"rule": $rule, "message": $message, "reason": "FieldValueInvalid"}],
                })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $type {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

text!(
    /// A prefix or a range of addresses, as written.
    AddressRange,
    "A CIDR (192.0.2.0/24) or a range with its first and last address (192.0.2.10-192.0.2.20).",
    format!("isCIDR(self) || ({IS_RANGE})"),
    "must be a CIDR (192.0.2.0/24) or a range of two addresses of one family (192.0.2.10-192.0.2.20)"
);
text!(
    /// One address, a prefix or a range of addresses, as written.
    Addresses,
    "An address (192.0.2.7), a CIDR (192.0.2.0/28) or a range with its first and last address \
     (192.0.2.10-192.0.2.20).",
    format!("isIP(self) || isCIDR(self) || ({IS_RANGE})"),
    "must be an address (192.0.2.7), a CIDR (192.0.2.0/28) or a range of two addresses of one family \
     (192.0.2.10-192.0.2.20)"
);
text!(
    /// One address, as written.
    Address,
    "An address (192.0.2.7 or 2001:db8::7).",
    "isIP(self)",
    "must be an IP address (192.0.2.7 or 2001:db8::7)"
);

/// Label selectors, with operators and values checked, which the schema of `LabelSelector` leaves open.
pub fn selectors(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "items": selector(generator),
    })
}

/// One label selector, with operators and values checked.
pub fn selector(_: &mut SchemaGenerator) -> Schema {
    // Read by itself: references into a generator of another component would not be inlined in a list.
    let mut schema = LabelSelector::json_schema(&mut inlining());
    let requirement = schema
        .pointer_mut("/properties/matchExpressions")
        .and_then(|list| {
            list.as_object_mut()?.insert("maxItems".into(), json!(64));
            list.pointer_mut("/items")
        })
        .and_then(serde_json::Value::as_object_mut);
    if let Some(requirement) = requirement {
        if let Some(operator) = requirement.get_mut("properties").and_then(|all| all.pointer_mut("/operator"))
            && let Some(operator) = operator.as_object_mut()
        {
            operator.insert("enum".into(), json!(["In", "NotIn", "Exists", "DoesNotExist"]));
        }
        requirement.insert(
            "x-kubernetes-validations".into(),
            json!([{
                "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
                "message": "In and NotIn need values, Exists and DoesNotExist take none",
                "reason": "FieldValueInvalid",
            }]),
        );
    }
    schema
}

fn inlining() -> SchemaGenerator {
    let mut settings = schemars::generate::SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    settings.into_generator()
}

/// Conditions, at most one of each type.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    let condition = k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition::json_schema(&mut inlining()).to_value();
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": condition,
    })
}
