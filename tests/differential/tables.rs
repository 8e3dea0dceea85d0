//! The scenarios of the fact tables as API objects, in their own family and in the other one.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use serde_json::Value;
use steelyard::datapath::settings::DetectLocal;
use steelyard::datapath::simulate::Packet;
use steelyard::model::address::{parse_address, parse_prefix};

use crate::arena::Site;
use crate::cluster::Objects;
use crate::flows::form::Scenario;
use crate::flows::objects;
use crate::flows::world::World;
use crate::flows::{CaseFile, family, title_of};
use crate::proxies::{Flags, NODE};
use crate::stage::Surroundings;

/// What the API server has anyway.
const OWN_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// One scenario.
pub struct Staged {
    pub title: String,
    pub site: Site,
    pub zone: Option<String>,
    pub objects: Objects,
    pub flows: Vec<(String, Packet)>,
}

/// All scenarios, those that need the same site one after another.
pub fn scenarios() -> Result<Vec<Staged>, String> {
    let file = CaseFile::load()?;
    if let Some(problem) = file.problems.first() {
        return Err(problem.clone());
    }
    let own = Value::Array(file.scenarios);
    // All at once, so that an address becomes the same one in each and they can share a site.
    let other = family::mapped_to_other_family(&own)?;
    let mut staged = Vec::new();
    for (suffix, cases) in [("", own), (" [other family]", other)] {
        for case in cases.as_array().into_iter().flatten() {
            let title = format!("{}{suffix}", title_of(case));
            staged.push(stage(&title, case).map_err(|error| format!("{title}: {error}"))?);
        }
    }
    let mut sites: Vec<(Site, Vec<Staged>)> = Vec::new();
    for one in staged {
        match sites.iter_mut().find(|(site, _)| is_same(site, &one.site)) {
            Some((site, group)) => {
                site.surroundings.pod_prefixes.extend(one.site.surroundings.pod_prefixes.iter().copied());
                group.push(one);
            }
            None => sites.push((one.site.clone(), vec![one])),
        }
    }
    let share = |(site, group): (Site, Vec<Staged>)| {
        group.into_iter().map(move |one| Staged { site: site.clone(), ..one }).collect::<Vec<_>>()
    };
    Ok(sites.into_iter().flat_map(share).collect())
}

/// Equal but for what is reached by the link of the pods.
fn is_same(one: &Site, other: &Site) -> bool {
    let pod_prefixes = BTreeSet::new();
    let bare = |site: &Site| {
        let surroundings = Surroundings { pod_prefixes: pod_prefixes.clone(), local: site.surroundings.local.clone() };
        Site { surroundings, ..site.clone() }
    };
    bare(one) == bare(other)
}

fn stage(title: &str, case: &Value) -> Result<Staged, String> {
    let scenario = Scenario::read(case)?;
    if scenario.node.name != NODE {
        return Err(format!("the node is called {:?}", scenario.node.name));
    }
    let world = World::of(&scenario)?;
    let made = objects::Objects::of(&scenario)?;
    let key = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
    };
    let mut objects = Objects::default();
    for mut service in made.services {
        complete(&mut service);
        objects.services.insert(key(&service.metadata), service);
    }
    objects.slices = made.slices.into_iter().map(|slice| (key(&slice.metadata), slice)).collect();
    let cluster_cidrs: Vec<IpNet> = match &world.settings.detect_local {
        DetectLocal::Prefixes(prefixes) => prefixes.clone(),
        DetectLocal::NodePrefixes | DetectLocal::Off => Vec::new(),
    };
    let flags = Flags {
        cluster_cidrs,
        masquerade_all: world.settings.masquerade_all,
        node_port_addresses: scenario.node.nodeport_addresses.clone().unwrap_or_default(),
    };
    let mut flows = Vec::new();
    for (name, flow) in &scenario.flows {
        flows.push((name.clone(), flow.clone()?.packet));
    }
    Ok(Staged {
        title: title.to_owned(),
        site: Site {
            flags,
            node_addresses: scenario.node.primary_ips.clone().unwrap_or_default(),
            surroundings: Surroundings::of(&scenario, &world),
            service_cidrs: service_cidrs(&scenario),
        },
        zone: scenario.node.zone.clone(),
        objects,
        flows,
    })
}

/// The ranges of the scenario, and one for each cluster IP beside them: the API server gives no other.
fn service_cidrs(scenario: &Scenario) -> Vec<Vec<String>> {
    let ranges = scenario.node.service_cidrs.iter().flatten().filter_map(|text| parse_prefix(text));
    let mut ranges: Vec<IpNet> = ranges.collect();
    let own = OWN_RANGES.map(|text| text.parse::<IpNet>().unwrap());
    let services = scenario.services.iter();
    for text in services.flat_map(|form| form.cluster_ips.iter().flatten().chain(&form.cluster_ip)) {
        let Some(address) = parse_address(text) else { continue };
        if !ranges.iter().chain(&own).any(|range| range.contains(&address)) {
            let length = if address.is_ipv4() { 28 } else { 124 };
            ranges.extend(IpNet::new(address, length).map(|range| range.trunc()));
        }
    }
    ranges.iter().map(|range| vec![range.to_string()]).collect()
}

/// What the API server insists on and tables leave out.
fn complete(service: &mut Service) {
    let Some(spec) = &mut service.spec else { return };
    let has_two = spec.cluster_ips.as_ref().is_some_and(|list| list.len() > 1);
    spec.ip_family_policy = has_two.then(|| "RequireDualStack".to_owned());
    if spec.type_.as_deref() == Some("LoadBalancer") {
        spec.allocate_load_balancer_node_ports = Some(false);
    }
    if spec.cluster_ips.as_ref().is_some_and(Vec::is_empty) {
        spec.cluster_ips = None;
    }
    for port in spec.ports.iter_mut().flatten() {
        if port.protocol.is_none() {
            port.protocol = Some("TCP".to_owned());
        }
    }
    service.metadata.creation_timestamp = None;
}
