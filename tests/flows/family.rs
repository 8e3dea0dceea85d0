//! A case in the other family: every address in it swapped, all that it says about them kept.
//!
//! An IPv4 address becomes the last 32 bits of an IPv6 one. The other way there is no room, so each IPv6 prefix of the
//! case gets an IPv4 block of its own, inside the block of the prefix around it: what contained an address still does.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;
use steelyard::model::address::{parse_address, parse_prefix};

use super::expect::socket_address;

/// Where IPv4 addresses go; a /96 of the documentation range.
const EMBEDDED: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 0);
/// The first octet of the first block for IPv6 prefixes.
const FIRST_BLOCK: u8 = 20;
/// Fields that hold text for people, or names, which may look like addresses and are none.
const NAMES: [&str; 5] = ["name", "test", "variant", "hostname", "service"];

/// Maps a case. Fails where its IPv6 prefixes are nested deeper, or are more, than there are blocks for.
pub fn mapped_to_other_family(case: &Value) -> Result<Value, String> {
    let mut found = Vec::new();
    collect(case, &mut found);
    let blocks = Blocks::new(&found)?;
    Ok(rewrite(case, &blocks))
}

/// Something with an address in it.
#[derive(Clone, Copy)]
enum Text {
    Address(IpAddr),
    Endpoint(SocketAddr),
    Prefix(IpNet),
}

impl Text {
    fn read(text: &str) -> Option<Self> {
        parse_address(text)
            .map(Self::Address)
            .or_else(|| parse_prefix(text).map(Self::Prefix))
            .or_else(|| socket_address(text).ok().map(Self::Endpoint))
    }
}

fn is_name(field: &str, value: &Value) -> bool {
    field == "labels" || (value.is_string() && NAMES.contains(&field))
}

fn collect(value: &Value, found: &mut Vec<Text>) {
    match value {
        Value::String(text) => found.extend(Text::read(text)),
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(fields) => {
            fields.iter().filter(|(name, item)| !is_name(name, item)).for_each(|(_, item)| collect(item, found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn rewrite(value: &Value, blocks: &Blocks) -> Value {
    match value {
        Value::String(text) => Value::String(match (text.as_str(), Text::read(text)) {
            ("IPv4", _) => "IPv6".to_owned(),
            ("IPv6", _) => "IPv4".to_owned(),
            (_, Some(Text::Address(address))) => blocks.map(address).to_string(),
            (_, Some(Text::Endpoint(endpoint))) => {
                SocketAddr::new(blocks.map(endpoint.ip()), endpoint.port()).to_string()
            }
            (_, Some(Text::Prefix(prefix))) => blocks.map_prefix(prefix).to_string(),
            (other, None) => other.to_owned(),
        }),
        Value::Array(items) => items.iter().map(|item| rewrite(item, blocks)).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, item)| {
                let item = if is_name(name, item) { item.clone() } else { rewrite(item, blocks) };
                (name.clone(), item)
            })
            .collect(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_)) => other.clone(),
    }
}

/// Which IPv4 address or block stands for which IPv6 one.
struct Blocks(BTreeMap<Ipv6Net, Ipv4Net>);

impl Blocks {
    fn new(found: &[Text]) -> Result<Self, String> {
        let mut prefixes: Vec<Ipv6Net> = found
            .iter()
            .filter_map(|text| match text {
                Text::Address(IpAddr::V6(address)) => Some(Ipv6Net::from(*address)),
                Text::Endpoint(SocketAddr::V6(endpoint)) => Some(Ipv6Net::from(*endpoint.ip())),
                Text::Prefix(IpNet::V6(prefix)) => Some(prefix.trunc()),
                Text::Address(_) | Text::Endpoint(_) | Text::Prefix(_) => None,
            })
            .filter(|prefix| prefix.prefix_len() > 0 && !prefix.addr().is_loopback())
            .collect();
        // Outer prefixes first, so that each finds the block of the one around it.
        prefixes.sort_by_key(|prefix| (prefix.prefix_len(), prefix.addr()));
        prefixes.dedup();
        let mut blocks: BTreeMap<Ipv6Net, Ipv4Net> = BTreeMap::new();
        let mut used: BTreeMap<Option<Ipv6Net>, (u8, u8)> = BTreeMap::new();
        for prefix in prefixes {
            let around = blocks.keys().filter(|outer| outer.contains(&prefix)).max_by_key(|outer| outer.prefix_len());
            let around = around.copied();
            let (inner, hosts) = used.entry(around).or_default();
            let outer = around.and_then(|outer| blocks.get(&outer)).copied();
            let taken = if prefix.prefix_len() == 128 { hosts } else { inner };
            *taken = taken.checked_add(1).filter(|count| *count < 200).ok_or("too many IPv6 addresses to map")?;
            blocks.insert(prefix, block(outer, *taken, prefix.prefix_len() == 128)?);
        }
        Ok(Self(blocks))
    }

    fn map(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) if address.is_loopback() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            IpAddr::V6(address) if address.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V4(address) => IpAddr::V6(embed(address)),
            IpAddr::V6(address) => {
                let block = self.0.get(&Ipv6Net::from(address));
                IpAddr::V4(block.map_or(Ipv4Addr::UNSPECIFIED, Ipv4Net::addr))
            }
        }
    }

    fn map_prefix(&self, prefix: IpNet) -> IpNet {
        match prefix {
            IpNet::V4(prefix) if prefix.prefix_len() == 0 => IpNet::V6(Ipv6Net::default()),
            IpNet::V4(prefix) if prefix.addr().is_loopback() => IpNet::V6(Ipv6Addr::LOCALHOST.into()),
            IpNet::V4(prefix) => {
                let length = 96_u8.saturating_add(prefix.prefix_len()).min(128);
                IpNet::V6(Ipv6Net::new_assert(embed(prefix.addr()), length))
            }
            IpNet::V6(prefix) if prefix.addr().is_loopback() => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 8)),
            IpNet::V6(prefix) => IpNet::V4(self.0.get(&prefix.trunc()).copied().unwrap_or_default()),
        }
    }
}

/// The `number`th host or inner block of a block: /8 in all addresses, /16 in a /8, /24 in a /16. Hosts stand where the
/// octet of inner blocks is 0.
fn block(outer: Option<Ipv4Net>, number: u8, is_host: bool) -> Result<Ipv4Net, String> {
    let [a, b, c, _] = outer.map_or([0; 4], |outer| outer.addr().octets());
    let (octets, length) = match (outer.map(|outer| outer.prefix_len()), is_host) {
        (None, true) => ([198, 18, 0, number], 32),
        (None, false) => ([FIRST_BLOCK.saturating_add(number).min(126), 0, 0, 0], 8),
        (Some(8), true) => ([a, 0, 0, number], 32),
        (Some(8), false) => ([a, number, 0, 0], 16),
        (Some(16), true) => ([a, b, 0, number], 32),
        (Some(16), false) => ([a, b, number, 0], 24),
        (Some(24), true) => ([a, b, c, number], 32),
        (Some(_), _) => return Err("IPv6 prefixes nested too deep to map".to_owned()),
    };
    Ok(Ipv4Net::new_assert(Ipv4Addr::from(octets), length))
}

fn embed(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(EMBEDDED.to_bits() | u128::from(address.to_bits()))
}
