//! Which specs are run where: a full run in parts, each with the cluster that its specs need, and the quick choice.

use super::ginkgo::Selection;
use crate::layout::Member;

/// Some of the specs, with what they need.
#[derive(Debug)]
pub(super) struct Part {
    /// Its folder of logs is named so.
    pub(super) name: &'static str,
    /// How many nodes the lab has, in three zones.
    pub(super) nodes: u8,
    /// Ginkgo's label filter.
    labels: &'static str,
    focus: Option<&'static str>,
    skip: Option<&'static str>,
    /// Where the tests themselves run.
    pub(super) from: Member,
    /// Given up after this long. Ginkgo runs specs that bear no company at the end, one after the other.
    pub(super) minutes: u32,
}

/// Those want two nodes in each of three zones, and skip themselves where there are fewer.
const SIX_NODES: &str = "Traffic Distribution should route traffic correctly between pods on multiple nodes\
    |Traffic Distribution should route traffic to an endpoint on the same node or fall back to same zone";

/// All that is judged.
pub(super) const PARTS: [Part; 3] = [
    Part {
        name: "network",
        nodes: 3,
        labels: "sig-network && !(Feature: containsAny {NetworkPolicy, Networking-IPv4, Networking-IPv6, Networking-DNS, \
                 PerformanceDNS, LoadBalancer})",
        focus: None,
        skip: Some(SIX_NODES),
        from: Member::Control,
        minutes: 60,
    },
    Part {
        name: "load-balancers",
        nodes: 3,
        labels: "sig-network && Feature: containsAny {LoadBalancer}",
        focus: None,
        skip: None,
        // The suite holds an address near the nodes' for one of theirs, and judges "source address preserved" wrongly.
        from: Member::Remote,
        minutes: 45,
    },
    Part {
        name: "six-nodes",
        nodes: 6,
        labels: "sig-network",
        focus: Some(SIX_NODES),
        skip: None,
        from: Member::Control,
        minutes: 20,
    },
];

/// What is left out, with its number in the suite and the reason.
pub(super) const LEFT_OUT: [(&str, &str, &str); 3] = [
    (
        "NetworkPolicy",
        "Feature: containsAny {NetworkPolicy}",
        "network policy is the network plug-in's business, not a service proxy's",
    ),
    (
        "Internet connection",
        "Feature: containsAny {Networking-IPv4, Networking-IPv6, Networking-DNS}",
        "a lab has no Internet",
    ),
    ("DNS performance", "Feature: containsAny {PerformanceDNS}", "measures the DNS server, with 10,000 Services"),
];

impl Part {
    pub(super) fn selection(&self) -> Selection {
        Selection {
            labels: Some(self.labels.to_owned()),
            focus: self.focus.map(str::to_owned),
            skip: self.skip.map(str::to_owned),
        }
    }
}

/// Some five minutes on two cores: of every group that a service proxy decides, one or more.
pub(super) const QUICK: &[&str] = &[
    "[sig-network] API Server should have Endpoints and EndpointSlices pointing to API Server [Conformance]",
    "[sig-network] Conntrack proxy implementation should not be vulnerable to the invalid conntrack state bug [Privileged]",
    "[sig-network] Conntrack should be able to cleanup conntrack entries when UDP service target port changes for a NodePort service",
    "[sig-network] Conntrack should be able to preserve UDP traffic when initial unready endpoints get ready",
    "[sig-network] Conntrack should be able to preserve UDP traffic when server pod cycles for a ClusterIP service",
    "[sig-network] DNS should provide DNS for services [Conformance]",
    "[sig-network] DNS should provide DNS for the cluster [Conformance]",
    "[sig-network] EndpointSlice should support a Service with multiple ports specified in multiple EndpointSlices [Conformance]",
    "[sig-network] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol \
     [LinuxOnly] [Conformance]",
    "[sig-network] KubeProxy should set TCP CLOSE_WAIT timeout [Privileged]",
    "[sig-network] Networking Granular Checks: Services should be able to handle large requests: udp",
    "[sig-network] Networking Granular Checks: Services should function for client IP based session affinity: http [LinuxOnly]",
    "[sig-network] Networking Granular Checks: Services should function for endpoint-Service: udp",
    "[sig-network] Networking Granular Checks: Services should function for node-Service: http",
    "[sig-network] Networking should check kube-proxy urls",
    "[sig-network] NoSNAT Should be able to send traffic between Pods without SNAT",
    "[sig-network] Service CIDRs should create Services and serve on different Service CIDRs",
    "[sig-network] Service endpoints latency should not be very high [Conformance]",
    "[sig-network] Services should allow pods to hairpin back to themselves through services",
    "[sig-network] Services should be able to change the type from ExternalName to NodePort [Conformance]",
    "[sig-network] Services should be able to create a functioning NodePort service [Conformance]",
    "[sig-network] Services should be able to up and down services",
    "[sig-network] Services should be able to update service type to NodePort listening on same port number but different protocols",
    "[sig-network] Services should be possible to connect to a service via ExternalIP when the external IP is not assigned to a node",
    "[sig-network] Services should be rejected when no endpoints exist",
    "[sig-network] Services should fail health check node port if there are only terminating endpoints",
    "[sig-network] Services should fallback to local terminating endpoints when there are no ready endpoints with \
     externalTrafficPolicy=Local",
    "[sig-network] Services should fallback to terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Cluster",
    "[sig-network] Services should have session affinity work for NodePort service [LinuxOnly] [Conformance]",
    "[sig-network] Services should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes",
    "[sig-network] Services should implement service.kubernetes.io/headless",
    "[sig-network] Services should implement service.kubernetes.io/service-proxy-name",
    "[sig-network] Services should preserve source pod IP for traffic thru service cluster IP [LinuxOnly]",
    "[sig-network] Services should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)",
    "[sig-network] Services should respect internalTrafficPolicy=Local Pod to Pod",
    "[sig-network] Services should serve multiport endpoints from pods [Conformance]",
    "[sig-network] Services should support externalTrafficPolicy=Local for type=NodePort",
    "[sig-network] Services should support named targetPorts that resolve to different ports on different endpoints",
    "[sig-network] Topology Hints should distribute endpoints evenly",
    "[sig-network] Traffic Distribution should route traffic to an endpoint in the same zone when using PreferClose",
    "[sig-network] [Feature:IPv6DualStack] Granular Checks: Services Secondary IP Family [LinuxOnly] should be able to handle large \
     requests: http",
    "[sig-network] [Feature:IPv6DualStack] Granular Checks: Services Secondary IP Family [LinuxOnly] should function for \
     endpoint-Service: http",
    "[sig-network] [Feature:IPv6DualStack] Granular Checks: Services Secondary IP Family [LinuxOnly] should function for \
     pod-Service: udp",
    "[sig-network] [Feature:IPv6DualStack] should create service with ipv6,v4 cluster ip",
];
