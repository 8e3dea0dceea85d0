//! The JSON form of cases. Unknown fields are errors: a fact that is not read must not count as held.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use steelyard::datapath::simulate::Packet;
use steelyard::model::Protocol;
use steelyard::model::address::parse_address;

use super::expect::{Expect, ExpectForm};
use super::title_of;

/// A node with Services and endpoints, and the flows to try on it.
#[derive(Debug)]
pub struct Scenario {
    pub title: String,
    pub node: NodeForm,
    pub services: Vec<ServiceForm>,
    pub endpoints: Vec<EndpointForm>,
    /// Each by itself: one that cannot be read fails alone.
    pub flows: Vec<(String, Result<Flow, String>)>,
}

/// The first packet of a connection and what becomes of it.
#[derive(Clone, Debug)]
pub struct Flow {
    pub packet: Packet,
    pub expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioForm {
    #[serde(rename = "test")]
    _test: String,
    #[serde(default, rename = "variant")]
    _variant: Option<String>,
    node: NodeForm,
    #[serde(default)]
    services: Option<Vec<ServiceForm>>,
    #[serde(default)]
    endpoints: Option<Vec<EndpointForm>>,
    flows: Vec<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeForm {
    pub name: String,
    #[serde(default)]
    pub zone: Option<String>,
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub primary_ips: Option<Vec<String>>,
    #[serde(default)]
    pub other_ips: Option<Vec<String>>,
    #[serde(default)]
    pub local_detector: Option<DetectorForm>,
    #[serde(default)]
    pub masquerade_all: Option<bool>,
    #[serde(default)]
    pub nodeport_addresses: Option<Vec<String>>,
    #[serde(default)]
    pub service_cidrs: Option<Vec<String>>,
    #[serde(default)]
    pub pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectorForm {
    #[serde(default)]
    pub mode: Option<String>,
    #[serde(default)]
    pub cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceForm {
    pub name: String,
    #[serde(default, rename = "type")]
    pub service_type: Option<String>,
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub created: Option<String>,
    #[serde(default)]
    pub cluster_ip: Option<String>,
    #[serde(default)]
    pub cluster_ips: Option<Vec<String>>,
    #[serde(default)]
    pub ip_family: Option<String>,
    #[serde(default)]
    pub ip_families: Option<Vec<String>>,
    #[serde(default)]
    pub ports: Option<Vec<PortForm>>,
    #[serde(default)]
    pub external_ips: Option<Vec<String>>,
    #[serde(default)]
    pub lb_ingress: Option<Vec<IngressForm>>,
    #[serde(default)]
    pub lb_source_ranges: Option<Vec<String>>,
    #[serde(default)]
    pub internal_traffic_policy: Option<String>,
    #[serde(default)]
    pub external_traffic_policy: Option<String>,
    #[serde(default)]
    pub session_affinity: Option<AffinityForm>,
    #[serde(default)]
    pub health_check_node_port: Option<i32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortForm {
    #[serde(default)]
    pub name: Option<String>,
    pub port: i32,
    #[serde(default)]
    pub proto: Option<String>,
    #[serde(default)]
    pub node_port: Option<i32>,
    #[serde(default)]
    pub target_port: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngressForm {
    #[serde(default)]
    pub ip: Option<String>,
    #[serde(default)]
    pub hostname: Option<String>,
    #[serde(default)]
    pub ip_mode: Option<String>,
}

/// `{"type": "ClientIP", "timeout_s": 10800}`, or the bare type.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum AffinityForm {
    Type(String),
    Full(FullAffinityForm),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullAffinityForm {
    #[serde(rename = "type")]
    pub affinity_type: String,
    #[serde(default)]
    pub timeout_s: Option<i32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointForm {
    pub service: String,
    pub ip: String,
    #[serde(default)]
    pub ports: Option<BTreeMap<String, Option<i32>>>,
    #[serde(default)]
    pub node: Option<String>,
    #[serde(default)]
    pub ready: Option<bool>,
    #[serde(default)]
    pub serving: Option<bool>,
    #[serde(default)]
    pub terminating: Option<bool>,
    #[serde(default)]
    pub zone_hints: Option<Vec<String>>,
    #[serde(default)]
    pub node_hints: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowForm {
    #[serde(rename = "name")]
    _name: String,
    src: String,
    dst: String,
    port: NonZeroU16,
    #[serde(default)]
    proto: Option<String>,
    expect: ExpectForm,
}

/// One row of `endpoint_selection`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectionForm {
    #[serde(rename = "name")]
    _name: String,
    pub node: PlaceForm,
    pub service: PoliciesForm,
    pub endpoints: Option<Vec<CandidateForm>>,
    pub expect: SelectedForm,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceForm {
    pub name: String,
    #[serde(default)]
    pub zone: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoliciesForm {
    #[serde(default)]
    pub internal_traffic_policy: Option<String>,
    #[serde(default)]
    pub external_traffic_policy: Option<String>,
    #[serde(default)]
    pub reachable_from_outside: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateForm {
    pub ip_port: String,
    #[serde(default)]
    pub local: bool,
    #[serde(default)]
    pub ready: Option<bool>,
    #[serde(default)]
    pub serving: Option<bool>,
    #[serde(default)]
    pub terminating: Option<bool>,
    #[serde(default)]
    pub zone_hints: Option<Vec<String>>,
    #[serde(default)]
    pub node_hints: Option<Vec<String>>,
}

/// What is chosen; `null` means that the set is not used.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectedForm {
    pub cluster: Option<Vec<String>>,
    pub local: Option<Vec<String>>,
    #[serde(default)]
    pub all: Option<Vec<String>>,
    pub has_any_endpoint: bool,
}

/// `health_check_node_port`: what a health check of a Service is told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheckForm {
    #[serde(rename = "name")]
    _name: String,
    /// Ready endpoints on this node.
    pub local_ready: u8,
    pub proxy_healthy: bool,
    pub status: u16,
    pub weight_header: String,
    pub body: Value,
}

/// `conntrack_cleanup`: one Service, and flows that the kernel remembers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConntrackForm {
    pub service: TrackedServiceForm,
    pub endpoints: Option<Vec<TrackedEndpointForm>>,
    /// Each is read by itself.
    pub entries: Vec<Value>,
    #[serde(default, rename = "other_facts")]
    _other_facts: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackedServiceForm {
    pub name: String,
    pub cluster_ip: String,
    #[serde(default)]
    pub external_ips: Option<Vec<String>>,
    #[serde(default)]
    pub lb_ips: Option<Vec<String>>,
    pub ports: Vec<PortForm>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackedEndpointForm {
    pub ip: String,
    pub serving: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackedFlowForm {
    pub proto: String,
    pub orig_dst: String,
    pub orig_dport: u16,
    pub reply_src: String,
    pub expect: String,
    #[serde(default, rename = "kind")]
    _kind: Option<String>,
    #[serde(default, rename = "endpoint_state")]
    _endpoint_state: Option<String>,
}

/// Reads a case of a form.
pub fn read<T: DeserializeOwned>(case: &Value) -> Result<T, String> {
    T::deserialize(case).map_err(|error| format!("cannot be read: {error}"))
}

impl Scenario {
    /// Reads one.
    pub fn read(case: &Value) -> Result<Self, String> {
        let form: ScenarioForm = read(case)?;
        let flows = form.flows.iter().map(|flow| (title_of(flow), Flow::read(flow))).collect();
        Ok(Self {
            title: title_of(case),
            node: form.node,
            services: form.services.unwrap_or_default(),
            endpoints: form.endpoints.unwrap_or_default(),
            flows,
        })
    }
}

impl Flow {
    fn read(case: &Value) -> Result<Self, String> {
        let form: FlowForm = read(case)?;
        let protocol = Protocol::from_api(form.proto.as_deref())
            .ok_or_else(|| format!("{:?} is no protocol", form.proto.as_deref().unwrap_or_default()))?;
        let packet =
            Packet { source: address(&form.src)?, destination: address(&form.dst)?, port: form.port, protocol };
        Ok(Self { packet, expect: Expect::try_from(form.expect)? })
    }
}

/// Reads an address as leniently as API objects are read.
pub fn address(text: &str) -> Result<IpAddr, String> {
    parse_address(text).ok_or_else(|| format!("{text:?} is no address"))
}
