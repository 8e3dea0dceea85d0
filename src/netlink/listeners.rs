//! Who listens on a TCP port in this network namespace.
//!
//! From `/proc`, where listening sockets come before all others: the rest, which may be long, is not read.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: SocketAddr,
    /// The socket's number, the same in `/proc/PID/fd`.
    pub inode: u64,
}

/// Those on a port, of both families.
///
/// # Errors
/// When `/proc` cannot be read. A machine without IPv6 has no table of it, which is no error.
pub fn listeners(ports: &[u16]) -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for file in ["tcp", "tcp6"] {
        let table = match File::open(format!("/proc/thread-self/net/{file}")) {
            Ok(table) => table,
            Err(error) if file == "tcp6" && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(table).lines().skip(1) {
            match read(&line?) {
                Some(Line::Listening(listener)) if ports.contains(&listener.address.port()) => found.push(listener),
                Some(Line::Listening(_)) | None => {}
                Some(Line::Other) => break,
            }
        }
    }
    Ok(found)
}

/// The sockets of this process.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn own_sockets() -> io::Result<BTreeSet<u64>> {
    let mut own = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // A file that was closed meanwhile is none of ours.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let number: Option<u64> =
            target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        own.extend(number);
    }
    Ok(own)
}

enum Line {
    Listening(Listener),
    Other,
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`, see `Documentation/networking/proc_net_tcp.rst`.
fn read(line: &str) -> Option<Line> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    if fields.nth(1)? != LISTEN {
        return Some(Line::Other);
    }
    let inode = fields.nth(5)?.parse().ok()?;
    let (address, port) = local.split_once(':')?;
    let address = SocketAddr::new(address_of(address)?, u16::from_str_radix(port, 16).ok()?);
    Some(Line::Listening(Listener { address, inode }))
}

/// Words of 32 bits, each printed as the machine's number though its bytes are in network order.
fn address_of(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for start in (0..text.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(text.get(start..start + 8)?, 16).ok()?.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_and_known_as_ours() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let found = listeners(&[address.port()]).unwrap();
            let [found] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!(found.address, address);
            assert!(own_sockets().unwrap().contains(&found.inode));
        }
    }
}
