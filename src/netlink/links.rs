//! Interfaces, their addresses and the default routes: read once, then followed by the kernel's own notices, so that a
//! lost carrier is known within milliseconds.
//!
//! One task owns the state. Notices that came before the dump was complete are applied after it: the last notice about
//! an interface is its state, however old the dump.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use thiserror::Error;
use tokio::sync::watch;

use crate::model::Family;
use crate::model::link::{InterfaceIndex, Link, Links, Mac};
use crate::names::InterfaceName;
use crate::runtime::shutdown::Shutdown;

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Between a failed dump and the next try.
const PAUSE: Duration = Duration::from_millis(200);

type Notice = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

/// Why the kernel could not be asked.
#[derive(Debug, Error)]
pub enum LinksError {
    /// The socket for questions and notices.
    #[error("failed to open a route netlink socket")]
    Open(#[source] io::Error),
    /// The list of interfaces.
    #[error("failed to list {what}")]
    List {
        /// Links, addresses or routes.
        what: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The kernel closed the socket.
    #[error("the route netlink socket ended")]
    Ended,
}

/// Follows the interfaces of this network namespace until shutdown; the receiver always holds a complete picture.
///
/// Runs two tasks of the current runtime.
///
/// # Errors
/// When the first list cannot be had.
pub async fn follow(shutdown: Shutdown) -> Result<watch::Receiver<Arc<Links>>, LinksError> {
    let (connection, handle, notices) = rtnetlink::new_multicast_connection(&GROUPS).map_err(LinksError::Open)?;
    tokio::spawn(connection);
    let first = list(&handle).await?;
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        if let Err(error) = update(&handle, notices, &sender, shutdown).await {
            tracing::error!(%error, "interfaces are no longer followed");
        }
    });
    Ok(receiver)
}

async fn update(
    handle: &Handle,
    mut notices: UnboundedReceiver<Notice>,
    sender: &watch::Sender<Arc<Links>>,
    mut shutdown: Shutdown,
) -> Result<(), LinksError> {
    let mut links = Links::clone(&sender.borrow());
    loop {
        let notice = tokio::select! {
            () = shutdown.requested() => return Ok(()),
            () = sender.closed() => return Ok(()),
            notice = notices.next() => notice.ok_or(LinksError::Ended)?,
        };
        let mut effect = apply(&mut links, &notice.0.payload);
        while let Ok(notice) = notices.try_recv() {
            effect = effect.max(apply(&mut links, &notice.0.payload));
        }
        match effect {
            Effect::Nothing => continue,
            Effect::Changed => {}
            Effect::RoutesUnknown => match default_routes(handle).await {
                Ok(routes) => links.default_routes = routes,
                Err(error) => {
                    tracing::warn!(%error, "default routes could not be read, reading everything again");
                    links = list_until_done(handle).await;
                }
            },
            Effect::AllUnknown => links = list_until_done(handle).await,
        }
        sender.send_if_modified(|known| {
            let is_new = **known != links;
            if is_new {
                *known = Arc::new(links.clone());
            }
            is_new
        });
    }
}

async fn list_until_done(handle: &Handle) -> Links {
    loop {
        match list(handle).await {
            Ok(links) => return links,
            Err(error) => tracing::warn!(%error, "interfaces could not be listed, trying again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn list(handle: &Handle) -> Result<Links, LinksError> {
    let failed = |what| move |source| LinksError::List { what, source };
    let mut links = Links::default();
    let mut stream = std::pin::pin!(handle.link().get().execute());
    while let Some(message) = stream.try_next().await.map_err(failed("links"))? {
        apply_link(&mut links, &message);
    }
    let mut stream = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = stream.try_next().await.map_err(failed("addresses"))? {
        apply_address(&mut links, &message, true);
    }
    links.default_routes = default_routes(handle).await?;
    Ok(links)
}

async fn default_routes(handle: &Handle) -> Result<std::collections::BTreeSet<(Family, InterfaceIndex)>, LinksError> {
    let requests = [
        (Family::V4, RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()),
        (Family::V6, RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()),
    ];
    let mut found = std::collections::BTreeSet::new();
    for (family, request) in requests {
        let mut stream = std::pin::pin!(handle.route().get(request).execute());
        loop {
            let message = stream.try_next().await.map_err(|source| LinksError::List { what: "routes", source })?;
            let Some(message) = message else { break };
            if is_default_route(&message) {
                found.extend(interfaces_of(&message).map(|index| (family, index)));
            }
        }
    }
    Ok(found)
}

/// What a notice did to what we know, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Nothing,
    Changed,
    RoutesUnknown,
    AllUnknown,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "foreign enums that may grow; what we do not know tells us nothing")]
fn apply(links: &mut Links, payload: &NetlinkPayload<RouteNetlinkMessage>) -> Effect {
    let message = match payload {
        NetlinkPayload::InnerMessage(message) => message,
        // The kernel had more to say than the socket could hold.
        NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => return Effect::AllUnknown,
        _ => return Effect::Nothing,
    };
    match message {
        RouteNetlinkMessage::NewLink(message) => apply_link(links, message),
        // A port that leaves a bridge is told as a removed link of the family "bridge".
        RouteNetlinkMessage::DelLink(message) if message.header.interface_family == AddressFamily::Unspec => {
            let index = InterfaceIndex::new(message.header.index);
            links.default_routes.retain(|(_, interface)| *interface != index);
            if links.by_index.remove(&index).is_some() { Effect::Changed } else { Effect::Nothing }
        }
        RouteNetlinkMessage::NewAddress(message) => apply_address(links, message, true),
        RouteNetlinkMessage::DelAddress(message) => apply_address(links, message, false),
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)
            if is_default_route(message) =>
        {
            Effect::RoutesUnknown
        }
        _ => Effect::Nothing,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum of some seventy attributes, of which we need three")]
fn apply_link(links: &mut Links, message: &LinkMessage) -> Effect {
    let header = &message.header;
    // Wireless drivers send bare notices that carry no state.
    let is_bare = message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Wireless(_)));
    if header.interface_family != AddressFamily::Unspec || is_bare {
        return Effect::Nothing;
    }
    let index = InterfaceIndex::new(header.index);
    let mut name = None;
    let mut mac = None;
    let mut master = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(InterfaceName::new(text.as_str())),
            LinkAttribute::Address(octets) => mac = <[u8; 6]>::try_from(octets.as_slice()).ok().map(Mac::new),
            LinkAttribute::Controller(index) => master = Some(InterfaceIndex::new(*index)),
            _ => {}
        }
    }
    let Some(name) = name else { return Effect::Nothing };
    let flags = header.flags;
    let is_ethernet = header.link_layer_type == LinkLayerType::Ether;
    let known = links.by_index.remove(&index);
    let link = Link {
        index,
        name,
        mac: mac.filter(|_| is_ethernet),
        is_up: flags.contains(LinkFlags::Up),
        has_carrier: flags.contains(LinkFlags::LowerUp) && !flags.contains(LinkFlags::Dormant),
        is_loopback: flags.contains(LinkFlags::Loopback),
        resolves_neighbours: is_ethernet && flags.contains(LinkFlags::Broadcast) && !flags.contains(LinkFlags::Noarp),
        master,
        addresses: known.as_ref().map(|known| known.addresses.clone()).unwrap_or_default(),
    };
    let effect = match &known {
        Some(known) if *known == link => Effect::Nothing,
        // The kernel drops IPv4 routes of an interface that goes down without a notice.
        Some(known) if known.is_up != link.is_up => Effect::RoutesUnknown,
        Some(_) | None => Effect::Changed,
    };
    links.by_index.insert(index, link);
    effect
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum that may grow; we need three attributes")]
fn apply_address(links: &mut Links, message: &AddressMessage, is_new: bool) -> Effect {
    let mut local = None;
    let mut peer = None;
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the peer; IPv6 has only IFA_ADDRESS.
    let Some(address) = local.or(peer) else { return Effect::Nothing };
    let Ok(net) = IpNet::new(address, message.header.prefix_len) else { return Effect::Nothing };
    let unsettled = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let is_usable = is_new
        && !message.header.flags.intersects(unsettled)
        && !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    let Some(link) = links.by_index.get_mut(&InterfaceIndex::new(message.header.index)) else {
        // The link's own notice is lost or yet to come, and will not carry this address.
        return if is_new { Effect::AllUnknown } else { Effect::Nothing };
    };
    let is_changed = if is_usable { link.addresses.insert(net) } else { link.addresses.remove(&net) };
    if is_changed { Effect::Changed } else { Effect::Nothing }
}

fn is_default_route(message: &RouteMessage) -> bool {
    let in_main = message.attributes.iter().find_map(|attribute| {
        let RouteAttribute::Table(table) = attribute else { return None };
        Some(*table == u32::from(RouteHeader::RT_TABLE_MAIN))
    });
    message.header.destination_prefix_length == 0
        && message.header.kind == RouteType::Unicast
        && in_main.unwrap_or(message.header.table == RouteHeader::RT_TABLE_MAIN)
}

fn interfaces_of(message: &RouteMessage) -> impl Iterator<Item = InterfaceIndex> {
    let mut numbers = Vec::new();
    for attribute in &message.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            numbers.push(*index);
        }
        if let RouteAttribute::MultiPath(hops) = attribute {
            numbers.extend(hops.iter().map(|hop| hop.interface_index));
        }
    }
    numbers.into_iter().map(InterfaceIndex::new)
}
