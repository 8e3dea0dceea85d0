//! Reading addresses and prefixes as Kubernetes objects spell them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Reads an address leniently: octets with leading zeros are decimal, white space around is ignored, an IPv4-mapped
/// IPv6 address is the IPv4 address.
///
/// Old objects carry such "sloppy" addresses and the API server keeps them (KEP-4858); every other reader in the
/// cluster takes the octets as decimal (CVE-2021-29923 is about reading them as octal).
pub fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4));
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 3 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Reads a prefix as leniently as [`parse_address`]; bits behind the prefix length are cleared.
pub fn parse_prefix(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    if length.is_empty() || length.len() > 3 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    IpNet::new(parse_address(address)?, length.parse().ok()?).ok().map(|net| net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(parse_address("172.30.0.041"), Some("172.30.0.41".parse().unwrap()));
        assert_eq!(parse_prefix(" 203.0.113.000/025"), Some("203.0.113.0/25".parse().unwrap()));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(parse_address("::ffff:192.0.2.1"), Some("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.-4", "a.b.c.d", "1.2.3.0004", "fd00::g", "1..2.3"] {
            assert_eq!(parse_address(text), None, "{text}");
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "fd00::/129", "10.0.0.0/+8"] {
            assert_eq!(parse_prefix(text), None, "{text}");
        }
    }
}
