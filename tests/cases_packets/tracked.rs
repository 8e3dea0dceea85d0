//! The table `conntrack_cleanup` in the kernel: real entries, and what is left of them.

use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use serde_json::Value;
use steelyard::datapath::conntrack::Flow;
use steelyard::datapath::sweeper::{Metrics, Sweeper};
use steelyard::model::{Family, Protocol};
use steelyard::netlink::ctnetlink::{Conntrack, Filter};

use crate::flows::tracked::Table;
use crate::stage::namespace::{Namespace, run_program};
use crate::stage::nap;

const LIMIT: Duration = Duration::from_secs(10);
const FIRST_PORT: u16 = 20_000;

/// A row's name, and whether it holds.
type Outcome = (String, Result<(), String>);

/// Puts all entries there, sweeps once, and looks which are left.
pub fn check(case: &Value) -> Result<Vec<Outcome>, String> {
    let table = Table::read(case)?;
    let namespace = Namespace::new("tracked")?;
    let left = namespace.run(|| -> Result<Vec<u16>, String> {
        for (port, row) in (FIRST_PORT..).zip(&table.rows) {
            if let Ok(row) = row {
                insert(&row.flow, port)?;
            }
        }
        if ports_left(table.family)?.len() != table.rows.iter().filter(|row| row.is_ok()).count() {
            return Err("the kernel did not take all entries".to_owned());
        }
        let sweeper = Sweeper::start(Metrics::register(&mut Registry::default())).map_err(|error| error.to_string())?;
        sweeper.hand_over(table.view.clone());
        let limit = Instant::now() + LIMIT;
        while !sweeper.is_idle() {
            if Instant::now() > limit {
                return Err("the sweep does not end".to_owned());
            }
            nap()?;
        }
        ports_left(table.family)
    })?;
    let outcome = |(port, row)| match row {
        Err((name, error)) => (name, Err(error)),
        Ok(crate::flows::tracked::Row { name, is_to_be_forgotten, .. }) => {
            let result = match (left.contains(&port), is_to_be_forgotten) {
                (true, false) | (false, true) => Ok(()),
                (true, true) => Err("it is still there".to_owned()),
                (false, false) => Err("it was deleted".to_owned()),
            };
            (name, result)
        }
    };
    Ok((FIRST_PORT..).zip(table.rows).map(outcome).collect())
}

fn insert(flow: &Flow, port: u16) -> Result<(), String> {
    let client = match Family::of(flow.destination.ip()) {
        Family::V4 => "198.51.100.1",
        Family::V6 => "2001:db8:5::1",
    };
    let (protocol, state) = match flow.protocol {
        Protocol::Udp => ("udp", ""),
        Protocol::Tcp => ("tcp", "--state ESTABLISHED"),
        Protocol::Sctp => ("sctp", "--state ESTABLISHED --orig-vtag 1 --reply-vtag 2"),
    };
    let (to, by) = (flow.destination, flow.reply_source);
    let arguments = format!(
        "-I -p {protocol} -t 1000 -s {client} --sport {port} -d {} --dport {} -r {} --reply-port-src {} -q {client} \
         --reply-port-dst {port} {state}",
        to.ip(),
        to.port(),
        by.ip(),
        by.port()
    );
    run_program("conntrack", &arguments.split_whitespace().collect::<Vec<_>>(), "").map(drop)
}

fn ports_left(family: Family) -> Result<Vec<u16>, String> {
    let mut socket = Conntrack::open().map_err(|error| error.to_string())?;
    let mut ports = Vec::new();
    for protocol in [Protocol::Udp, Protocol::Tcp, Protocol::Sctp] {
        let filter = Filter { family, protocol, destination: None, port: None };
        socket.dump(&filter, |entry| ports.push(entry.source.port())).map_err(|error| error.to_string())?;
    }
    Ok(ports)
}
