//! Reads elements back from the kernel: the reverse of how they are written.
//!
//! What is not understood was not written by us, or by another version: then there is no answer, and the table is made
//! anew.

use std::net::{IpAddr, SocketAddr};

use super::classes::{Memory, Purpose};
use super::elements::{Element, Range, echo_protocol};
use super::ids::{Class, FrontendValue, Id, Sticky};
use super::layout;
use crate::model::{Family, Protocol};
use crate::netlink::nf_tables::DumpedElement;

/// The elements of a set.
pub fn elements(set: &str, family: Family, dumped: &[DumpedElement]) -> Option<Vec<Element>> {
    let each = |read: fn(&DumpedElement, Family) -> Option<Element>| {
        dumped.iter().map(|element| read(element, family)).collect::<Option<Vec<Element>>>()
    };
    let intervals =
        |make: fn(Range) -> Element| Some(intervals(dumped, family)?.into_iter().map(make).collect::<Vec<Element>>());
    match set {
        layout::ENDPOINTS => each(endpoint),
        layout::TWINS => each(twin),
        layout::SERVICES => each(service),
        layout::INSIDE => each(inside),
        layout::SOURCE_RANGES => each(source_range),
        layout::HAIRPIN => each(hairpin),
        layout::NODE_PORT_ADDRESSES => each(|element, family| single(element, family).map(Element::NodePortAddress)),
        layout::CLUSTER_IPS => each(|element, family| single(element, family).map(Element::ClusterIp)),
        layout::SERVED => each(|element, family| single(element, family).map(Element::Served)),
        layout::ECHO => each(echo_answer),
        layout::RELEASED => each(|element, family| single(element, family).map(Element::Released)),
        layout::POD_CIDRS => intervals(Element::PodCidr),
        layout::UNMASQUERADED => intervals(Element::Unmasqueraded),
        layout::NODE_PORT_RANGES => intervals(Element::NodePortRange),
        layout::SERVICE_CIDRS => intervals(Element::ServiceCidr),
        layout::NODE_PORTS => each(node_port),
        layout::FRONTENDS => each(frontend),
        _ => None,
    }
}

/// What has chains: those that remember, and those for numbers of slots.
pub fn classes(learners: &[DumpedElement], slots: &[DumpedElement]) -> Option<Vec<(Purpose, Class)>> {
    let mut memories: Vec<Memory> = Vec::new();
    let mut classes = Vec::new();
    for element in learners.iter().chain(slots) {
        let class = Class::from_priority(Fields(&element.key).host_u32()?)?;
        let purpose = Purpose::of_chain(element.chain.as_deref()?, class, &memories)?;
        if let Purpose::Learn(memory) = purpose {
            memories.push(memory);
        }
        classes.push((purpose, class));
    }
    Some(classes)
}

/// Who is remembered, and the endpoint: with its port where that is remembered too.
pub fn remembered(element: &DumpedElement, family: Family) -> Option<(Sticky, IpAddr, IpAddr, Option<u16>)> {
    let (mut key, mut value) = (Fields(&element.key), Fields(&element.value));
    let whose = Sticky::from_priority(key.host_u32()?)?;
    Some((whose, key.address(family)?, value.address(family)?, value.port()))
}

fn endpoint(element: &DumpedElement, family: Family) -> Option<Element> {
    let (mut key, mut value) = (Fields(&element.key), Fields(&element.value));
    let number = key.host_u32()?;
    Some(Element::Endpoint {
        id: Id::from_priority(number)?,
        memory: Class::memory_in(number),
        slot: key.host_u32()?,
        to: SocketAddr::new(value.address(family)?, value.port()?),
    })
}

fn twin(element: &DumpedElement, family: Family) -> Option<Element> {
    let mut key = Fields(&element.key);
    let (number, other) = (key.host_u32()?, Fields(&element.value).host_u32()?);
    let memory = Class::memory_in(number)?;
    let to = SocketAddr::new(key.address(family)?, key.port()?);
    let is_ours = Class::memory_in(other) == Some(memory);
    is_ours.then_some(Element::Twin { id: Id::from_priority(number)?, memory, to, other: Id::from_priority(other)? })
}

fn service(element: &DumpedElement, _: Family) -> Option<Element> {
    let id = Id::from_priority(Fields(&element.key).host_u32()?)?;
    let value = Fields(&element.value).host_u32()?;
    // One that leads to another id is not ours.
    (Id::from_priority(value)? == id).then_some(Element::Service { id, class: Class::from_priority(value)? })
}

fn inside(element: &DumpedElement, _: Family) -> Option<Element> {
    Some(Element::Inside {
        local: FrontendValue::from_priority(Fields(&element.key).host_u32()?)?,
        cluster: Id::from_priority(Fields(&element.value).host_u32()?)?,
    })
}

fn source_range(element: &DumpedElement, family: Family) -> Option<Element> {
    let (mut first, mut last) = (Fields(&element.key), Fields(&element.key_end));
    let frontend = FrontendValue::from_priority(first.network_u32()?)?;
    last.network_u32()?;
    let range = Range { first: first.address(family)?, last: last.address(family)? };
    Some(Element::SourceRange { frontend, range })
}

fn hairpin(element: &DumpedElement, family: Family) -> Option<Element> {
    let mut key = Fields(&element.key);
    let address = key.address(family)?;
    (key.address(family)? == address).then_some(Element::Hairpin(address))
}

fn single(element: &DumpedElement, family: Family) -> Option<IpAddr> {
    Fields(&element.key).address(family)
}

fn echo_answer(element: &DumpedElement, family: Family) -> Option<Element> {
    let [protocol] = Fields(&element.key).take()?;
    let address = Fields(&element.value).address(family)?;
    (protocol == echo_protocol(family)).then_some(Element::EchoAnswer(address))
}

fn node_port(element: &DumpedElement, _: Family) -> Option<Element> {
    let mut key = Fields(&element.key);
    Some(Element::NodePort {
        protocol: key.protocol()?,
        port: key.port()?.try_into().ok()?,
        value: FrontendValue::from_priority(Fields(&element.value).host_u32()?)?,
    })
}

fn frontend(element: &DumpedElement, family: Family) -> Option<Element> {
    let mut key = Fields(&element.key);
    let address = key.address(family)?;
    let protocol = key.protocol()?;
    Some(Element::Frontend {
        address: SocketAddr::new(address, key.port()?),
        protocol,
        value: FrontendValue::from_priority(Fields(&element.value).host_u32()?)?,
    })
}

/// Pairs the first keys of intervals with those behind them.
fn intervals(dumped: &[DumpedElement], family: Family) -> Option<Vec<Range>> {
    let mut edges: Vec<(IpAddr, bool)> = dumped
        .iter()
        .map(|element| Some((single(element, family)?, !element.is_interval_end)))
        .collect::<Option<_>>()?;
    // Where one interval ends and the next begins, the end comes first.
    edges.sort_unstable();
    let mut ranges = Vec::new();
    let mut open = None;
    for (address, is_start) in edges {
        match (open.take(), is_start) {
            (None, true) => open = Some(address),
            (Some(first), false) => ranges.push(Range { first, last: before(address)? }),
            (None, false) => {}
            (Some(_), true) => return None,
        }
    }
    ranges.extend(open.map(|first| Range { first, last: Range::all_of(family).last }));
    Some(ranges)
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_sub(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(address) => address.to_bits().checked_sub(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

/// Fields one after another, each padded to four bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let field = self.0.get(..N)?.try_into().ok()?;
        self.0 = self.0.get(N.next_multiple_of(4)..).unwrap_or_default();
        Some(field)
    }

    fn host_u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn network_u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn address(&mut self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.take::<4>().map(IpAddr::from),
            Family::V6 => self.take::<16>().map(IpAddr::from),
        }
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number] = self.take()?;
        Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)
    }

    fn port(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }
}
