//! The elements that make the kernel forward: what an entry comes to, what the node itself comes to, and how each is
//! spelled in bytes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::ids::{Class, Classes, Exhausted, FrontendValue, Id, Ids};
use super::layout;
use crate::datapath::entry::{
    EntryKey, ForwardingEntry, Frontend, NodeForwarding, NodePortAddresses, Target, Treatment,
};
use crate::model::service::TrafficPolicy;
use crate::model::{Family, Protocol};
use crate::netlink::nf_tables::ElementWriter;

/// An element of one of our maps. The order is the order of writing: what a frontend leads to comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// The endpoint in a slot.
    Endpoint {
        /// Whose.
        id: Id,
        /// From 0, without a gap.
        slot: u32,
        /// The endpoint.
        to: SocketAddr,
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

/// The prefixes of one family as ranges that do not overlap: the kernel refuses overlapping ones.
fn ranges<'a>(nets: impl IntoIterator<Item = &'a IpNet>, family: Family) -> impl Iterator<Item = Range> {
    let nets: Vec<IpNet> = nets.into_iter().filter(|net| Family::of(net.addr()) == family).copied().collect();
    IpNet::aggregate(&nets).into_iter().map(Range::from)
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

/// All addresses but loopback.
fn not_loopback(family: Family) -> Vec<Range> {
    let all = Range::all_of(family);
    match family {
        Family::V4 => vec![
            Range { first: all.first, last: Ipv4Addr::new(126, 255, 255, 255).into() },
            Range { first: Ipv4Addr::new(128, 0, 0, 0).into(), last: all.last },
        ],
        Family::V6 => vec![Range { first: Ipv6Addr::from(2).into(), last: all.last }],
    }
}

/// The elements of one entry, in order. Takes ids and classes for it. `previous` is what it had before: endpoints that
/// stay keep their slot.
///
/// # Errors
///
/// When there is no id or class left.
pub fn elements_of(
    key: &EntryKey,
    entry: &ForwardingEntry,
    ids: &mut Ids,
    classes: &mut Classes,
    previous: &[Element],
) -> Result<Vec<Element>, Exhausted> {
    let mut elements = Vec::new();
    for policy in policies(entry) {
        let id = ids.take(key, policy)?;
        let target = match policy {
            TrafficPolicy::Cluster => &entry.cluster,
            TrafficPolicy::Local => &entry.local,
        };
        elements.extend(target_elements(id, target, classes, previous)?);
    }
    for (frontend, treatment) in &entry.frontends {
        let value = FrontendValue::new(*treatment, ids.take(key, policy_of(*treatment))?);
        elements.push(match *frontend {
            Frontend::Address(address) => Element::Frontend { address, protocol: key.port.protocol, value },
            Frontend::NodePort(port) => Element::NodePort { port, protocol: key.port.protocol, value },
        });
        if let Treatment::External { policy, is_filtered } = *treatment {
            if policy == TrafficPolicy::Local {
                elements.push(Element::Inside { local: value, cluster: ids.take(key, TrafficPolicy::Cluster)? });
            }
            if is_filtered {
                let ranges = ranges(&entry.source_ranges, key.family);
                elements.extend(ranges.map(|range| Element::SourceRange { frontend: value, range }));
            }
        }
    }
    elements.extend(entry.local_addresses.iter().map(|address| Element::Hairpin(*address)));
    elements.sort_unstable();
    // Frontends of one treatment share what stands behind them.
    elements.dedup();
    Ok(elements)
}

/// The policies whose targets packets may come to.
pub fn policies(entry: &ForwardingEntry) -> BTreeSet<TrafficPolicy> {
    let used = |treatment: &Treatment| match *treatment {
        Treatment::Internal(policy) => [policy; 2],
        // Clients on this node get all endpoints.
        Treatment::External { policy, .. } => [policy, TrafficPolicy::Cluster],
    };
    entry.frontends.values().flat_map(used).collect()
}

/// The policy whose id a frontend leads to.
pub const fn policy_of(treatment: Treatment) -> TrafficPolicy {
    match treatment {
        Treatment::Internal(policy) | Treatment::External { policy, .. } => policy,
    }
}

fn target_elements(
    id: Id,
    target: &Target,
    classes: &mut Classes,
    previous: &[Element],
) -> Result<Vec<Element>, Exhausted> {
    let endpoints = match target {
        Target::Reject => return Ok(vec![Element::Service { id, class: Class::REJECT }]),
        Target::Drop => return Ok(vec![Element::Service { id, class: Class::DROP }]),
        Target::Endpoints(endpoints) => assign_slots(id, endpoints, previous),
    };
    let Some(count) = u32::try_from(endpoints.len()).ok().filter(|count| *count > 0) else {
        return Ok(vec![Element::Service { id, class: Class::REJECT }]);
    };
    let class = classes.take(count)?;
    let mut elements = vec![Element::Service { id, class }];
    elements.extend((0u32..).zip(endpoints).map(|(slot, to)| Element::Endpoint { id, slot, to }));
    Ok(elements)
}

/// Gives each endpoint a slot, without a gap. Who has one below the new number of slots keeps it, so that the change of
/// one endpoint is the change of one slot or two.
fn assign_slots(id: Id, endpoints: &BTreeSet<SocketAddr>, previous: &[Element]) -> Vec<SocketAddr> {
    let mut slots: Vec<Option<SocketAddr>> = vec![None; endpoints.len()];
    let mut waiting = endpoints.clone();
    for element in previous {
        if let Element::Endpoint { id: owner, slot, to } = element
            && *owner == id
            && let Some(place) = usize::try_from(*slot).ok().and_then(|slot| slots.get_mut(slot))
            && waiting.remove(to)
        {
            *place = Some(*to);
        }
    }
    let mut waiting = waiting.into_iter();
    slots.into_iter().filter_map(|place| place.or_else(|| waiting.next())).collect()
}

/// The elements of one family that belong to the node itself, in order.
pub fn node_elements(node: &NodeForwarding, family: Family) -> Vec<Element> {
    let pods: Vec<Range> = ranges(&node.pod_cidrs, family).collect();
    let mut elements: Vec<Element> = pods.iter().copied().map(Element::PodCidr).collect();
    // Without prefixes of pods nobody can be told to be none, and nobody is masqueraded.
    match (node.masquerade_all, pods.is_empty()) {
        (true, _) => {}
        (false, true) => elements.push(Element::Unmasqueraded(Range::all_of(family))),
        (false, false) => elements.extend(pods.into_iter().map(Element::Unmasqueraded)),
    }
    match node.node_ports.of(family) {
        NodePortAddresses::These(addresses) => {
            elements.extend(of_family(addresses, family).map(Element::NodePortAddress));
        }
        NodePortAddresses::All => elements.extend(not_loopback(family).into_iter().map(Element::NodePortRange)),
    }
    elements.extend(of_family(&node.cluster_ips, family).map(Element::ClusterIp));
    elements.extend(ranges(&node.service_cidrs, family).map(Element::ServiceCidr));
    elements.sort_unstable();
    elements
}

fn of_family(addresses: &BTreeSet<IpAddr>, family: Family) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| Family::of(*address) == family)
}

impl Element {
    /// The set or map that it belongs to.
    pub const fn set(&self) -> &'static str {
        match self {
            Self::Endpoint { .. } => layout::ENDPOINTS,
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
            | Self::Service { .. }
            | Self::Inside { .. }
            | Self::SourceRange { .. }
            | Self::PodCidr(_)
            | Self::Unmasqueraded(_)
            | Self::NodePortAddress(_)
            | Self::NodePortRange(_)
            | Self::ClusterIp(_)
            | Self::ServiceCidr(_) => None,
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
            Self::Endpoint { id, slot, to } => writer.write(|element| {
                element.key(Key::new().host_u32(id.priority()).host_u32(slot).bytes());
                element.value(Key::new().address(to.ip()).port(to.port()).bytes());
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
            Self::NodePortAddress(address) | Self::ClusterIp(address) => {
                writer.write(|element| element.key(Key::new().address(address).bytes()));
            }
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
pub(crate) mod test;
