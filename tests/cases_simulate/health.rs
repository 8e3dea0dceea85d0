//! The rows of `health_check_node_port`: a Service with as many local endpoints as the row says, beside some that do not
//! count, and the answer to a health check of it.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::{Value, json};
use steelyard::datapath::health_check::checks::{answer, check_of};
use steelyard::model::Family;
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::service::Service;
use steelyard::names::NodeName;

use crate::flows::form::{HealthCheckForm, read};

/// Runs one row with a Service of one family; a load balancer may look at the node by either.
pub(crate) fn check(case: &Value, family: Family) -> Result<(), String> {
    let form: HealthCheckForm = read(case)?;
    let named = form.body.get("service").cloned().unwrap_or_default();
    let text = |field: &str| named.get(field).and_then(Value::as_str).ok_or(format!("body.service has no {field}"));
    let (service, slice) = objects(text("namespace")?, text("name")?, form.local_ready, family)?;
    let check = check_of(&service.clone().into(), [&slice].into_iter(), &NodeName::new("here"))
        .ok_or("there is no health check")?;
    for seen_by in Family::ALL {
        let answer = answer(&service.key, check.endpoints.seen_by(seen_by), form.proxy_healthy);
        compare("status", &answer.status, &form.status)?;
        let header = |name: &str| {
            let found = answer.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map_or("", |(_, value)| value.as_str())
        };
        compare("weight", &header("X-Load-Balancing-Endpoint-Weight"), &form.weight_header.as_str())?;
        compare("content type", &header("Content-Type"), &"application/json")?;
        compare("content type options", &header("X-Content-Type-Options"), &"nosniff")?;
        let body: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
        compare("body", &body, &form.body)?;
    }
    Ok(())
}

fn objects(namespace: &str, name: &str, ready: u8, family: Family) -> Result<(Service, EndpointSlice), String> {
    let (cluster_ip, prefix) = match family {
        Family::V4 => ("172.30.0.1", "10.0.0."),
        Family::V6 => ("fd00:10:96::1", "fd00:10::"),
    };
    let service: core::Service = from(json!({
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
            "clusterIP": cluster_ip, "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}],
        },
    }))?;
    let ready = (1..=ready).map(|number| json!({"addresses": [format!("{prefix}{number}")], "nodeName": "here"}));
    let terminating = json!({"ready": false, "serving": true, "terminating": true});
    let others = [
        json!({"addresses": [format!("{prefix}91")], "nodeName": "there"}),
        json!({"addresses": [format!("{prefix}92")], "nodeName": "here", "conditions": terminating}),
        json!({"addresses": [format!("{prefix}93")], "nodeName": "here", "conditions": {"ready": false}}),
        json!({"addresses": [format!("{prefix}94")]}),
    ];
    let slice: discovery::EndpointSlice = from(json!({
        "metadata": {"namespace": namespace, "name": "x", "labels": {"kubernetes.io/service-name": name}},
        "addressType": family.to_string(),
        "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 8081}],
        "endpoints": ready.chain(others).collect::<Vec<_>>(),
    }))?;
    let service = Service::try_from(&service).map_err(|error| error.to_string())?;
    Ok((service, EndpointSlice::try_from(&slice).map_err(|error| error.to_string())?))
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn compare<T: PartialEq + std::fmt::Debug>(what: &str, actual: &T, expected: &T) -> Result<(), String> {
    if actual == expected { Ok(()) } else { Err(format!("{what}: expected {expected:?}, got {actual:?}")) }
}
