//! Which Services have a health check on this node, and what it says: a pure function of a Service, its slices and the
//! node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Serialize;

use crate::datapath::service::ForwardedService;
use crate::model::Family;
use crate::model::endpoints::EndpointSlice;
use crate::model::service::{ServiceType, TrafficPolicy};
use crate::names::{NodeName, ServiceKey};
use crate::runtime::http::Answer;

/// What share of the traffic a node wants, as some load balancers read it.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// A Service's health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// `spec.healthCheckNodePort`.
    pub port: NonZeroU16,
    /// How many endpoints this node has.
    pub endpoints: LocalEndpoints,
}

/// How many ready endpoints a Service has on this node: addresses, however many ports each has. Endpoints that terminate are
/// not ready, though the datapath may still use them: the load balancer shall go elsewhere while what it had sent still
/// arrives (KEP-1669).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalEndpoints {
    /// IPv4 endpoints; none at all where the Service has no IPv4.
    pub v4: Option<usize>,
    /// IPv6 endpoints; none at all where the Service has no IPv6.
    pub v6: Option<usize>,
}

impl LocalEndpoints {
    /// What a check is told that came in by one family: the endpoints of that family, or those of the Service's only family.
    /// A load balancer may look at a node by either of its addresses, whichever family it balances.
    pub fn seen_by(&self, family: Family) -> usize {
        let (same, other) = match family {
            Family::V4 => (self.v4, self.v6),
            Family::V6 => (self.v6, self.v4),
        };
        same.or(other).unwrap_or_default()
    }
}

/// The health check of a Service, if it has one.
pub fn check_of<'a>(
    service: &ForwardedService,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeName,
) -> Option<Check> {
    let is_checked = service.is_proxied
        && service.service_type == ServiceType::LoadBalancer
        && service.external_policy == TrafficPolicy::Local;
    let port = service.health_check_node_port.filter(|_| is_checked)?;
    let count = |family| {
        service.cluster_ip(family)?;
        let slices = slices.clone().filter(|slice| slice.family == family);
        let endpoints = slices
            .flat_map(|slice| service.ports.iter().flat_map(|port| slice.endpoints_of(&port.name, port.protocol)))
            .filter(|endpoint| endpoint.conditions.is_ready && endpoint.node.as_ref() == Some(node));
        Some(endpoints.map(|endpoint| endpoint.address.ip()).collect::<BTreeSet<IpAddr>>().len())
    };
    Some(Check { port, endpoints: LocalEndpoints { v4: count(Family::V4), v6: count(Family::V6) } })
}

#[derive(Serialize)]
struct Body<'a> {
    service: Named<'a>,
    #[serde(rename = "localEndpoints")]
    local_endpoints: usize,
    #[serde(rename = "serviceProxyHealthy")]
    is_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// What a health check of a Service is told: traffic is welcome where there are endpoints and a datapath that keeps up.
pub fn answer(service: &ServiceKey, local_endpoints: usize, is_proxy_healthy: bool) -> Answer {
    let status = Answer::status_of(local_endpoints > 0 && is_proxy_healthy);
    let service = Named { namespace: &service.namespace, name: &service.name };
    let mut answer = Answer::json(status, &Body { service, local_endpoints, is_proxy_healthy });
    answer.headers.push((WEIGHT, local_endpoints.to_string()));
    answer
}

#[cfg(test)]
mod tests;
