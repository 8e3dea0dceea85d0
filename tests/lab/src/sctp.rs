//! The opening of an SCTP association by raw packets (RFC 9260 §3): many kernels can forward SCTP, but not speak it.
//!
//! ```text
//!  0                   1                   2                   3
//! |        Source Port            |      Destination Port         |
//! |                       Verification Tag                        |
//! |                   Checksum (CRC32c, little-endian)            |
//! |  Chunk Type   |  Chunk Flags  |         Chunk Length          |
//! |        INIT and INIT ACK: Initiate Tag                        |
//! |                     a_rwnd                                    |
//! |  Outbound Streams             |  Inbound Streams              |
//! |                     Initial TSN                               |
//! |        INIT ACK: parameters, here the State Cookie            |
//! ```

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::place::Vantage;

const SCTP: i32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
/// Parameter type of the State Cookie.
const STATE_COOKIE: u16 = 7;
/// Between two looks of a server at whether it should stop.
const PERIOD: Duration = Duration::from_millis(100);

/// The answer to an INIT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SctpReply {
    /// Somebody would talk: the server's name and the client's address as the server saw it.
    InitAck {
        /// The name of the [`SctpServer`].
        server: String,
        /// Who the server thinks asked.
        client: SocketAddr,
    },
    /// Somebody refuses.
    Abort,
}

/// One packet with one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    source: u16,
    destination: u16,
    tag: u32,
    chunk: u8,
    /// What follows the chunk's length.
    value: Vec<u8>,
}

impl Packet {
    fn encode(&self) -> Vec<u8> {
        let length = u16::try_from(self.value.len() + 4).unwrap_or(u16::MAX);
        let mut bytes = Vec::with_capacity(16 + self.value.len());
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.chunk, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.value);
        // Chunks end at a multiple of four.
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let checksum = crc32c(&bytes).to_le_bytes();
        bytes.splice(8..12, checksum);
        bytes
    }

    /// A packet with a right checksum.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let mut zeroed = bytes.to_vec();
        zeroed.get_mut(8..12)?.fill(0);
        if bytes.get(8..12)? != crc32c(&zeroed).to_le_bytes() {
            return None;
        }
        let length = usize::from(short(14)?);
        let value = bytes.get(16..12 + length)?.to_vec();
        Some(Self { source: short(0)?, destination: short(2)?, tag: long(4)?, chunk: *bytes.get(12)?, value })
    }

    /// The initiate tag of an INIT or INIT ACK.
    fn initiate_tag(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.get(..4)?.try_into().ok()?))
    }

    /// The State Cookie of an INIT ACK, if it is the first parameter.
    fn cookie(&self) -> Option<&[u8]> {
        let header = self.value.get(16..20)?;
        let kind = u16::from_be_bytes(header.get(..2)?.try_into().ok()?);
        let length = usize::from(u16::from_be_bytes(header.get(2..)?.try_into().ok()?));
        (kind == STATE_COOKIE).then(|| self.value.get(20..16 + length)).flatten()
    }
}

/// The fixed part of INIT and INIT ACK.
fn init_value(tag: u32) -> Vec<u8> {
    let mut value = Vec::new();
    value.extend(tag.to_be_bytes());
    value.extend(65536_u32.to_be_bytes());
    value.extend([0, 1, 0, 1]);
    value.extend(tag.to_be_bytes());
    value
}

/// CRC32c as of RFC 9260 appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

impl Vantage {
    /// Send an INIT from port `source` and wait for the answer.
    pub fn sctp_probe(&self, source: u16, target: SocketAddr, limit: Duration) -> Result<SctpReply> {
        let exchange = || -> Result<SctpReply> {
            let socket = self.within(|| raw_socket(target.is_ipv4()))?;
            let tag = 0x5713_0000 | u32::from(source);
            let init =
                Packet { source, destination: target.port(), tag: 0, chunk: INIT, value: init_value(tag) }.encode();
            send(&socket, &init, target.ip())?;
            let end = Instant::now() + limit;
            loop {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::Error::from(ErrorKind::TimedOut).into());
                }
                let Some((packet, from)) = receive(&socket, left)? else { continue };
                if from != target.ip() || packet.source != target.port() || packet.destination != source || packet.tag != tag {
                    continue;
                }
                match packet.chunk {
                    INIT_ACK => {
                        let cookie = packet.cookie().map(String::from_utf8_lossy).context("an INIT ACK without cookie")?;
                        let (server, client) = cookie.split_once(' ').context("not a cookie of ours")?;
                        return Ok(SctpReply::InitAck { server: server.to_owned(), client: client.parse()? });
                    }
                    ABORT => return Ok(SctpReply::Abort),
                    _ => {}
                }
            }
        };
        exchange().with_context(|| format!("no SCTP answer from {target} to {}", self.name()))
    }

    /// Answer INITs on `port`, both families, until the server is dropped.
    pub fn sctp_serve(&self, port: u16) -> Result<SctpServer> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for ipv4 in [true, false] {
            let socket = self.within(|| raw_socket(ipv4))?;
            let (name, stop) = (self.name().to_owned(), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // A packet that cannot be read or answered is lost, as on any network.
                    if let Ok(Some((packet, from))) = receive(&socket, PERIOD) {
                        answer(&socket, &packet, from, port, &name);
                    }
                }
            }));
        }
        Ok(SctpServer { stop, threads })
    }
}

/// Answers INITs until dropped.
#[derive(Debug)]
pub struct SctpServer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn answer(socket: &Socket, packet: &Packet, from: IpAddr, port: u16, name: &str) -> Option<()> {
    if packet.chunk != INIT || packet.destination != port {
        return None;
    }
    let cookie = format!("{} {}", name, SocketAddr::new(from, packet.source));
    let mut value = init_value(0x0a0c_0001);
    value.extend(STATE_COOKIE.to_be_bytes());
    value.extend(u16::try_from(cookie.len() + 4).ok()?.to_be_bytes());
    value.extend(cookie.as_bytes());
    let tag = packet.initiate_tag()?;
    let reply = Packet { source: port, destination: packet.source, tag, chunk: INIT_ACK, value };
    send(socket, &reply.encode(), from).ok()
}

fn raw_socket(ipv4: bool) -> Result<Socket> {
    let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP))).context("failed to open a raw socket")
}

fn send(socket: &Socket, bytes: &[u8], to: IpAddr) -> Result<()> {
    // The port of a raw socket's address means nothing.
    socket.send_to(bytes, &SockAddr::from(SocketAddr::new(to, 0)))?;
    Ok(())
}

fn receive(socket: &Socket, limit: Duration) -> Result<Option<(Packet, IpAddr)>> {
    socket.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
    let mut buffer = [0_u8; 2048];
    let (length, from) = match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
        Ok(received) => received,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let bytes = buffer.get(..length).unwrap_or_default();
    let v4 = from.as_ref().and_then(SockaddrStorage::as_sockaddr_in).map(|address| IpAddr::from(address.ip()));
    let v6 = from.as_ref().and_then(SockaddrStorage::as_sockaddr_in6).map(|address| IpAddr::from(address.ip()));
    let Some(from) = v4.or(v6) else { return Ok(None) };
    // IPv4 raw sockets give the IP header too.
    let header = if from.is_ipv4() { bytes.first().map_or(0, |first| usize::from(first & 0xf) * 4) } else { 0 };
    Ok(bytes.get(header..).and_then(Packet::decode).map(|packet| (packet, from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of the catalogue of CRCs.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn packets_round_trip() {
        let packet = Packet { source: 1, destination: 2, tag: 3, chunk: INIT, value: init_value(7) };
        assert_eq!(Packet::decode(&packet.encode()), Some(packet.clone()));
        assert_eq!(packet.initiate_tag(), Some(7));
        let mut broken = packet.encode();
        broken[2] ^= 1;
        assert_eq!(Packet::decode(&broken), None);
        assert_eq!(Packet::decode(&[]), None);
    }
}
