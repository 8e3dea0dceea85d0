//! What the API server is told before the first kubelet starts: the nodes, and CoreDNS.

use crate::layout::{DNS_SERVICE, Member, pods_v4, pods_v6, zone};

/// CoreDNS as an installation of Kubernetes has it.
const COREDNS: &str = include_str!("manifests/coredns.yaml");

/// The nodes, with their pod ranges (so that routes can be made before they register) and zones.
pub fn nodes(nodes: u8) -> String {
    let mut text = String::new();
    for n in 1..=nodes {
        let node = Member::Node(n);
        text.push_str(&format!(
            "---
apiVersion: v1
kind: Node
metadata:
  name: {node}
  labels: {{topology.kubernetes.io/zone: {zone}, topology.kubernetes.io/region: lab}}
spec:
  podCIDR: {v4}
  podCIDRs: ['{v4}', '{v6}']
",
            zone = zone(n),
            v4 = pods_v4(n),
            v6 = pods_v6(n),
        ));
    }
    text
}

/// CoreDNS and its Service, at the addresses that kubelets give to pods.
pub fn coredns() -> String {
    let [v4, v6] = DNS_SERVICE;
    COREDNS.replace("@DNS4@", v4).replace("@DNS6@", v6)
}
