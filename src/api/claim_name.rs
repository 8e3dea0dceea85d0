//! The name of an address's claim: the address with dashes, IPv6 spelled out.
//!
//! `192.0.2.1` is `192-0-2-1`, `2001:db8::1` is `2001-0db8-0000-0000-0000-0000-0000-0001`. Every address has one name
//! and every name one address, and the names of a family sort as its addresses do where digits allow.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::names::ClaimName;

/// The name of the claim of an address.
pub fn claim_name(address: IpAddr) -> ClaimName {
    match address {
        IpAddr::V4(address) => ClaimName::new(address.to_string().replace('.', "-")),
        IpAddr::V6(address) => {
            let mut name = String::with_capacity(39);
            for segment in address.segments() {
                let dash = if name.is_empty() { "" } else { "-" };
                // Writing to a string cannot fail.
                let _written = write!(name, "{dash}{segment:04x}");
            }
            ClaimName::new(name)
        }
    }
}

/// The address that a claim of this name claims. Gives nothing for a name that [`claim_name`] would not make.
pub fn claimed_address(name: &ClaimName) -> Option<IpAddr> {
    let text = name.as_str();
    let address = text
        .replace('-', ".")
        .parse::<Ipv4Addr>()
        .map(IpAddr::V4)
        .or_else(|_| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6))
        .ok()?;
    (claim_name(address) == *name).then_some(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_valid_object_names() {
        assert_eq!(claim_name("192.0.2.1".parse().unwrap()).as_str(), "192-0-2-1");
        let v6 = claim_name("2001:db8::1".parse().unwrap());
        assert_eq!(v6.as_str(), "2001-0db8-0000-0000-0000-0000-0000-0001");
    }

    #[test]
    fn other_spellings_name_no_address() {
        for name in ["", "192-0-2", "192-0-2-01", "192.0.2.1", "2001-db8--1", "2001-0DB8-0000-0000-0000-0000-0000-0001"]
        {
            assert_eq!(claimed_address(&name.into()), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_address_has_one_name(address: IpAddr) {
            prop_assert_eq!(claimed_address(&claim_name(address)), Some(address));
        }
    }
}
