//! A socket for the Ethernet frames of one protocol on one interface (`packet(7)`), with a kernel filter that is in
//! place before the first frame can be queued, so that broadcast floods cost nothing here.

#![allow(unsafe_code, reason = "sockaddr_ll and packet_mreq have no safe constructor in any crate we use")]

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::model::link::{InterfaceIndex, Mac};

/// The protocol number of ARP in an Ethernet header.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// The protocol number of IPv6 in an Ethernet header.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// The longest classic filter that the kernel takes (`BPF_MAXINSNS`).
pub const LONGEST_FILTER: usize = 4096;

/// One instruction of a classic BPF program, as in `linux/filter.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// How many instructions to skip when it does not.
    pub jump_false: u8,
    /// The operand.
    pub operand: u32,
}

/// A raw packet socket bound to one interface and one protocol.
#[derive(Debug)]
pub struct PacketSocket(AsyncFd<Socket>);

impl PacketSocket {
    /// Opens a socket that gets the frames of `ethertype` which `filter` lets pass.
    ///
    /// # Errors
    /// When the process lacks `CAP_NET_RAW`, the interface is gone, or the filter is too long.
    pub fn open(index: InterfaceIndex, ethertype: u16, filter: &[Instruction]) -> io::Result<Self> {
        // Protocol 0: nothing is queued until `bind` names the protocol, and by then the filter is in place.
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(Protocol::from(0)))?;
        attach(&socket, filter)?;
        socket.bind(&link_address(index, ethertype)?)?;
        // SAFETY: the descriptor is open and belongs to the `Socket`, which moves into the `AsyncFd` and is never replaced.
        let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Replaces the filter at once; no frame passes unfiltered in between.
    ///
    /// # Errors
    /// When the filter is too long, or `OutOfMemory` when the old and the new one together are more than the kernel
    /// allows a socket (`net.core.optmem_max`: 20 KiB before Linux 6.8, 128 KiB since). The old one stays then.
    pub fn set_filter(&self, filter: &[Instruction]) -> io::Result<()> {
        attach(self.0.get_ref(), filter)
    }

    /// Lets all frames of the protocol pass.
    ///
    /// # Errors
    /// When there is no filter.
    pub fn clear_filter(&self) -> io::Result<()> {
        self.0.get_ref().detach_filter()
    }

    /// Has the interface receive frames to this group. Ends with the socket, or with [`Self::leave`].
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn join(&self, index: InterfaceIndex, group: Mac) -> io::Result<()> {
        self.set_membership(libc::PACKET_ADD_MEMBERSHIP, index, group)
    }

    /// Undoes one [`Self::join`].
    ///
    /// # Errors
    /// When the group was not joined.
    pub fn leave(&self, index: InterfaceIndex, group: Mac) -> io::Result<()> {
        self.set_membership(libc::PACKET_DROP_MEMBERSHIP, index, group)
    }

    /// Receives one frame; a longer one is cut. Cancel safe.
    ///
    /// # Errors
    /// `ENETDOWN` when the interface went down: the socket lives on and receives again when it is up.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(result) = ready.try_io(|socket| socket.get_ref().read(buffer)) {
                return result;
            }
        }
    }

    /// Sends one frame, header included.
    ///
    /// # Errors
    /// When the interface is down, or its queue is full (`WouldBlock`, `ENOBUFS`): frames are lost on a wire too, so a
    /// caller never waits for room.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut socket = self.0.get_ref();
        let sent = socket.write(frame)?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn set_membership(&self, action: libc::c_int, index: InterfaceIndex, group: Mac) -> io::Result<()> {
        let [a, b, c, d, e, f] = group.octets();
        let request = libc::packet_mreq {
            mr_ifindex: signed(index)?,
            mr_type: libc::PACKET_MR_MULTICAST as libc::c_ushort,
            mr_alen: 6,
            mr_address: [a, b, c, d, e, f, 0, 0],
        };
        // SAFETY: the option's value is a `packet_mreq`; pointer and length describe exactly that local value, which
        // outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.0.get_ref().as_raw_fd(),
                libc::SOL_PACKET,
                action,
                (&raw const request).cast(),
                size_of::<libc::packet_mreq>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn attach(socket: &Socket, filter: &[Instruction]) -> io::Result<()> {
    if filter.len() > LONGEST_FILTER {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let program: Vec<SockFilter> =
        filter.iter().map(|step| SockFilter::new(step.code, step.jump_true, step.jump_false, step.operand)).collect();
    socket.attach_filter(&program)
}

fn link_address(index: InterfaceIndex, ethertype: u16) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is a `sockaddr_*` type of this platform, as `view_as` demands.
    let address: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = signed(index)?;
    // SAFETY: the storage holds a `sockaddr_ll` with its family set, and the length is that of `sockaddr_ll`.
    Ok(unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) })
}

fn signed(index: InterfaceIndex) -> io::Result<libc::c_int> {
    libc::c_int::try_from(index.number()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
