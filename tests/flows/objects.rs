//! Real API objects of a scenario: what a watch would deliver, so that reading them is tested too.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use steelyard::model::Family;
use steelyard::model::address::parse_address;

use super::form::{AffinityForm, EndpointForm, NodeForm, Scenario, ServiceForm};

/// The objects of one scenario.
#[derive(Debug)]
pub struct Objects {
    pub node: Node,
    pub services: Vec<Service>,
    pub slices: Vec<EndpointSlice>,
}

impl Objects {
    /// Makes them.
    pub fn of(scenario: &Scenario) -> Result<Self, String> {
        Ok(Self {
            node: object("node", node(&scenario.node))?,
            services: scenario
                .services
                .iter()
                .map(|form| object(&format!("service {}", form.name), service(form)?))
                .collect::<Result<_, _>>()?,
            slices: slices(scenario)?,
        })
    }
}

/// Reads an object as the API client would; fields without a value are left out as the API server leaves them out.
fn object<T: DeserializeOwned>(what: &str, json: Value) -> Result<T, String> {
    serde_json::from_value(without_nulls(json)).map_err(|error| format!("{what} is no API object: {error}"))
}

/// As an object is written: fields without a value are left out.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => other,
    }
}

fn node(form: &NodeForm) -> Value {
    let mut labels = form.labels.clone().unwrap_or_default();
    if let Some(zone) = &form.zone {
        labels.insert("topology.kubernetes.io/zone".to_owned(), zone.clone());
    }
    let addresses: Vec<Value> =
        form.primary_ips.iter().flatten().map(|address| json!({ "type": "InternalIP", "address": address })).collect();
    json!({
        "metadata": { "name": form.name, "labels": labels },
        "spec": { "podCIDRs": form.pod_cidrs },
        "status": { "addresses": addresses },
    })
}

fn service(form: &ServiceForm) -> Result<Value, String> {
    let (namespace, name) = split(&form.name)?;
    let ports: Vec<Value> = form
        .ports
        .iter()
        .flatten()
        .map(|port| {
            json!({
                "name": port.name, "port": port.port, "protocol": port.proto, "nodePort": port.node_port,
                "targetPort": port.target_port,
            })
        })
        .collect();
    let ingress: Vec<Value> = form
        .lb_ingress
        .iter()
        .flatten()
        .map(|entry| json!({ "ip": entry.ip, "hostname": entry.hostname, "ipMode": entry.ip_mode }))
        .collect();
    let (affinity, timeout) = match &form.session_affinity {
        None => (None, None),
        Some(AffinityForm::Type(affinity)) => (Some(affinity.clone()), None),
        Some(AffinityForm::Full(full)) => (Some(full.affinity_type.clone()), full.timeout_s),
    };
    let cluster_ips = form.cluster_ips.clone().unwrap_or_default();
    Ok(json!({
        "metadata": {
            "name": name, "namespace": namespace, "labels": form.labels, "creationTimestamp": form.created,
        },
        "spec": {
            "type": form.service_type,
            "clusterIP": form.cluster_ip.as_ref().or(cluster_ips.first()),
            "clusterIPs": cluster_ips,
            "ipFamilies": form.ip_families.clone().or_else(|| Some(vec![form.ip_family.clone()?])),
            "ports": ports,
            "externalIPs": form.external_ips,
            "loadBalancerSourceRanges": form.lb_source_ranges,
            "internalTrafficPolicy": form.internal_traffic_policy,
            "externalTrafficPolicy": form.external_traffic_policy,
            "sessionAffinity": affinity,
            "sessionAffinityConfig": timeout.map(|seconds| json!({ "clientIP": { "timeoutSeconds": seconds } })),
            "healthCheckNodePort": form.health_check_node_port,
        },
        "status": { "loadBalancer": { "ingress": ingress } },
    }))
}

/// One slice for each Service, family and set of ports, as the endpoint slice controller would make them.
fn slices(scenario: &Scenario) -> Result<Vec<EndpointSlice>, String> {
    let mut groups: BTreeMap<_, Vec<Value>> = BTreeMap::new();
    for form in scenario.endpoints.iter() {
        let address = parse_address(&form.ip).ok_or_else(|| format!("endpoint {:?} has no address", form.ip))?;
        let ports = form.ports.clone().unwrap_or_default();
        groups.entry((form.service.as_str(), Family::of(address), ports)).or_default().push(endpoint(form));
    }
    let mut slices = Vec::new();
    for (number, ((service, family, ports), endpoints)) in groups.into_iter().enumerate() {
        let (namespace, name) = split(service)?;
        let port = |(port, number): (&String, &Option<i32>)| json!({ "protocol": protocol_of(scenario, service, port), "name": port, "port": number });
        let json = json!({
            "metadata": {
                "name": format!("{name}-{number}"), "namespace": namespace,
                "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": family.to_string(),
            "endpoints": endpoints,
            "ports": ports.iter().map(port).collect::<Vec<Value>>(),
        });
        slices.push(object(&format!("endpoint slice of {service}"), json)?);
    }
    Ok(slices)
}

fn endpoint(form: &EndpointForm) -> Value {
    let hints = (form.zone_hints.is_some() || form.node_hints.is_some()).then(|| {
        let named = |names: &Option<Vec<String>>| -> Vec<Value> {
            names.iter().flatten().map(|name| json!({ "name": name })).collect()
        };
        json!({ "forZones": named(&form.zone_hints), "forNodes": named(&form.node_hints) })
    });
    json!({
        "addresses": [form.ip],
        "nodeName": form.node,
        "conditions": { "ready": form.ready, "serving": form.serving, "terminating": form.terminating },
        "hints": hints,
    })
}

/// Slices repeat the protocol that their Service's port has.
fn protocol_of<'a>(scenario: &'a Scenario, service: &str, port: &str) -> Option<&'a str> {
    let service = scenario.services.iter().find(|form| form.name == service)?;
    let port = service.ports.iter().flatten().find(|form| form.name.as_deref().unwrap_or_default() == port)?;
    port.proto.as_deref()
}

fn split(name: &str) -> Result<(&str, &str), String> {
    name.split_once('/').ok_or_else(|| format!("{name:?} is not of the form NAMESPACE/NAME"))
}
