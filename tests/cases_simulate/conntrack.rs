//! The table `conntrack_cleanup`: which remembered flows are to be forgotten.

use std::net::SocketAddr;

use serde_json::{Value, json};
use steelyard::datapath::conntrack::{Flow, is_stale};
use steelyard::model::{Family, Protocol};

use crate::flows::form::{ConntrackForm, Scenario, TrackedFlowForm, address, read};
use crate::flows::world::World;

/// What the table writes where any of the node's addresses will do.
const ANY_NODE_ADDRESS: &str = "any node address";
const NODE_ADDRESSES: [&str; 2] = ["192.168.0.2", "2001:db8::1"];

/// A row's name, and whether it holds.
type Row = (String, Result<(), String>);

/// Runs every row.
pub(crate) fn check(case: &Value) -> Result<Vec<Row>, String> {
    let form: ConntrackForm = read(case)?;
    let world = World::of(&Scenario::read(&scenario(&form))?)?;
    let family = Family::of(address(&form.service.cluster_ip)?);
    let run = |entry: &Value| {
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
        let number = entry.get("orig_dport").map(ToString::to_string).unwrap_or_default();
        let name = format!("{} to {} port {number}, {}", text("proto"), text("orig_dst"), text("endpoint_state"));
        (name, check_entry(entry, family, &world))
    };
    Ok(form.entries.iter().map(run).collect())
}

fn check_entry(entry: &Value, family: Family, world: &World) -> Result<(), String> {
    let form: TrackedFlowForm = read(entry)?;
    let node_address = match family {
        Family::V4 => NODE_ADDRESSES[0],
        Family::V6 => NODE_ADDRESSES[1],
    };
    let destination = if form.orig_dst == ANY_NODE_ADDRESS { node_address } else { form.orig_dst.as_str() };
    let flow = Flow {
        protocol: Protocol::from_api(Some(&form.proto)).ok_or_else(|| format!("{:?} is no protocol", form.proto))?,
        destination: SocketAddr::new(address(destination)?, form.orig_dport),
        reply_source: address(&form.reply_src)?,
    };
    let expected = match form.expect.as_str() {
        "keep" => false,
        "delete" => true,
        other => return Err(format!("expect must be keep or delete, not {other:?}")),
    };
    if is_stale(&flow, &world.desired, &world.index) == expected {
        Ok(())
    } else {
        Err(format!("expected {}", form.expect))
    }
}

/// The table's Service as a scenario. Its ports have no names, though several need them; target ports are not told.
fn scenario(form: &ConntrackForm) -> Value {
    let service = &form.service;
    let name = |index: usize| format!("port-{index}");
    let ports: Vec<Value> = service
        .ports
        .iter()
        .enumerate()
        .map(|(index, port)| {
            json!({ "name": name(index), "port": port.port, "proto": port.proto, "node_port": port.node_port })
        })
        .collect();
    let targets: Value = (0..service.ports.len()).map(|index| (name(index), json!(8000))).collect();
    let endpoints: Vec<Value> = form
        .endpoints
        .iter()
        .flatten()
        .map(|endpoint| {
            json!({
                "service": service.name, "ip": endpoint.ip, "ports": targets,
                "ready": endpoint.serving, "serving": endpoint.serving,
            })
        })
        .collect();
    let ingress: Vec<Value> = service.lb_ips.iter().flatten().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "test": "conntrack cleanup",
        "node": { "name": "test-node", "primary_ips": NODE_ADDRESSES },
        "services": [{
            "name": service.name, "type": "LoadBalancer", "cluster_ips": [service.cluster_ip], "ports": ports,
            "external_ips": service.external_ips, "lb_ingress": ingress,
        }],
        "endpoints": endpoints,
        "flows": [],
    })
}
