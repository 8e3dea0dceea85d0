//! What the datapath has seen of the cluster and of this machine, and which Services that touched since the last turn.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::service::ForwardedService;
use crate::model::endpoints::{EndpointSlice, SliceKey};
use crate::model::flat::{fill, pack};
use crate::model::node::Node;
use crate::names::{NodeName, ServiceKey, Texts};

/// What a turn has to look at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services of which anything changed: themselves, their endpoints, or where this node stands to them.
    pub services: BTreeSet<ServiceKey>,
    /// Whether what holds for all Services may have changed: this node, its addresses, the ranges of cluster IPs.
    pub is_node_changed: bool,
}

impl Changes {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.is_node_changed
    }
}

/// What has been seen. A burst of changes to one Service is one change; what does not change anything is none.
#[derive(Debug, Default)]
pub struct Index {
    services: BTreeMap<ServiceKey, Box<ForwardedService>>,
    /// In the order of their names. Nearly always one or two, so no tree for each Service.
    slices: BTreeMap<ServiceKey, Vec<EndpointSlice>>,
    service_of_slice: BTreeMap<SliceKey, ServiceKey>,
    node: Option<Node>,
    /// The addresses of the other nodes.
    peers: BTreeMap<NodeName, Vec<IpAddr>>,
    local_addresses: BTreeSet<IpAddr>,
    service_cidrs: BTreeSet<IpNet>,
    changes: Changes,
    left: BTreeSet<(ServiceKey, IpAddr)>,
    /// Names of namespaces, nodes and ports.
    texts: Texts,
}

impl Index {
    /// A Service by key.
    pub fn service(&self, key: &ServiceKey) -> Option<&ForwardedService> {
        self.services.get(key).map(|service| &**service)
    }

    /// All Services.
    pub fn services(&self) -> impl Iterator<Item = &ForwardedService> + '_ {
        self.services.values().map(|service| &**service)
    }

    /// The slices of a Service in the order of their names.
    pub fn slices_of(&self, service: &ServiceKey) -> impl Iterator<Item = &EndpointSlice> + Clone + '_ {
        self.slices.get(service).into_iter().flatten()
    }

    /// This node, once it has been seen.
    pub const fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The addresses of all nodes, as their objects have them.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.node.iter().map(|node| &node.addresses).chain(self.peers.values()).flatten().copied()
    }

    /// Every address of this machine's interfaces.
    pub const fn local_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.local_addresses
    }

    /// The ranges that cluster IPs come from.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.service_cidrs.iter().copied()
    }

    /// What changed since this was last asked.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Endpoints that left a slice since this was last asked; they may be in another, or be back.
    pub fn take_left(&mut self) -> BTreeSet<(ServiceKey, IpAddr)> {
        std::mem::take(&mut self.left)
    }

    /// Every slice.
    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> + '_ {
        self.slices.values().flatten()
    }

    /// Everything, as if all of it had just been seen: for a resync.
    pub fn everything(&self) -> Changes {
        Changes { services: self.services.keys().cloned().collect(), is_node_changed: true }
    }

    /// Sees a Service that is new or changed.
    pub fn apply_service(&mut self, service: impl Into<ForwardedService>) {
        if let Some((key, service)) = self.new_service(service.into()) {
            self.changes.services.insert(key.clone());
            self.services.insert(key, service);
        }
    }

    /// A Service as it is to be remembered, if it is not that already.
    fn new_service(&mut self, mut service: ForwardedService) -> Option<(ServiceKey, Box<ForwardedService>)> {
        if self.service(&service.key) == Some(&service) {
            return None;
        }
        self.texts.share(&mut service.key.namespace);
        service.ports.iter_mut().for_each(|port| port.name.share(&mut self.texts));
        Some((service.key.clone(), Box::new(service)))
    }

    /// Sees that a Service is gone.
    pub fn remove_service(&mut self, key: &ServiceKey) {
        if self.services.remove(key).is_some() {
            self.changes.services.insert(key.clone());
        }
    }

    /// Sees a whole list of Services: those that are not in it are gone.
    pub fn replace_services(&mut self, services: impl IntoIterator<Item = impl Into<ForwardedService>>) {
        let mut gone: BTreeSet<ServiceKey> = self.services.keys().cloned().collect();
        let mut new = Vec::new();
        for service in services {
            let service = service.into();
            gone.remove(&service.key);
            new.extend(self.new_service(service));
        }
        self.changes.services.extend(new.iter().map(|(key, _)| key.clone()));
        fill(&mut self.services, new);
        for key in gone {
            self.remove_service(&key);
        }
    }

    /// Sees a slice that is new or changed; it may have moved to another Service.
    pub fn apply_slice(&mut self, mut slice: EndpointSlice) {
        if self.service_of_slice.get(&slice.key).is_some_and(|service| *service != slice.service) {
            self.remove_slice(&slice.key);
        }
        self.share_names(&mut slice);
        let service = slice.service.clone();
        let slices = self.slices.entry(service.clone()).or_default();
        match slices.binary_search_by(|known| known.key.cmp(&slice.key)) {
            Ok(at) => match slices.get_mut(at) {
                Some(known) if *known != slice => {
                    let before = std::mem::replace(known, slice);
                    if before.endpoints != known.endpoints {
                        let stays: BTreeSet<IpAddr> = known.endpoints.iter().map(|endpoint| endpoint.address).collect();
                        let left = addresses_of(&before).filter(|address| !stays.contains(address));
                        self.left.extend(left.map(|address| (service.clone(), address)));
                    }
                }
                Some(_) | None => return,
            },
            Err(at) => {
                self.service_of_slice.insert(slice.key.clone(), service.clone());
                slices.reserve_exact(1);
                slices.insert(at, slice);
            }
        }
        self.changes.services.insert(service);
    }

    /// Holds one copy of the names that many objects have: a node's stands in each of its endpoints.
    fn share_names(&mut self, slice: &mut EndpointSlice) {
        match self.services.get_key_value(&slice.service) {
            Some((service, _)) => slice.service.clone_from(service),
            None => self.texts.share(&mut slice.service.namespace),
        }
        slice.key.namespace.clone_from(&slice.service.namespace);
        for endpoint in &mut slice.endpoints {
            endpoint.node.iter_mut().for_each(|node| node.share(&mut self.texts));
        }
    }

    /// Gives back memory to spare, after everything was seen.
    pub fn pack(&mut self) {
        pack(&mut self.services);
        pack(&mut self.slices);
        pack(&mut self.service_of_slice);
        self.texts.forget_unused();
    }

    /// Sees that a slice is gone, or no longer one that can be used.
    pub fn remove_slice(&mut self, key: &SliceKey) {
        let Some(service) = self.service_of_slice.remove(key) else { return };
        if let Some(slices) = self.slices.get_mut(&service) {
            let left = slices.iter().filter(|slice| slice.key == *key).flat_map(addresses_of);
            self.left.extend(left.map(|address| (service.clone(), address)));
            slices.retain(|slice| slice.key != *key);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.changes.services.insert(service);
    }

    /// Sees a whole list of slices: those that are not in it are gone.
    pub fn replace_slices(&mut self, slices: impl IntoIterator<Item = EndpointSlice>) {
        if self.service_of_slice.is_empty() {
            return self.see_first_slices(slices);
        }
        let mut gone: BTreeSet<SliceKey> = self.service_of_slice.keys().cloned().collect();
        for slice in slices {
            gone.remove(&slice.key);
            self.apply_slice(slice);
        }
        for key in gone {
            self.remove_slice(&key);
        }
    }

    /// As [`Self::replace_slices`] where there is none yet.
    fn see_first_slices(&mut self, slices: impl IntoIterator<Item = EndpointSlice>) {
        let mut slices: Vec<EndpointSlice> = slices.into_iter().collect();
        slices.iter_mut().for_each(|slice| self.share_names(slice));
        // A name stands once in a list.
        slices.sort_by(|one, other| (&one.service, &one.key.name).cmp(&(&other.service, &other.key.name)));
        let services = slices.iter().map(|slice| (slice.key.clone(), slice.service.clone())).collect();
        fill(&mut self.service_of_slice, services);
        let mut of_services: Vec<(ServiceKey, Vec<EndpointSlice>)> = Vec::new();
        for slice in slices {
            match of_services.last_mut() {
                Some((service, slices)) if *service == slice.service => {
                    slices.reserve_exact(1);
                    slices.push(slice);
                }
                Some(_) | None => of_services.push((slice.service.clone(), vec![slice])),
            }
        }
        self.changes.services.extend(of_services.iter().map(|(service, _)| service.clone()));
        fill(&mut self.slices, of_services);
    }

    /// Sees this node. Its name, zone and addresses decide about every Service; the rest only about all of them at once.
    ///
    /// There is no way to see it gone: a datapath whose Node object was deleted forwards on as before.
    pub fn apply_node(&mut self, node: Node) {
        let is_same_place = self.node.as_ref().is_some_and(|known| {
            known.name == node.name && known.zone == node.zone && known.addresses == node.addresses
        });
        if !is_same_place {
            self.changes.services.extend(self.services.keys().cloned());
        }
        let are_same_pods = self.node.as_ref().is_some_and(|known| known.pod_cidrs == node.pod_cidrs);
        self.changes.is_node_changed |= !is_same_place || !are_same_pods;
        self.node = Some(node);
    }

    /// Sees another node.
    pub fn apply_peer(&mut self, name: NodeName, addresses: Vec<IpAddr>) {
        let before = self.peers.insert(name, addresses.clone());
        self.changes.is_node_changed |= before != Some(addresses);
    }

    /// Sees that another node is gone.
    pub fn remove_peer(&mut self, name: &NodeName) {
        self.changes.is_node_changed |= self.peers.remove(name).is_some();
    }

    /// Sees all other nodes: those that are not named are gone.
    pub fn retain_peers(&mut self, names: &BTreeSet<NodeName>) {
        let before = self.peers.len();
        self.peers.retain(|name, _| names.contains(name));
        self.changes.is_node_changed |= self.peers.len() != before;
    }

    /// Sees the addresses of this machine's interfaces.
    pub fn set_local_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.local_addresses != addresses {
            self.local_addresses = addresses;
            self.changes.is_node_changed = true;
        }
    }

    /// Sees the ranges that cluster IPs come from, those of all ServiceCIDR objects together.
    pub fn set_service_cidrs(&mut self, cidrs: impl IntoIterator<Item = IpNet>) {
        let cidrs = cidrs.into_iter().collect();
        if self.service_cidrs != cidrs {
            self.service_cidrs = cidrs;
            self.changes.is_node_changed = true;
        }
    }
}

fn addresses_of(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> + '_ {
    slice.endpoints.iter().map(|endpoint| endpoint.address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::service::Service;
    use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};

    fn service(name: &str, port: u16) -> Service {
        let yaml = format!(
            "metadata: {{name: {name}, namespace: ns}}\nspec: {{clusterIP: 172.30.0.1, ports: [{{port: {port}}}]}}"
        );
        Service::try_from(&serde_saphyr::from_str::<core::Service>(&yaml).unwrap()).unwrap()
    }

    fn slice(name: &str, service: &str) -> EndpointSlice {
        let yaml = format!(
            "metadata: {{name: {name}, namespace: ns, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: IPv4\nendpoints: [{{addresses: [10.0.0.1]}}]\nports: [{{name: '', port: 80}}]"
        );
        EndpointSlice::try_from(&serde_saphyr::from_str::<discovery::EndpointSlice>(&yaml).unwrap()).unwrap()
    }

    fn node(zone: &str) -> Node {
        let yaml = format!("metadata: {{name: n, labels: {{topology.kubernetes.io/zone: {zone}}}}}");
        Node::try_from(&serde_saphyr::from_str::<core::Node>(&yaml).unwrap()).unwrap()
    }

    fn keys(names: &[&str]) -> BTreeSet<ServiceKey> {
        names.iter().map(|name| ServiceKey::new("ns", *name)).collect()
    }

    #[test]
    fn a_burst_is_one_change_and_a_repetition_none() {
        let mut index = Index::default();
        for port in [1, 2, 3] {
            index.apply_service(service("a", port));
            index.apply_slice(slice("x", "a"));
        }
        assert_eq!(index.take_changes().services, keys(&["a"]));
        index.apply_service(service("a", 3));
        index.apply_slice(slice("x", "a"));
        assert!(index.take_changes().is_empty());
    }

    #[test]
    fn a_list_removes_what_it_leaves_out() {
        let mut index = Index::default();
        index.replace_services([service("a", 1), service("b", 1), service("c", 1)]);
        index.replace_slices([slice("x", "a"), slice("y", "b")]);
        index.take_changes();
        index.replace_services([service("b", 1), service("c", 2)]);
        index.replace_slices([slice("x", "a")]);
        assert_eq!(index.take_changes().services, keys(&["a", "b", "c"]));
        assert_eq!(index.services().count(), 2);
        assert_eq!(index.slices_of(&ServiceKey::new("ns", "b")).count(), 0);
    }

    #[test]
    fn a_slice_that_moves_changes_both_services() {
        let mut index = Index::default();
        index.apply_slice(slice("x", "a"));
        index.take_changes();
        index.apply_slice(slice("x", "b"));
        assert_eq!(index.take_changes().services, keys(&["a", "b"]));
        index.remove_slice(&slice("x", "b").key);
        assert_eq!(index.take_changes().services, keys(&["b"]));
        assert!(index.slices.is_empty() && index.service_of_slice.is_empty());
    }

    #[test]
    fn endpoints_that_leave_a_slice_are_told() {
        let mut index = Index::default();
        index.apply_slice(slice("x", "a"));
        index.apply_slice(slice("y", "b"));
        assert!(index.take_left().is_empty());
        let mut shrunk = slice("x", "a");
        shrunk.endpoints = Box::default();
        index.apply_slice(shrunk);
        index.remove_slice(&slice("y", "b").key);
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let expected = ["a", "b"].map(|name| (ServiceKey::new("ns", name), address));
        assert_eq!(index.take_left(), BTreeSet::from(expected));
    }

    #[test]
    fn a_node_that_changes_its_zone_touches_every_service() {
        let mut index = Index::default();
        index.replace_services([service("a", 1), service("b", 1)]);
        index.apply_node(node("z1"));
        index.take_changes();
        index.apply_node(Node { is_ready: true, ..node("z1") });
        assert!(index.take_changes().is_empty());
        index.apply_node(node("z2"));
        let expected = Changes { services: keys(&["a", "b"]), is_node_changed: true };
        assert_eq!(index.take_changes(), expected);
    }

    #[test]
    fn addresses_of_the_machine_touch_no_service() {
        let mut index = Index::default();
        index.apply_service(service("a", 1));
        index.take_changes();
        index.set_local_addresses(BTreeSet::from(["192.0.2.1".parse().unwrap()]));
        index.set_service_cidrs(["172.30.0.0/16".parse().unwrap()]);
        assert_eq!(index.take_changes(), Changes { services: BTreeSet::new(), is_node_changed: true });
    }
}
