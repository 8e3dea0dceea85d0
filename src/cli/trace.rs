//! `steelyard trace`: what happens to a packet, and why. It asks the same functions by which the agents program the kernel,
//! so its answer is theirs.

mod files;
mod live;
mod objects;
mod place;
mod report;
mod target;
mod text;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use thiserror::Error;

use self::files::FileError;
use self::live::ListError;
use self::objects::Objects;
use self::place::PlaceError;
use self::report::{Outcome, Report, View};
use self::target::{Target, TargetError, addresses_of};
use super::cluster::{ClusterArgs, ClusterError};
use super::forwarding::ForwardingArgs;
use crate::datapath::simulate::{Packet, not_proxied};
use crate::model::node::Node;
use crate::model::{Family, Protocol};
use crate::names::{NodeName, ServiceKey};

const EXAMPLES: &str = "\
Examples:
  steelyard trace --from 203.0.113.7 --to 192.0.2.100:80
      a client outside dials a load-balancer address: on the node that announces it
  steelyard trace --from 10.244.1.5 --to [fd00:10:96::a]:53 --protocol udp
      a pod dials a cluster IP: on the pod's node
  steelyard trace --from 203.0.113.7 --to service/default/web:http --all-nodes
      each address of a Service, on each node
  kubectl get services,endpointslices,nodes -A -o yaml | steelyard trace -f - --from 203.0.113.7 --to 192.0.2.100:80
      from files, without a cluster

Exit code: 0 if every packet is forwarded, 1 for an error, 2 for a wrong command line, 3 if one is dropped or rejected, 4 if no
Service of ours has one's destination.";

/// Say what happens to a packet, and why
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Trace {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// Where the packet comes from
    #[arg(long, value_name = "ADDRESS")]
    from: IpAddr,

    /// Where it is sent: `ADDRESS:PORT`, `[ADDRESS]:PORT`, or `service/NAMESPACE/NAME[:PORT]` for all addresses of a Service
    #[arg(long, value_name = "TARGET")]
    to: String,

    /// By which protocol; without it TCP, or for a Service all that it has
    #[arg(long, value_enum, ignore_case = true)]
    protocol: Option<ProtocolArg>,

    /// On which node. Without it: that of the source, else the one that has or announces the destination
    #[arg(long, value_name = "NAME", conflicts_with = "all_nodes")]
    node: Option<String>,

    /// On every node
    #[arg(long)]
    all_nodes: bool,

    /// A file or folder with the objects, `-` for the standard input; repeatable. Without it: the cluster's own
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// A further address of the node's interfaces, which its object does not name; repeatable
    #[arg(long = "local-address", value_name = "ADDRESS")]
    local_addresses: Vec<IpAddr>,

    #[command(flatten)]
    forwarding: ForwardingArgs,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProtocolArg {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// A packet to be followed on some node.
struct Job {
    /// Among all of them, as they are told.
    place: (usize, Leg),
    packet: Packet,
    reason: String,
}

/// A packet that a node does not serve goes on to one other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leg {
    First,
    Second,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum TraceError {
    /// No way to the API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Objects cannot be listed.
    #[error(transparent)]
    List(#[from] ListError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// `--to` names nothing.
    #[error("--to {0}")]
    Target(#[from] TargetError),
    /// The two ends have no common network.
    #[error("--from {from} is {}, --to {to} is {}: no packet has both", Family::of(*from), Family::of(*to))]
    Families {
        /// The source.
        from: IpAddr,
        /// The destination.
        to: IpAddr,
    },
    /// No such Service.
    #[error("there is no service {0}")]
    NoService(ServiceKey),
    /// The Service has nothing that could be dialled.
    #[error("service {0} has no address of {1} with such a port{2}")]
    NoAddress(ServiceKey, Family, String),
    /// No node to follow the packet on.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The output cannot be written.
    #[error("failed to write the output")]
    Write(#[source] io::Error),
}

impl Trace {
    /// Follows the packets and prints what becomes of them.
    ///
    /// # Errors
    /// When the question cannot be answered.
    pub async fn run(self) -> Result<ExitCode, TraceError> {
        let target: Target = self.to.parse()?;
        let objects = if self.files.is_empty() {
            live::read(&self.cluster.client().await?).await?
        } else {
            let mut objects = Objects::default();
            for file in &self.files {
                files::read(file, &mut objects)?;
            }
            objects
        };
        let report = self.report(&target, objects)?;
        let text = match self.output {
            Output::Text => text::text(&report),
            Output::Json => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
        };
        io::stdout().lock().write_all(text.as_bytes()).map_err(TraceError::Write)?;
        Ok(exit_code(&report))
    }

    fn report(&self, target: &Target, mut objects: Objects) -> Result<Report, TraceError> {
        let settings = match objects.agent_arguments.as_deref().and_then(ForwardingArgs::of_agent) {
            Some(agent) if self.forwarding.is_default() => agent.settings(),
            Some(_) | None => self.forwarding.settings(),
        };
        let mut warnings = std::mem::take(&mut objects.warnings);
        if objects.service_cidrs.is_empty() {
            warnings
                .push("no ServiceCIDR is known: addresses of none but known Services count as cluster IPs".to_owned());
        }
        // What a node knows costs as much as all objects together: it is worked out once for all of the node's packets.
        let mut waiting: BTreeMap<&NodeName, (&Node, Vec<Job>)> = BTreeMap::new();
        let mut count = 0;
        for (destination, port, protocol) in self.packets(target, &objects)? {
            if Family::of(self.from) != Family::of(destination) {
                return Err(TraceError::Families { from: self.from, to: destination });
            }
            let nodes = if let Some(name) = &self.node {
                vec![place::named(&objects, name)?]
            } else if self.all_nodes {
                place::all(&objects)?
            } else {
                vec![place::choose(&objects, self.from, SocketAddr::new(destination, port.get()))?]
            };
            for (node, reason) in nodes {
                let packet = Packet { source: self.from, destination, port, protocol };
                let jobs = &mut waiting.entry(&node.name).or_insert((node, Vec::new())).1;
                jobs.push(Job { place: (count, Leg::First), packet, reason });
                count += 1;
            }
        }
        let mut traces = BTreeMap::new();
        while let Some((name, (node, jobs))) = waiting.pop_first() {
            let view = View::new(&objects, node, &settings, self.local_addresses.iter().copied());
            for Job { place: (number, leg), packet, reason } in jobs {
                let mut traced = view.trace(packet, reason);
                traced.notes.extend(objects.idle.get(name).map(|mode| idle_note(node, mode)));
                let may_go_on = leg == Leg::First && self.node.is_none() && !self.all_nodes;
                let next = place::next(&objects, node, packet.destination)
                    .filter(|_| may_go_on && traced.outcome == Outcome::NotServed);
                if let Some((next, reason)) = next {
                    traced.goes_on_to = Some(next.name.to_string());
                    let jobs = &mut waiting.entry(&next.name).or_insert((next, Vec::new())).1;
                    jobs.push(Job { place: (number, Leg::Second), packet, reason });
                }
                traces.insert((number, leg), traced);
            }
        }
        Ok(Report { traces: traces.into_values().collect(), warnings })
    }

    fn packets(&self, target: &Target, objects: &Objects) -> Result<Vec<(IpAddr, NonZeroU16, Protocol)>, TraceError> {
        let protocol = self.protocol.map(|protocol| match protocol {
            ProtocolArg::Tcp => Protocol::Tcp,
            ProtocolArg::Udp => Protocol::Udp,
            ProtocolArg::Sctp => Protocol::Sctp,
        });
        match target {
            Target::Address(address, port) => Ok(vec![(*address, *port, protocol.unwrap_or(Protocol::Tcp))]),
            Target::Service(key, port) => {
                let service = objects.services.iter().find(|service| service.key == *key);
                let service = service.ok_or_else(|| TraceError::NoService(key.clone()))?;
                let mut packets = addresses_of(service, port.as_deref(), protocol);
                packets.retain(|(address, ..)| Family::of(*address) == Family::of(self.from));
                if packets.is_empty() {
                    let reason =
                        not_proxied(&service.clone().into()).map(|reason| format!(": {reason}")).unwrap_or_default();
                    return Err(TraceError::NoAddress(key.clone(), Family::of(self.from), reason));
                }
                Ok(packets)
            }
        }
    }
}

fn idle_note(node: &Node, mode: &str) -> String {
    let name = &node.name;
    format!(
        "the agent of {name} does not forward (datapath {mode}): this is what it would do; another service proxy may differ"
    )
}

/// The worst of all.
fn exit_code(report: &Report) -> ExitCode {
    let code = |outcome: Outcome| match outcome {
        Outcome::Forwarded => 0,
        Outcome::Dropped | Outcome::Rejected => 3,
        Outcome::NotServed => 4,
    };
    // Where a packet goes on to another node, that one decides.
    let last = report.traces.iter().filter(|traced| traced.goes_on_to.is_none());
    ExitCode::from(last.map(|traced| code(traced.outcome)).max().unwrap_or_default())
}
