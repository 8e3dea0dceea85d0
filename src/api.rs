//! What users write: names of annotations, labels, conditions and reasons, and the kinds of group `steelyard.dev`.
//! No behaviour beyond reading and printing.

pub mod address_claim;
pub mod address_pool;
pub mod annotations;
pub mod claim_name;
pub mod conditions;
pub mod l2_advertisement;
pub mod node_announcement;
pub mod schema;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSON};
use kube::CustomResourceExt;

pub use address_claim::AddressClaim;
pub use address_pool::IPAddressPool;
pub use l2_advertisement::L2Advertisement;
pub use node_announcement::NodeAnnouncement;

/// The API group of all our kinds, and the prefix of our annotations, conditions and finalizers.
pub const GROUP: &str = "steelyard.dev";
/// The `loadBalancerClass` that is always ours.
pub const LOAD_BALANCER_CLASS: &str = "steelyard.dev/steelyard";
/// The finalizer that a load balancer keeps on a Service while it holds something for it; upstream's name.
pub const SERVICE_FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// The name by which events and conditions report the controller.
pub const CONTROLLER_NAME: &str = "steelyard-controller";

/// The definitions of all kinds, in the order of their names.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![AddressClaim::crd(), IPAddressPool::crd(), with_default_spec(L2Advertisement::crd()), NodeAnnouncement::crd()]
}

/// Lets users leave out a spec of which everything is optional: the API server fills in an empty one.
fn with_default_spec(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas = definition.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    for schema in schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()) {
        if let Some(spec) = schema.properties.as_mut().and_then(|properties| properties.get_mut("spec")) {
            spec.default = Some(JSON(serde_json::json!({})));
        }
    }
    definition
}
