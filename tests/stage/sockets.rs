//! The sockets at the edges of the node: frames on its links, packets of its own, packets that it keeps for itself.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, recv,
    recvmsg, send, setsockopt, socket, sockopt,
};
use socket2::{Domain, Protocol as ProtocolNumber, Socket, Type};

use super::wire::{self, Sight};

/// Room for all packets of a scenario.
const RECEIVE_BUFFER: usize = 32 << 20;
const ETHERNET: usize = 14;
/// Protocols that are looked for among packets that the node keeps: ours, and ICMP.
const KEPT_V4: [u8; 4] = [1, 6, 17, 132];
const KEPT_V6: [u8; 4] = [58, 6, 17, 132];

/// The far end of a link of the node, with no network stack behind it.
pub struct Link {
    socket: OwnedFd,
    ethernet: [u8; 12],
}

impl Link {
    /// Opens the end of this name in the namespace of this thread. `node` is the address of the other end.
    pub fn open(name: &str, node: [u8; 6]) -> io::Result<Self> {
        let address = link_address(name)?;
        let own = address.addr().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        bind(socket.as_raw_fd(), &address)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        let mut ethernet = [0; 12];
        ethernet[..6].copy_from_slice(&node);
        ethernet[6..].copy_from_slice(&own);
        Ok(Self { socket, ethernet })
    }

    /// Sends a packet to the node.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let kind: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        let frame = [&self.ethernet[..], &kind, packet].concat();
        send(self.socket.as_raw_fd(), &frame, MsgFlags::empty())?;
        Ok(())
    }

    /// Takes what the node sent here.
    pub fn receive(&self, take: &mut impl FnMut(Sight)) -> io::Result<()> {
        drain(&self.socket, |frame| wire::read(frame.get(ETHERNET..)?), take)
    }
}

/// The node's own end: sends as a process on it would, and sees what it delivers to such.
pub struct Own {
    v4: Socket,
    v6: Socket,
    kept_v4: Vec<Socket>,
    kept_v6: Vec<(u8, Socket)>,
}

impl Own {
    /// Opens them in the namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let raw = |domain: Domain, protocol: i32| -> io::Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(ProtocolNumber::from(protocol)))?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            Ok(socket)
        };
        // With this protocol the sender writes the IP header.
        const RAW: i32 = 255;
        let kept_v6 = |protocol: u8| -> io::Result<(u8, Socket)> {
            let socket = raw(Domain::IPV6, protocol.into())?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            Ok((protocol, socket))
        };
        Ok(Self {
            v4: raw(Domain::IPV4, RAW)?,
            v6: raw(Domain::IPV6, RAW)?,
            kept_v4: KEPT_V4.iter().map(|protocol| raw(Domain::IPV4, (*protocol).into())).collect::<Result<_, _>>()?,
            kept_v6: KEPT_V6.iter().map(|protocol| kept_v6(*protocol)).collect::<Result<_, _>>()?,
        })
    }

    /// Sends a packet that the node itself makes.
    pub fn send(&self, packet: &[u8], destination: IpAddr) -> io::Result<()> {
        let socket = if destination.is_ipv4() { &self.v4 } else { &self.v6 };
        match socket.send_to(packet, &SocketAddr::new(destination, 0).into()) {
            // A dropped packet comes back as this.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other.map(drop),
        }
    }

    /// Takes what the node delivered to itself.
    pub fn receive(&self, take: &mut impl FnMut(Sight)) -> io::Result<()> {
        for socket in &self.kept_v4 {
            drain(socket, wire::read, take)?;
        }
        for (protocol, socket) in &self.kept_v6 {
            while let Some((source, destination, payload)) = receive_v6(socket)? {
                if let Some(seen) = wire::read_payload(source, destination, *protocol, &payload) {
                    take(seen);
                }
            }
        }
        Ok(())
    }
}

fn drain(socket: &impl AsFd, read: impl Fn(&[u8]) -> Option<Sight>, take: &mut impl FnMut(Sight)) -> io::Result<()> {
    let mut buffer = [0; 2048];
    loop {
        match recv(socket.as_fd().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => read(&buffer[..length]).into_iter().for_each(&mut *take),
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Raw IPv6 sockets give no IP header; the addresses come beside.
fn receive_v6(socket: &Socket) -> io::Result<Option<(IpAddr, IpAddr, Vec<u8>)>> {
    let mut buffer = [0; 2048];
    let mut space = nix::cmsg_space!(nix::libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = match recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()) {
        Ok(message) => message,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let source = message.address.map(|address| IpAddr::V6(address.ip()));
    let destination = message.cmsgs()?.find_map(|control| {
        let ControlMessageOwned::Ipv6PacketInfo(info) = control else { return None };
        Some(IpAddr::from(info.ipi6_addr.s6_addr))
    });
    let length = message.bytes;
    let (Some(source), Some(destination)) = (source, destination) else {
        return Err(io::Error::other("a packet without addresses"));
    };
    Ok(Some((source, destination, buffer[..length].to_vec())))
}

fn link_address(name: &str) -> io::Result<LinkAddr> {
    getifaddrs()?
        .filter(|interface| interface.interface_name == name)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no interface {name}")))
}
