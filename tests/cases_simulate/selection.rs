//! The rows of `endpoint_selection`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::Value;
use steelyard::datapath::endpoints::{Needs, Place, select};
use steelyard::model::endpoints::{Conditions, Endpoint};
use steelyard::model::service::TrafficPolicy;
use steelyard::names::{NodeName, ZoneName};

use crate::flows::expect::{addresses, socket_address};
use crate::flows::form::{CandidateForm, PlaceForm, SelectionForm, read};

/// Runs one row.
pub(crate) fn check(case: &Value) -> Result<(), String> {
    let form: SelectionForm = read(case)?;
    let node = NodeName::new(form.node.name.as_str());
    let zone = form.node.zone.as_deref().filter(|zone| !zone.is_empty()).map(ZoneName::new);
    let candidates = form.endpoints.iter().flatten();
    let endpoints: Vec<Endpoint> =
        candidates.map(|candidate| endpoint(candidate, &form.node)).collect::<Result<_, _>>()?;
    let needs = Needs::of(
        policy(form.service.internal_traffic_policy.as_deref())?,
        policy(form.service.external_traffic_policy.as_deref())?,
        form.service.reachable_from_outside,
    );
    let selection = select(endpoints, Place { node: &node, zone: zone.as_ref() }, needs);
    let expected = &form.expect;
    compare("cluster", &selection.cluster, &set(expected.cluster.as_deref())?)?;
    compare("local", &selection.local, &set(expected.local.as_deref())?)?;
    if let Some(all) = &expected.all {
        compare("all", &Some(selection.all()), &Some(addresses(all)?))?;
    }
    compare("has_any_endpoint", &selection.has_any_endpoint, &expected.has_any_endpoint)
}

fn endpoint(form: &CandidateForm, place: &PlaceForm) -> Result<Endpoint, String> {
    let is_ready = form.ready.unwrap_or(true);
    Ok(Endpoint {
        address: socket_address(&form.ip_port)?,
        conditions: Conditions {
            is_ready,
            is_serving: form.serving.unwrap_or(is_ready),
            is_terminating: form.terminating.unwrap_or(false),
        },
        node: Some(if form.local { NodeName::new(place.name.as_str()) } else { NodeName::new("some-other-node") }),
        zone_hints: form.zone_hints.iter().flatten().map(|zone| ZoneName::new(zone.as_str())).collect(),
        node_hints: form.node_hints.iter().flatten().map(|node| NodeName::new(node.as_str())).collect(),
    })
}

fn policy(text: Option<&str>) -> Result<TrafficPolicy, String> {
    match text {
        None | Some("Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(format!("{other:?} is no traffic policy")),
    }
}

fn set(list: Option<&[String]>) -> Result<Option<BTreeSet<SocketAddr>>, String> {
    list.map(addresses).transpose()
}

fn compare<T: PartialEq + std::fmt::Debug>(what: &str, actual: &T, expected: &T) -> Result<(), String> {
    if actual == expected { Ok(()) } else { Err(format!("{what}: expected {expected:?}, got {actual:?}")) }
}
