//! What a trace found, as data: the JSON output, from which the text is made.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Serialize;

use super::objects::Objects;
use crate::datapath::desired::{Desired, FrontendKey};
use crate::datapath::endpoints::{self, account};
use crate::datapath::entry::{EntryKey, Frontend, Treatment};
use crate::datapath::index::Index;
use crate::datapath::settings::Settings;
use crate::datapath::simulate::{Packet, Place, Step, Verdict, nearby, simulate};
use crate::model::node::Node;
use crate::model::service::TrafficPolicy;

/// All packets that were followed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// One for each packet and node.
    pub(super) traces: Vec<Traced>,
    /// What could not be taken into account.
    pub(super) warnings: Vec<String>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    /// It goes to an endpoint.
    Forwarded,
    /// It is gone without a word.
    Dropped,
    /// It is gone, and its sender is told.
    Rejected,
    /// It is none of ours.
    NotServed,
}

/// One packet on one node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Traced {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: String,
    pub(super) node: String,
    pub(super) node_reason: String,
    pub(super) outcome: Outcome,
    /// The node that has the destination, and whose rules come next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) goes_on_to: Option<String>,
    /// `namespace/name`, if a Service has the address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
    /// Every rule that applied, in order.
    pub(super) steps: Vec<Applied>,
    /// Every endpoint of the Service port.
    pub(super) endpoints: Vec<Considered>,
    /// What else may explain it.
    pub(super) notes: Vec<String>,
}

/// A rule that applied.
#[derive(Debug, Serialize)]
pub(super) struct Applied {
    pub(super) rule: &'static str,
    pub(super) text: String,
}

/// An endpoint that was considered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Considered {
    pub(super) address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    pub(super) is_used: bool,
    /// Whether the source becomes the node's address on the way there.
    pub(super) is_masqueraded: bool,
    pub(super) standing: String,
}

/// What one node knows: the same that its agent works out.
pub(super) struct View<'a> {
    node: &'a Node,
    index: Index,
    desired: Desired,
    local_addresses: BTreeSet<IpAddr>,
}

impl<'a> View<'a> {
    pub(super) fn new(
        objects: &Objects,
        node: &'a Node,
        settings: &Settings,
        more_addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let loopback: [IpAddr; 2] = [std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()];
        let local_addresses: BTreeSet<IpAddr> =
            node.addresses.iter().copied().chain(loopback).chain(more_addresses).collect();
        let mut index = Index::default();
        index.replace_services(objects.services.iter().cloned());
        index.replace_slices(objects.slices.iter().cloned());
        for peer in objects.nodes.iter().filter(|peer| peer.name != node.name) {
            index.apply_peer(peer.name.clone(), peer.addresses.clone());
        }
        index.apply_node(node.clone());
        index.set_local_addresses(local_addresses.clone());
        index.set_service_cidrs(objects.service_cidrs.iter().copied());
        let desired = Desired::from_index(&index, settings);
        Self { node, index, desired, local_addresses }
    }

    /// Follows a packet and gives account of everything on its way.
    pub(super) fn trace(&self, packet: Packet, node_reason: String) -> Traced {
        let place = Place::new(&self.desired, &self.local_addresses);
        let trace = simulate(place, packet);
        let frontend = trace.steps.iter().find_map(|step| match step {
            Step::Frontend { frontend, entry, treatment } => Some((*frontend, entry.clone(), *treatment)),
            Step::NodePortElsewhere { .. }
            | Step::UnlistedPort { .. }
            | Step::NoSuchClusterIp { .. }
            | Step::JustReleased { .. }
            | Step::NotOurs
            | Step::Admitted { .. }
            | Step::NotAdmitted { .. }
            | Step::PodShortCircuit { .. }
            | Step::NodeShortCircuit { .. }
            | Step::Affinity { .. }
            | Step::Remembered { .. }
            | Step::Endpoints { .. }
            | Step::NoneHere { .. }
            | Step::NoneAnywhere
            | Step::Masquerade { .. }
            | Step::SourceKept { .. }
            | Step::Hairpin { .. } => None,
        });
        let (endpoints, notes) = match &frontend {
            Some((frontend, entry, treatment)) => {
                let policy = policy_of(&trace.steps, *treatment);
                // Who is not admitted never comes to them.
                let is_admitted = !trace.steps.iter().any(|step| matches!(step, Step::NotAdmitted { .. }));
                let endpoints = self.endpoints(entry, policy, &trace.verdict);
                (if is_admitted { endpoints } else { Vec::new() }, self.notes_on(*frontend, entry))
            }
            None => {
                let near = nearby(&self.index, place, packet);
                (Vec::new(), near.iter().map(ToString::to_string).collect())
            }
        };
        Traced {
            source: packet.source,
            destination: packet.destination,
            port: packet.port.get(),
            protocol: packet.protocol.to_string(),
            node: self.node.name.to_string(),
            node_reason,
            outcome: match trace.verdict {
                Verdict::Dnat { .. } => Outcome::Forwarded,
                Verdict::Drop => Outcome::Dropped,
                Verdict::Reject => Outcome::Rejected,
                Verdict::Passthrough => Outcome::NotServed,
            },
            service: frontend.map(|(_, entry, _)| entry.port.service.to_string()),
            goes_on_to: None,
            steps: trace
                .steps
                .iter()
                .map(|step| Applied { rule: step.rule(), text: format!("{step}{}", self.kind_of(step)) })
                .collect(),
            endpoints,
            notes,
        }
    }

    /// Every endpoint, and what becomes of it.
    fn endpoints(&self, entry: &EntryKey, policy: TrafficPolicy, verdict: &Verdict) -> Vec<Considered> {
        let slices = self.index.slices_of(&entry.port.service).filter(|slice| slice.family == entry.family);
        let endpoints = slices.flat_map(|slice| slice.endpoints_of(&entry.port.port, entry.port.protocol));
        let place = endpoints::Place { node: &self.node.name, zone: self.node.zone.as_ref() };
        account(endpoints, place, policy)
            .into_iter()
            .map(|(address, (node, standing))| Considered {
                address: address.to_string(),
                node: node.map(|node| node.to_string()),
                is_used: standing.is_used(),
                is_masqueraded: match verdict {
                    Verdict::Dnat { masquerade, masquerade_when, .. } => {
                        standing.is_used() && (*masquerade || masquerade_when.contains(&address))
                    }
                    Verdict::Drop | Verdict::Reject | Verdict::Passthrough => false,
                },
                standing: standing.to_string(),
            })
            .collect()
    }

    /// Which of a Service's addresses a frontend is.
    fn kind_of(&self, step: &Step) -> &'static str {
        let Step::Frontend { frontend, entry, .. } = step else { return "" };
        let Frontend::Address(address) = frontend else { return "" };
        let Some(service) = self.index.service(&entry.port.service) else { return "" };
        if service.cluster_ips.contains(&address.ip()) {
            " (its cluster IP)"
        } else if service.virtual_addresses().any(|known| known == address.ip()) {
            " (its load-balancer address)"
        } else {
            " (its external IP)"
        }
    }

    /// Who else wanted the frontend, and what of the Service could not be read.
    fn notes_on(&self, frontend: Frontend, entry: &EntryKey) -> Vec<String> {
        let key = FrontendKey { family: entry.family, protocol: entry.port.protocol, frontend };
        let conflicts = self.desired.conflicts().filter(|conflict| conflict.frontend == key);
        let mut notes: Vec<String> = conflicts
            .map(|conflict| format!("service {} wants this too and goes without", conflict.loser.port))
            .collect();
        let service = self.index.service(&entry.port.service);
        let ignored = service.into_iter().flat_map(|service| &service.ignored);
        notes.extend(ignored.map(|ignored| {
            format!(
                "{} of the service has {:?}, which {} and is left out",
                ignored.field, ignored.value, ignored.reason
            )
        }));
        notes
    }
}

/// The policy whose endpoints counted: clients inside get those of `Cluster`.
fn policy_of(steps: &[Step], treatment: Treatment) -> TrafficPolicy {
    let is_inside =
        steps.iter().any(|step| matches!(step, Step::PodShortCircuit { .. } | Step::NodeShortCircuit { .. }));
    match treatment {
        _ if is_inside => TrafficPolicy::Cluster,
        Treatment::Internal(policy) | Treatment::External { policy, .. } => policy,
    }
}
