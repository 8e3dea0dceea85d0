//! Annotations of a Service that we read, in our spelling and in MetalLB's.

use std::collections::BTreeMap;

/// Assign from this pool only; also from one with `autoAssign: false`.
pub const ADDRESS_POOL: &str = "steelyard.dev/address-pool";
/// Assign exactly these addresses: a comma-separated list, at most one of each family.
pub const LOAD_BALANCER_IPS: &str = "steelyard.dev/loadBalancerIPs";
/// Services with an equal key may share an address. Read, not honoured yet.
pub const ALLOW_SHARED_IP: &str = "steelyard.dev/allow-shared-ip";
/// Written by the controller: the pool that the addresses came from.
pub const ALLOCATED_FROM_POOL: &str = "steelyard.dev/allocated-from-pool";

/// Written by the controller where a write must be seen though nothing else changes: the resource version that it was
/// decided on.
pub const DECIDED_ON: &str = "steelyard.dev/decided-on";

/// MetalLB's prefixes, current and old.
const METALLB_PREFIXES: [&str; 2] = ["metallb.io", "metallb.universe.tf"];

/// The annotations of one Service. Where several spellings stand, ours wins, then the newer of MetalLB's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// [`ADDRESS_POOL`].
    pub address_pool: Option<String>,
    /// [`LOAD_BALANCER_IPS`], as written.
    pub load_balancer_ips: Option<String>,
    /// [`ALLOW_SHARED_IP`].
    pub allow_shared_ip: Option<String>,
    /// [`ALLOCATED_FROM_POOL`]; only our own spelling, since MetalLB's tells where *its* address came from.
    pub allocated_from_pool: Option<String>,
}

impl Annotations {
    /// Reads them from an object's metadata. An empty value counts as absent.
    pub fn read(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let value = |key: &str| {
            annotations.and_then(|all| all.get(key)).map(|text| text.trim()).filter(|text| !text.is_empty())
        };
        let any_spelling = |key: &str| {
            let suffix = key.split_once('/').map_or(key, |(_, suffix)| suffix);
            let foreign = METALLB_PREFIXES.iter().find_map(|prefix| value(&format!("{prefix}/{suffix}")));
            value(key).or(foreign).map(str::to_owned)
        };
        Self {
            address_pool: any_spelling(ADDRESS_POOL),
            load_balancer_ips: any_spelling(LOAD_BALANCER_IPS),
            allow_shared_ip: any_spelling(ALLOW_SHARED_IP),
            allocated_from_pool: value(ALLOCATED_FROM_POOL).map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Annotations {
        Annotations::read(Some(&pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()))
    }

    #[test]
    fn ours_wins_over_metallb_and_new_over_old() {
        let all = [
            ("metallb.universe.tf/address-pool", "old"),
            ("metallb.io/address-pool", "new"),
            ("steelyard.dev/address-pool", "ours"),
        ];
        assert_eq!(read(&all).address_pool.as_deref(), Some("ours"));
        assert_eq!(read(&all[..2]).address_pool.as_deref(), Some("new"));
        assert_eq!(read(&all[..1]).address_pool.as_deref(), Some("old"));
    }

    #[test]
    fn empty_is_absent() {
        assert_eq!(read(&[("steelyard.dev/loadBalancerIPs", " ")]), Annotations::default());
    }
}
