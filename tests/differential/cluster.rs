//! The objects in the API server: what should be there is compared with what was put there, and the difference is written.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use steelyard_lab::api_server::ApiServer;

use crate::proxies::NODE;

/// Requests at a time.
const AT_ONCE: usize = 16;
/// The ServiceCIDR that the API server makes itself.
const OWN_CIDR: &str = "kubernetes";

/// Namespace and name.
pub type Key = (String, String);

/// What should be in the API server beside what the runner needs itself.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub services: BTreeMap<Key, Service>,
    pub slices: BTreeMap<Key, EndpointSlice>,
}

/// What is in the API server, as it shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub node: Node,
    pub services: Vec<Service>,
    pub slices: Vec<EndpointSlice>,
    pub service_cidrs: Vec<ServiceCIDR>,
}

/// The API server and what was written to it.
pub struct Cluster {
    pub server: ApiServer,
    written: Objects,
    namespaces: Vec<String>,
    /// The runner's own objects as they were last written, and the port in them.
    mark_objects: Objects,
    pub marks: u16,
}

type Refusals = BTreeMap<Key, String>;
type Work = BoxFuture<'static, (Key, Result<(), String>)>;

impl Cluster {
    pub fn new(server: ApiServer) -> Self {
        Self {
            server,
            written: Objects::default(),
            namespaces: vec!["default".to_owned()],
            mark_objects: Objects::default(),
            marks: 0,
        }
    }

    /// What was written last, but for what was refused.
    pub const fn written(&self) -> &Objects {
        &self.written
    }

    /// Runs requests, many at a time.
    fn all(&self, work: Vec<Work>) -> Result<Refusals, String> {
        let results = self.block_on(async move {
            futures::stream::iter(work).buffer_unordered(AT_ONCE).collect::<Vec<(Key, Result<(), String>)>>().await
        })?;
        Ok(results.into_iter().filter_map(|(key, result)| Some((key, result.err()?))).collect())
    }

    fn block_on<F>(&self, future: F) -> Result<F::Output, String>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let api = self.server.api().map_err(|error| format!("{error:#}"))?;
        api.block_on(future).map_err(|error| format!("{error:#}"))
    }

    fn client(&self) -> Result<Client, String> {
        Ok(self.server.api().map_err(|error| format!("{error:#}"))?.client())
    }

    /// Makes the node what it should be.
    pub fn set_node(&self, addresses: &[String], zone: Option<&str>) -> Result<(), String> {
        let nodes: Api<Node> = Api::all(self.client()?);
        let addresses: Vec<_> =
            addresses.iter().map(|address| json!({ "type": "InternalIP", "address": address })).collect();
        let labels = json!({ "topology.kubernetes.io/zone": zone });
        self.block_on(async move {
            let made = serde_json::from_value(json!({ "metadata": { "name": NODE } })).map_err(|e| e.to_string())?;
            match nodes.create(&PostParams::default(), &made).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.to_string()),
            }
            let labels = json!({ "metadata": { "labels": labels } });
            let status = json!({ "status": { "addresses": addresses } });
            let parameters = PatchParams::default();
            nodes.patch_status(NODE, &parameters, &Patch::Merge(status)).await.map_err(|e| e.to_string())?;
            nodes.patch(NODE, &parameters, &Patch::Merge(labels)).await.map_err(|e| e.to_string())?;
            Ok(())
        })?
    }

    /// Makes the ranges of cluster IPs these and the API server's own. Nobody else makes them ready here.
    pub fn set_service_cidrs(&self, wanted: &[Vec<String>]) -> Result<(), String> {
        let cidrs: Api<ServiceCIDR> = Api::all(self.client()?);
        let wanted = wanted.to_vec();
        self.block_on(async move {
            let text = |error: kube::Error| error.to_string();
            let listed = cidrs.list(&ListParams::default()).await.map_err(text)?;
            for old in listed {
                let name = old.metadata.name.unwrap_or_default();
                if name != OWN_CIDR {
                    cidrs.delete(&name, &DeleteParams::default()).await.map_err(text)?;
                }
            }
            for (number, ranges) in wanted.iter().enumerate() {
                let name = format!("range-{number}");
                let made = json!({ "metadata": { "name": name }, "spec": { "cidrs": ranges } });
                let made = serde_json::from_value(made).map_err(|error| error.to_string())?;
                cidrs.create(&PostParams::default(), &made).await.map_err(text)?;
                let condition = json!({
                    "type": "Ready", "status": "True", "reason": "Test", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                });
                let status = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
                cidrs.patch_status(&name, &PatchParams::default(), &status).await.map_err(text)?;
            }
            Ok::<_, String>(())
        })?
    }

    /// Makes Services and slices these. What the API server refuses is left out and named with the reason.
    pub fn become_these(&mut self, wanted: &Objects) -> Result<Refusals, String> {
        self.make_namespaces(wanted)?;
        let client = self.client()?;
        let Objects { services, slices } = &self.written;
        // A cluster IP does not change, and a NodePort of another Service is free only once that has given it up: then the
        // Service is made anew, after all others.
        let holders = node_ports(&self.written);
        let is_taken = |key: &Key, service: &Service| {
            node_ports_of(service).any(|port| holders.get(&port).is_some_and(|holder| holder != key))
        };
        let late: BTreeSet<Key> = wanted
            .services
            .iter()
            .filter(|(key, service)| services.get(*key) != Some(*service) && is_taken(key, service))
            .map(|(key, _)| key.clone())
            .collect();
        let remade = |key: &Key| match (services.get(key), wanted.services.get(key)) {
            (Some(old), Some(new)) => identity(old) != identity(new) || late.contains(key),
            (_, new) => new.is_none(),
        };
        let mut deletions: Vec<Work> = Vec::new();
        for key in services.keys().filter(|key| remade(key)) {
            deletions.push(delete::<Service>(client.clone(), key.clone()));
        }
        let resliced = |key: &Key| match (slices.get(key), wanted.slices.get(key)) {
            (Some(old), Some(new)) => old.address_type != new.address_type,
            (_, new) => new.is_none(),
        };
        for key in slices.keys().filter(|key| resliced(key)) {
            deletions.push(delete::<EndpointSlice>(client.clone(), key.clone()));
        }
        let refused = self.all(deletions)?;
        if let Some((key, error)) = refused.first_key_value() {
            return Err(format!("failed to delete {}/{}: {error}", key.0, key.1));
        }
        let Objects { services, slices } = &self.written;
        let mut writes: Vec<Work> = Vec::new();
        for (key, slice) in wanted.slices.iter().filter(|(key, slice)| slices.get(*key) != Some(*slice)) {
            let exists = slices.contains_key(key) && !resliced(key);
            writes.push(write_slice(client.clone(), key.clone(), slice.clone(), exists));
        }
        let mut late_writes: Vec<Work> = Vec::new();
        for (key, service) in wanted.services.iter().filter(|(key, service)| services.get(*key) != Some(*service)) {
            let exists = services.contains_key(key) && !remade(key);
            let pass = if late.contains(key) { &mut late_writes } else { &mut writes };
            pass.push(write_service(client.clone(), key.clone(), service.clone(), exists));
        }
        let mut refused = self.all(writes)?;
        refused.extend(self.all(late_writes)?);
        self.written = wanted.clone();
        // What was refused may be there as it was before: forgotten only when it is deleted.
        for key in refused.keys() {
            self.written.services.remove(key);
            self.written.slices.remove(key);
        }
        let leftovers = refused.keys().cloned().flat_map(|key| {
            [delete::<Service>(client.clone(), key.clone()), delete::<EndpointSlice>(client.clone(), key)]
        });
        self.all(leftovers.collect())?;
        Ok(refused)
    }

    /// Writes the runner's own objects, after everything else.
    pub fn write_marks(&mut self, objects: Objects) -> Result<(), String> {
        let client = self.client()?;
        let Objects { services, slices } = &self.mark_objects;
        let slices = objects
            .slices
            .iter()
            .filter(|(key, slice)| slices.get(*key) != Some(*slice))
            .map(|(key, slice)| write_slice(client.clone(), key.clone(), slice.clone(), slices.contains_key(key)));
        let services = objects.services.iter().filter(|(key, service)| services.get(*key) != Some(*service)).map(
            |(key, service)| write_service(client.clone(), key.clone(), service.clone(), services.contains_key(key)),
        );
        let refused = self.all(slices.chain(services).collect())?;
        self.mark_objects = objects;
        refused.first_key_value().map_or(Ok(()), |(key, error)| Err(format!("failed to write {}: {error}", key.1)))
    }

    fn make_namespaces(&mut self, wanted: &Objects) -> Result<(), String> {
        let client = self.client()?;
        let mut missing: Vec<String> =
            wanted.services.keys().chain(wanted.slices.keys()).map(|(namespace, _)| namespace.clone()).collect();
        missing.sort();
        missing.dedup();
        missing.retain(|name| !self.namespaces.contains(name));
        for name in missing {
            let namespaces: Api<Namespace> = Api::all(client.clone());
            let made = serde_json::from_value(json!({ "metadata": { "name": name } })).map_err(|e| e.to_string())?;
            self.block_on(async move { namespaces.create(&PostParams::default(), &made).await })?
                .map_err(|error| error.to_string())?;
            self.namespaces.push(name);
        }
        Ok(())
    }

    /// Everything that both proxies see.
    pub fn list(&self) -> Result<Listed, String> {
        let client = self.client()?;
        self.block_on(async move {
            let everything = ListParams::default();
            let text = |error: kube::Error| error.to_string();
            Ok(Listed {
                node: Api::<Node>::all(client.clone()).get(NODE).await.map_err(text)?,
                services: Api::<Service>::all(client.clone()).list(&everything).await.map_err(text)?.items,
                slices: Api::<EndpointSlice>::all(client.clone()).list(&everything).await.map_err(text)?.items,
                service_cidrs: Api::<ServiceCIDR>::all(client).list(&everything).await.map_err(text)?.items,
            })
        })?
    }
}

/// Who has which NodePort: a number is one Service's, for whatever protocols.
fn node_ports(objects: &Objects) -> BTreeMap<i32, Key> {
    let all = objects.services.iter();
    all.flat_map(|(key, service)| node_ports_of(service).map(|port| (port, key.clone()))).collect()
}

fn node_ports_of(service: &Service) -> impl Iterator<Item = i32> + '_ {
    service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).filter_map(|port| port.node_port)
}

/// What makes a Service another one.
fn identity(service: &Service) -> (bool, Option<&Vec<String>>) {
    let spec = service.spec.as_ref();
    let is_alias = spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    (is_alias, spec.and_then(|spec| spec.cluster_ips.as_ref()))
}

fn delete<K>(client: Client, key: Key) -> Work
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    Box::pin(async move {
        let api: Api<K> = Api::namespaced(client, &key.0);
        let result = match api.delete(&key.1, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        (key, result)
    })
}

fn write_slice(client: Client, key: Key, slice: EndpointSlice, exists: bool) -> Work {
    Box::pin(async move {
        let api: Api<EndpointSlice> = Api::namespaced(client, &key.0);
        let parameters = PostParams::default();
        let written = match exists {
            true => api.replace(&key.1, &parameters, &slice).await,
            false => api.create(&parameters, &slice).await,
        };
        (key, written.map(drop).map_err(|error| reason_of(&error)))
    })
}

fn write_service(client: Client, key: Key, service: Service, exists: bool) -> Work {
    Box::pin(async move {
        let api: Api<Service> = Api::namespaced(client, &key.0);
        let parameters = PostParams::default();
        let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        let written = match exists {
            true => api.replace(&key.1, &parameters, &service).await,
            false => api.create(&parameters, &service).await,
        };
        let result = match written {
            Ok(_) => api.patch_status(&key.1, &PatchParams::default(), &Patch::Merge(status)).await.map(drop),
            Err(error) => Err(error),
        };
        (key, result.map_err(|error| reason_of(&error)))
    })
}

fn reason_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
