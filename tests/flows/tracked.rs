//! The table `conntrack_cleanup`: which remembered flows are to be forgotten.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use serde_json::{Value, json};
use steelyard::datapath::conntrack::ledger::{Ledger, Turn};
use steelyard::datapath::conntrack::{Flow, View};
use steelyard::model::{Family, Protocol};
use tokio::time::Instant;

use super::form::{ConntrackForm, Scenario, TrackedFlowForm, address, read};
use super::world::World;

/// What the table writes where any of the node's addresses will do.
const ANY_NODE_ADDRESS: &str = "any node address";
const NODE_ADDRESSES: [&str; 2] = ["192.168.0.2", "2001:db8::1"];
/// Where the endpoints listen; the table does not say.
const TARGET_PORT: NonZeroU16 = NonZeroU16::new(8000).unwrap();

/// A flow of the table.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub flow: Flow,
    pub is_to_be_forgotten: bool,
}

/// The table in one family: what the cluster wants, and flows.
#[derive(Debug)]
pub struct Table {
    pub family: Family,
    pub view: View,
    pub rows: Vec<Result<Row, (String, String)>>,
}

impl Table {
    /// Reads it, and lets the datapath judge. As it is at the start of an agent, and with TCP left alone.
    pub fn read(case: &Value) -> Result<Self, String> {
        let form: ConntrackForm = read(case)?;
        let world = World::of(&Scenario::read(&scenario(&form))?)?;
        let family = Family::of(address(&form.service.cluster_ip)?);
        let turn = Turn { is_whole: true, ..Turn::default() };
        let view = Ledger::new(None).turn(turn, &world.index, &world.desired, Instant::now());
        let row = |entry: &Value| {
            let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
            let number = entry.get("orig_dport").map(ToString::to_string).unwrap_or_default();
            let name = format!("{} to {} port {number}, {}", text("proto"), text("orig_dst"), text("endpoint_state"));
            read_row(entry, family, name.clone()).map_err(|error| (name, error))
        };
        Ok(Self { family, view, rows: form.entries.iter().map(row).collect() })
    }
}

fn read_row(entry: &Value, family: Family, name: String) -> Result<Row, String> {
    let form: TrackedFlowForm = read(entry)?;
    let node_address = match family {
        Family::V4 => NODE_ADDRESSES[0],
        Family::V6 => NODE_ADDRESSES[1],
    };
    let destination = if form.orig_dst == ANY_NODE_ADDRESS { node_address } else { form.orig_dst.as_str() };
    let destination = SocketAddr::new(address(destination)?, form.orig_dport);
    let answers = address(&form.reply_src)?;
    let port = if answers == destination.ip() { form.orig_dport } else { TARGET_PORT.get() };
    let is_to_be_forgotten = match form.expect.as_str() {
        "keep" => false,
        "delete" => true,
        other => return Err(format!("expect must be keep or delete, not {other:?}")),
    };
    let protocol = Protocol::from_api(Some(&form.proto)).ok_or_else(|| format!("{:?} is no protocol", form.proto))?;
    Ok(Row {
        name,
        flow: Flow { protocol, destination, reply_source: SocketAddr::new(answers, port), is_answered: true },
        is_to_be_forgotten,
    })
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
    let targets: Value = (0..service.ports.len()).map(|index| (name(index), json!(TARGET_PORT))).collect();
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
