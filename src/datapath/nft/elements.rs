//! The elements that make the kernel forward, and how each is spelled in bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::ids::{Class, FrontendValue, Id};
use super::layout;
use crate::datapath::entry::Frontend;
use crate::model::{Family, Protocol};
use crate::netlink::nf_tables::ElementWriter;

/// An element of one of our maps. The order is the order of writing: what a frontend leads to comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// The endpoint in a slot.
    Endpoint {
        /// Whose.
        id: Id,
        /// How clients are remembered, if they are.
        memory: Option<Class>,
        /// From 0, without a gap.
        slot: u32,
        /// The endpoint.
        to: SocketAddr,
    },
    /// Clients that were led to an endpoint in one policy are led there in the other one.
    Twin {
        /// The one.
        id: Id,
        /// How clients of both are remembered.
        memory: Class,
        /// The endpoint, which both may use.
        to: SocketAddr,
        /// The other.
        other: Id,
    },
    /// What becomes of an id's packets.
    Service {
        /// Whose.
        id: Id,
        /// The number of slots, or reject or drop.
        class: Class,
    },
    /// Clients on this node use the other policy.
    Inside {
        /// What they dialled.
        local: FrontendValue,
        /// What they get.
        cluster: Id,
    },
    /// These sources may dial a filtered frontend.
    SourceRange {
        /// The frontend.
        frontend: FrontendValue,
        /// The sources.
        range: Range,
    },
    /// An endpoint on this node, which may be led to itself.
    Hairpin(IpAddr),
    /// Pods of this node.
    PodCidr(Range),
    /// Not masqueraded on the way to a cluster IP.
    Unmasqueraded(Range),
    /// Node ports answer here.
    NodePortAddress(IpAddr),
    /// Node ports answer on all addresses of this machine in the range.
    NodePortRange(Range),
    /// A cluster IP of a Service.
    ClusterIp(IpAddr),
    /// Cluster IPs come from here.
    ServiceCidr(Range),
    /// A load-balancer address.
    Served(IpAddr),
    /// This node's address that answers echo requests to load-balancer addresses of its family.
    EchoAnswer(IpAddr),
    /// What was a load-balancer address until now. Goes by itself, so that nobody needs to remember it.
    Released(IpAddr),
    /// A port of this node.
    NodePort {
        /// The port.
        port: NonZeroU16,
        /// Its protocol.
        protocol: Protocol,
        /// What it leads to.
        value: FrontendValue,
    },
    /// An address and port that clients dial.
    Frontend {
        /// Address and port.
        address: SocketAddr,
        /// The protocol.
        protocol: Protocol,
        /// What it leads to.
        value: FrontendValue,
    },
}

/// What tells elements of one map apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SharedKey {
    /// See [`Element::Hairpin`].
    Hairpin(IpAddr),
    /// See [`Element::NodePort`].
    NodePort(NonZeroU16, Protocol),
    /// See [`Element::Frontend`].
    Frontend(SocketAddr, Protocol),
}

impl SharedKey {
    /// That of a frontend.
    pub const fn of(frontend: Frontend, protocol: Protocol) -> Self {
        match frontend {
            Frontend::Address(address) => Self::Frontend(address, protocol),
            Frontend::NodePort(port) => Self::NodePort(port, protocol),
        }
    }

    /// The element with this key; one that leads somewhere needs to be told where.
    pub fn element(self, value: Option<FrontendValue>) -> Option<Element> {
        match self {
            Self::Hairpin(address) => Some(Element::Hairpin(address)),
            Self::NodePort(port, protocol) => value.map(|value| Element::NodePort { port, protocol, value }),
            Self::Frontend(address, protocol) => value.map(|value| Element::Frontend { address, protocol, value }),
        }
    }
}

/// A range of addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The first address.
    pub first: IpAddr,
    /// The last address.
    pub last: IpAddr,
}

impl From<IpNet> for Range {
    fn from(net: IpNet) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl Range {
    /// All addresses of a family.
    pub fn all_of(family: Family) -> Self {
        match family {
            Family::V4 => Self { first: Ipv4Addr::UNSPECIFIED.into(), last: Ipv4Addr::BROADCAST.into() },
            Family::V6 => Self { first: Ipv6Addr::UNSPECIFIED.into(), last: Ipv6Addr::from(u128::MAX).into() },
        }
    }
}

impl Element {
    /// The set or map that it belongs to.
    pub const fn set(&self) -> &'static str {
        match self {
            Self::Endpoint { .. } => layout::ENDPOINTS,
            Self::Twin { .. } => layout::TWINS,
            Self::Service { .. } => layout::SERVICES,
            Self::Inside { .. } => layout::INSIDE,
            Self::SourceRange { .. } => layout::SOURCE_RANGES,
            Self::Hairpin(_) => layout::HAIRPIN,
            Self::PodCidr(_) => layout::POD_CIDRS,
            Self::Unmasqueraded(_) => layout::UNMASQUERADED,
            Self::NodePortAddress(_) => layout::NODE_PORT_ADDRESSES,
            Self::NodePortRange(_) => layout::NODE_PORT_RANGES,
            Self::ClusterIp(_) => layout::CLUSTER_IPS,
            Self::ServiceCidr(_) => layout::SERVICE_CIDRS,
            Self::Served(_) => layout::SERVED,
            Self::EchoAnswer(_) => layout::ECHO,
            Self::Released(_) => layout::RELEASED,
            Self::NodePort { .. } => layout::NODE_PORTS,
            Self::Frontend { .. } => layout::FRONTENDS,
        }
    }

    /// The key of an element that two entries may both want.
    pub const fn shared_key(&self) -> Option<SharedKey> {
        match *self {
            Self::Hairpin(address) => Some(SharedKey::Hairpin(address)),
            Self::NodePort { port, protocol, .. } => Some(SharedKey::NodePort(port, protocol)),
            Self::Frontend { address, protocol, .. } => Some(SharedKey::Frontend(address, protocol)),
            Self::Endpoint { .. }
            | Self::Twin { .. }
            | Self::Service { .. }
            | Self::Inside { .. }
            | Self::SourceRange { .. }
            | Self::PodCidr(_)
            | Self::Unmasqueraded(_)
            | Self::NodePortAddress(_)
            | Self::NodePortRange(_)
            | Self::ClusterIp(_)
            | Self::ServiceCidr(_)
            | Self::Served(_)
            | Self::EchoAnswer(_)
            | Self::Released(_) => None,
        }
    }

    /// What a frontend leads to.
    pub const fn frontend_value(&self) -> Option<FrontendValue> {
        if let Self::Frontend { value, .. } | Self::NodePort { value, .. } = self { Some(*value) } else { None }
    }

    /// Writes it, or what finds it. Addresses and ports are in network order, priorities and slots in the machine's, save
    /// for the priority of a source range.
    pub fn write(&self, writer: &mut ElementWriter<'_>) {
        match *self {
            Self::Endpoint { id, memory, slot, to } => writer.write(|element| {
                element.key(Key::new().host_u32(id.priority_in(memory)).host_u32(slot).bytes());
                element.value(Key::new().address(to.ip()).port(to.port()).bytes());
            }),
            Self::Twin { id, memory, to, other } => writer.write(|element| {
                let memory = Some(memory);
                element.key(Key::new().host_u32(id.priority_in(memory)).address(to.ip()).port(to.port()).bytes());
                element.value(&other.priority_in(memory).to_ne_bytes());
            }),
            Self::Service { id, class } => writer.write(|element| {
                element.key(&id.priority().to_ne_bytes());
                element.value(&(class.priority() | id.priority()).to_ne_bytes());
            }),
            Self::Inside { local, cluster } => writer.write(|element| {
                element.key(&local.priority().to_ne_bytes());
                element.value(&cluster.priority().to_ne_bytes());
            }),
            Self::SourceRange { frontend, range } => writer.write(|element| {
                element.key(Key::new().network_u32(frontend.priority()).address(range.first).bytes());
                element.key_end(Key::new().network_u32(frontend.priority()).address(range.last).bytes());
            }),
            Self::Hairpin(address) => {
                writer.write(|element| element.key(Key::new().address(address).address(address).bytes()));
            }
            Self::NodePortAddress(address)
            | Self::ClusterIp(address)
            | Self::Served(address)
            | Self::Released(address) => {
                writer.write(|element| element.key(Key::new().address(address).bytes()));
            }
            Self::EchoAnswer(address) => writer.write(|element| {
                element.key(&[echo_protocol(Family::of(address))]);
                element.value(Key::new().address(address).bytes());
            }),
            Self::PodCidr(range)
            | Self::Unmasqueraded(range)
            | Self::NodePortRange(range)
            | Self::ServiceCidr(range) => write_interval(writer, range),
            Self::NodePort { port, protocol, value } => writer.write(|element| {
                element.key(Key::new().protocol(protocol).port(port.get()).bytes());
                element.value(&value.priority().to_ne_bytes());
            }),
            Self::Frontend { address, protocol, value } => writer.write(|element| {
                element.key(Key::new().address(address.ip()).protocol(protocol).port(address.port()).bytes());
                element.value(&value.priority().to_ne_bytes());
            }),
        }
    }
}

/// ICMP or ICMPv6.
pub const fn echo_protocol(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 58,
    }
}

/// A range of single keys is two elements: its first key, and the first key behind it.
fn write_interval(writer: &mut ElementWriter<'_>, range: Range) {
    let behind = match range.last {
        IpAddr::V4(last) => last.to_bits().checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(last) => last.to_bits().checked_add(1).map(|next| IpAddr::V6(next.into())),
    };
    writer.write(|element| {
        element.key(Key::new().address(range.first).bytes());
        if behind.is_none() {
            element.is_open_interval();
        }
    });
    if let Some(behind) = behind {
        writer.write(|element| {
            element.key(Key::new().address(behind).bytes());
            element.is_interval_end();
        });
    }
}

/// The bytes of a key or value: fields one after another, each padded to four bytes.
struct Key {
    bytes: [u8; 32],
    length: usize,
}

impl Key {
    const fn new() -> Self {
        Self { bytes: [0; 32], length: 0 }
    }

    fn field(mut self, field: &[u8]) -> Self {
        if let Some(place) = self.bytes.get_mut(self.length..self.length + field.len()) {
            place.copy_from_slice(field);
        }
        self.length = (self.length + field.len()).next_multiple_of(4);
        self
    }

    fn host_u32(self, number: u32) -> Self {
        self.field(&number.to_ne_bytes())
    }

    fn network_u32(self, number: u32) -> Self {
        self.field(&number.to_be_bytes())
    }

    fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.field(&address.octets()),
            IpAddr::V6(address) => self.field(&address.octets()),
        }
    }

    fn protocol(self, protocol: Protocol) -> Self {
        self.field(&[protocol.number()])
    }

    fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_padded_field_by_field() {
        let key = Key::new().address("10.96.0.1".parse().unwrap()).protocol(Protocol::Tcp).port(80);
        assert_eq!(key.bytes(), [10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]);
        let key = Key::new().address("fd00::1".parse().unwrap()).address("fd00::1".parse().unwrap());
        assert_eq!(key.bytes().len(), 32);
    }
}
