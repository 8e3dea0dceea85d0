//! Which packets to try on random objects: to every address and port of the Services, and beside them, from everywhere.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use steelyard::datapath::service::ForwardedService;
use steelyard::datapath::simulate::Packet;
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::{Family, Protocol};

use crate::expected::Expected;
use crate::generate::NODE_ADDRESSES;
use crate::rng::Rng;

/// Pods that are no endpoints (here and elsewhere), clients off the cluster; of each family.
const SOURCES: [&str; 8] = [
    "10.244.1.99",
    "10.244.2.99",
    "172.16.5.5",
    "172.16.6.6",
    "fd00:10:244:1::99",
    "fd00:10:244:2::99",
    "2001:db8:c::5",
    "2001:db8:d::6",
];
/// Cluster IPs that nobody has.
const UNALLOCATED: [&str; 4] = ["10.96.254.254", "fd00:96::fffe", "172.31.0.1", "fd00:31::1"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// One that many Services have at load-balancer addresses.
const RELEASED_PORT: NonZeroU16 = NonZeroU16::new(80).unwrap();

/// At most `most` packets to addresses of Services, and some to addresses that were such a moment ago.
pub fn packets(expected: &Expected, rng: &mut Rng, most: usize) -> Vec<Packet> {
    let mut all: BTreeSet<(IpAddr, IpAddr, u16, u8)> = BTreeSet::new();
    let mut add = |source: IpAddr, destination: IpAddr, port: u16, protocol: Protocol| {
        if port > 0 && Family::of(source) == Family::of(destination) {
            let place = PROTOCOLS.iter().position(|known| *known == protocol).unwrap_or_default();
            all.insert((source, destination, port, place as u8));
        }
    };
    let node: Vec<IpAddr> = NODE_ADDRESSES.iter().map(|text| text.parse().unwrap()).collect();
    let strangers: Vec<IpAddr> = SOURCES.iter().map(|text| text.parse().unwrap()).collect();
    // Those in `default` are the runner's own.
    for service in expected.index.services().filter(|service| !service.key.to_string().starts_with("default/")) {
        let endpoints: Vec<IpAddr> = expected
            .index
            .slices_of(&service.key)
            .flat_map(|slice: &EndpointSlice| slice.endpoints.iter().map(|it| it.address))
            .collect();
        for (destination, port, protocol) in dialled(service, &node) {
            let of_family = |list: &[IpAddr]| -> Vec<IpAddr> {
                list.iter().copied().filter(|it| Family::of(*it) == Family::of(destination)).collect()
            };
            let (node, strangers, endpoints) = (of_family(&node), of_family(&strangers), of_family(&endpoints));
            for _ in 0..2 {
                add(*rng.pick(&strangers), destination, port, protocol);
            }
            if rng.percent(40) {
                add(*rng.pick(&node), destination, port, protocol);
            }
            if rng.percent(35) && !endpoints.is_empty() {
                add(*rng.pick(&endpoints), destination, port, protocol);
            }
            if rng.percent(12) {
                add(*rng.pick(&strangers), destination, port.wrapping_add(1), protocol);
            }
            if rng.percent(12) {
                add(*rng.pick(&strangers), destination, port, *rng.pick(&PROTOCOLS));
            }
        }
    }
    for destination in UNALLOCATED {
        for source in &strangers {
            add(*source, destination.parse().unwrap(), 80, *rng.pick(&PROTOCOLS));
        }
    }
    let mut packets: Vec<Packet> = all
        .into_iter()
        .filter_map(|(source, destination, port, place)| {
            let protocol = PROTOCOLS[usize::from(place)];
            Some(Packet { source, destination, port: port.try_into().ok()?, protocol })
        })
        .collect();
    while packets.len() > most {
        packets.swap_remove(rng.below(packets.len()));
    }
    // Beside the others, and not at random: how many of them there are is a matter of time.
    for destination in &expected.released {
        let of_family = strangers.iter().filter(|it| Family::of(**it) == Family::of(*destination));
        packets.extend(of_family.zip(PROTOCOLS).map(|(source, protocol)| Packet {
            source: *source,
            destination: *destination,
            port: RELEASED_PORT,
            protocol,
        }));
    }
    packets
}

/// Where a Service's ports are, those of load balancers that proxy included, and its NodePorts at all of the node's addresses.
fn dialled(service: &ForwardedService, node: &[IpAddr]) -> Vec<(IpAddr, u16, Protocol)> {
    let ingress = service.ingress.iter().map(|ingress| ingress.address);
    let addresses: Vec<IpAddr> =
        service.cluster_ips.iter().chain(&service.external_ips).copied().chain(ingress).collect();
    let mut all = Vec::new();
    for port in &service.ports {
        all.extend(addresses.iter().map(|address| (*address, port.port.get(), port.protocol)));
        if let Some(node_port) = port.node_port {
            all.extend(node.iter().map(|address| (*address, node_port.get(), port.protocol)));
        }
    }
    all
}
