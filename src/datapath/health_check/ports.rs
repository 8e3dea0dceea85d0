//! The servers of the health check ports: one socket for each Service and NodePort address, in both families, whichever the
//! Service has, since a load balancer may look at a node by either of its addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::checks::{Check, LocalEndpoints, answer};
use super::proxy::Health;
use crate::datapath::entry::{NodePortAddresses, NodePorts};
use crate::datapath::servers::Complaints;
use crate::model::Family;
use crate::names::ServiceKey;
use crate::runtime::http;
use crate::runtime::listeners::{Listeners, Serve, Wanted};
use crate::runtime::mailbox::Inbox;
use crate::runtime::node_report::Reporter;
use crate::runtime::shutdown::Shutdown;

/// Of a Service without its server, in kube-proxy's word for the event.
const NOT_STARTED: &str = "FailedToStartServiceHealthcheck";

/// What the servers are told.
#[derive(Debug)]
pub struct Inputs {
    /// The health checks that there are, as they come, change and go.
    pub checks: Inbox<ServiceKey, Check>,
    /// Where NodePorts answer.
    pub node_ports: watch::Receiver<NodePorts>,
    /// How the datapath does.
    pub health: Health,
}

/// Serves until shutdown, and tells which Services have no server, and why.
pub async fn run(mut inputs: Inputs, reporter: Reporter, mut shutdown: Shutdown) {
    let complaints = Complaints::new(reporter, NOT_STARTED);
    let mut ports = Ports { health: inputs.health, open: BTreeMap::new(), listeners: Listeners::default(), complaints };
    let mut hosts = hosts_of(&inputs.node_ports.borrow_and_update());
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            checks = inputs.checks.receive() => ports.change(checks, &hosts).await,
            () = ports.listeners.retry_is_due() => ports.listeners.retry(),
            Ok(()) = inputs.node_ports.changed() => {
                hosts = hosts_of(&inputs.node_ports.borrow_and_update());
                ports.move_to(&hosts).await;
            }
        }
        ports.report();
    }
}

/// The addresses to listen at. A family in which NodePorts answer everywhere has its wildcard.
fn hosts_of(node_ports: &NodePorts) -> BTreeSet<IpAddr> {
    let of = |family: Family| match node_ports.of(family) {
        NodePortAddresses::These(addresses) => addresses.clone(),
        NodePortAddresses::All => BTreeSet::from([match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }]),
    };
    Family::ALL.into_iter().flat_map(of).collect()
}

fn sockets_of(hosts: &BTreeSet<IpAddr>, port: NonZeroU16) -> BTreeSet<SocketAddr> {
    hosts.iter().map(|host| SocketAddr::new(*host, port.get())).collect()
}

struct Ports {
    health: Health,
    open: BTreeMap<ServiceKey, Open>,
    listeners: Listeners<ServiceKey, Server>,
    complaints: Complaints,
}

struct Open {
    port: NonZeroU16,
    server: Arc<Server>,
}

impl Ports {
    /// Takes in what changed. Where only a count changed no socket is touched.
    async fn change(&mut self, checks: BTreeMap<ServiceKey, Option<Check>>, hosts: &BTreeSet<IpAddr>) {
        let mut sockets = Vec::new();
        for (service, check) in checks {
            match (check, self.open.get_mut(&service)) {
                (Some(check), Some(open)) => {
                    open.server.set(check.endpoints);
                    if open.port != check.port {
                        open.port = check.port;
                        sockets.push((service, Some(open.wanted(hosts))));
                    }
                }
                (Some(check), None) => {
                    let server = Server {
                        service: service.clone(),
                        endpoints: Mutex::new(check.endpoints),
                        health: self.health.clone(),
                    };
                    let open = Open { port: check.port, server: Arc::new(server) };
                    sockets.push((service.clone(), Some(open.wanted(hosts))));
                    self.open.insert(service, open);
                }
                (None, _) => {
                    self.open.remove(&service);
                    sockets.push((service, None));
                }
            }
        }
        self.listeners.change(sockets).await;
    }

    /// NodePorts answer somewhere else now.
    async fn move_to(&mut self, hosts: &BTreeSet<IpAddr>) {
        let sockets = self.open.iter().map(|(service, open)| (service.clone(), Some(open.wanted(hosts))));
        self.listeners.change(sockets.collect()).await;
    }

    fn report(&mut self) {
        self.complaints.tell(self.listeners.failures().map(|(service, address, error)| {
            (Some(service.clone()), format!("failed to serve the health check node port at {address}: {error}"))
        }));
    }
}

impl Open {
    fn wanted(&self, hosts: &BTreeSet<IpAddr>) -> Wanted<Server> {
        Wanted { addresses: sockets_of(hosts, self.port), server: Arc::clone(&self.server) }
    }
}

/// Answers for one Service, at any path.
struct Server {
    service: ServiceKey,
    endpoints: Mutex<LocalEndpoints>,
    health: Health,
}

impl Server {
    fn set(&self, endpoints: LocalEndpoints) {
        *self.endpoints.lock().unwrap_or_else(PoisonError::into_inner) = endpoints;
    }
}

impl Serve for Server {
    async fn serve(&self, stream: TcpStream) {
        // Gone already.
        let Ok(local) = stream.local_addr() else { return };
        let family = Family::of(local.ip());
        http::serve(stream, |_| {
            let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).seen_by(family);
            answer(&self.service, endpoints, self.health.keeps_up())
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_addresses_have_sockets_of_their_own_and_all_of_a_family_one() {
        let listed = BTreeSet::from(["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()]);
        let node_ports = NodePorts { v4: NodePortAddresses::These(listed), v6: NodePortAddresses::All };
        let sockets = sockets_of(&hosts_of(&node_ports), NonZeroU16::new(32000).unwrap());
        let sockets: Vec<String> = sockets.iter().map(ToString::to_string).collect();
        assert_eq!(sockets, ["192.0.2.1:32000", "192.0.2.2:32000", "[::]:32000"]);
        assert!(hosts_of(&NodePorts::default()).is_empty());
    }
}
