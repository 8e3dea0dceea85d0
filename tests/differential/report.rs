//! What a person needs who is to find out why two kernels differ.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde::Serialize;
use steelyard::datapath::service::ForwardedService;
use steelyard::names::ServiceKey;

use crate::arena::Arena;
use crate::cluster::{Key, Listed, Objects};
use crate::judge::{Case, show};
use crate::stage::namespace::run_program;

/// Lines of a ruleset that are shown.
const MOST_LINES: usize = 60;

/// The Services that have to do with a packet.
pub fn concerned(case: &Case<'_>) -> BTreeSet<ServiceKey> {
    let is_address = |service: &&ForwardedService| {
        service.cluster_ips.contains(&case.packet.destination)
            || service.external_ips.contains(&case.packet.destination)
            || service.ingress.iter().any(|ingress| ingress.address == case.packet.destination)
            || service.ports.iter().any(|port| port.node_port == Some(case.packet.port))
    };
    let mut keys: BTreeSet<ServiceKey> =
        case.views.ours.index.services().filter(is_address).map(|service| service.key.clone()).collect();
    keys.extend(case.dialled().map(|(_, entry)| entry.port.service.clone()));
    keys
}

/// The objects of these Services.
pub fn only(objects: &Objects, keys: &BTreeSet<ServiceKey>) -> Objects {
    let is_kept = |namespace: &str, name: &str| keys.contains(&ServiceKey::new(namespace, name));
    let services = objects.services.iter().filter(|((namespace, name), _)| is_kept(namespace, name));
    let slices = objects.slices.iter().filter(|((namespace, _), slice)| {
        let labels = slice.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get("kubernetes.io/service-name")).is_some_and(|name| is_kept(namespace, name))
    });
    Objects {
        services: services.map(|(key, it)| (key.clone(), it.clone())).collect(),
        slices: slices.map(|(key, it)| (key.clone(), it.clone())).collect(),
    }
}

/// Everything about a difference.
pub fn tell(reason: &str, case: &Case<'_>, arena: &Arena, listed: &Listed) -> String {
    let mut out = String::new();
    let keys = concerned(case);
    let packet = case.packet;
    writeln!(out, "{reason}").unwrap();
    writeln!(out, "  packet: {} -> {} port {}/{}", packet.source, packet.destination, packet.port, packet.protocol)
        .unwrap();
    writeln!(out, "  node: {}", arena.site.flags).unwrap();
    writeln!(out, "  simulate: {}", case.simulated).unwrap();
    writeln!(out, "  steelyard: {}", show(&case.ours)).unwrap();
    writeln!(out, "  kube-proxy: {}", show(&case.theirs)).unwrap();
    for step in &case.trace.steps {
        writeln!(out, "  step: {step:?}").unwrap();
    }
    let is_concerned = |namespace: &Option<String>, name: &Option<String>| {
        keys.contains(&ServiceKey::new(namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default()))
    };
    for service in &listed.services {
        if is_concerned(&service.metadata.namespace, &service.metadata.name) {
            let mut service = service.clone();
            service.metadata.managed_fields = None;
            writeln!(out, "---\n{}", yaml("Service", &service)).unwrap();
        }
    }
    for slice in &listed.slices {
        let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name")).cloned();
        if is_concerned(&slice.metadata.namespace, &name) {
            let mut slice = slice.clone();
            slice.metadata.managed_fields = None;
            writeln!(out, "---\n{}", yaml("EndpointSlice", &slice)).unwrap();
        }
    }
    let words: Vec<String> = keys.iter().map(ToString::to_string).chain([packet.destination.to_string()]).collect();
    let family = if packet.destination.is_ipv4() { "ip" } else { "ip6" };
    writeln!(out, "--- kube-proxy's rules\n{}", excerpt(arena.theirs.in_node(|| list(family, "kube-proxy")), &words))
        .unwrap();
    writeln!(out, "--- our rules\n{}", excerpt(arena.ours.in_node(|| list(family, "steelyard")), &words)).unwrap();
    out
}

fn list(family: &str, table: &str) -> String {
    run_program("nft", &["list", "table", family, table], "").unwrap_or_else(|error| error)
}

/// Lines that name one of these, and whole chains whose name does.
fn excerpt(listing: String, words: &[String]) -> String {
    let has_word = |line: &str| words.iter().any(|word| line.contains(word.as_str()));
    let mut shown = Vec::new();
    let mut is_inside = false;
    for line in listing.lines() {
        if line.starts_with("\tchain ") {
            is_inside = has_word(line);
        }
        if is_inside || has_word(line) {
            shown.push(line);
        }
    }
    shown.truncate(MOST_LINES);
    shown.join("\n")
}

fn yaml(kind: &str, object: &impl Serialize) -> String {
    serde_saphyr::to_string(object).unwrap_or_else(|error| format!("{kind} cannot be written: {error}"))
}

/// A key as text.
pub fn name_of(key: &Key) -> String {
    format!("{}/{}", key.0, key.1)
}
