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

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
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
    vec![AddressClaim::crd(), IPAddressPool::crd(), L2Advertisement::crd(), NodeAnnouncement::crd()]
}
