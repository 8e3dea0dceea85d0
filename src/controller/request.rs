//! What a Service asks for: families, perhaps a pool, perhaps addresses.

use std::net::IpAddr;

use super::refusal::Refusal;
use crate::model::Family;
use crate::model::address::parse_address;
use crate::model::service::{FamilyPolicy, Service};
use crate::names::PoolName;

/// What a Service asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// One family, or two; the primary one first.
    pub families: Vec<Family>,
    /// Whether one of two families is enough.
    pub takes_one_of_two: bool,
    /// Only from this pool.
    pub pool: Option<PoolName>,
    /// Exactly these addresses, at most one of a family. A family without one is served from any pool.
    pub addresses: Vec<IpAddr>,
}

impl Request {
    /// Reads the request of a Service.
    ///
    /// # Errors
    /// When the Service contradicts itself, or has no cluster IP yet.
    pub fn of(service: &Service) -> Result<Self, Refusal> {
        let mut families: Vec<Family> = service.cluster_ips.iter().map(|address| Family::of(*address)).collect();
        families.dedup();
        if families.is_empty() {
            return Err(Refusal::NoClusterIp);
        }
        if service.family_policy == FamilyPolicy::RequireDualStack && families.len() < 2 {
            return Err(Refusal::OneClusterIp);
        }
        let addresses = match (&service.annotations.load_balancer_ips, &service.load_balancer_ip) {
            (Some(_), Some(_)) => return Err(Refusal::AskedTwice),
            (Some(text), None) | (None, Some(text)) => addresses(text, &families)?,
            (None, None) => Vec::new(),
        };
        Ok(Self {
            takes_one_of_two: families.len() > 1 && service.family_policy != FamilyPolicy::RequireDualStack,
            families,
            pool: service.annotations.address_pool.as_deref().map(PoolName::new),
            addresses,
        })
    }

    /// The address that is asked for in a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

fn addresses(text: &str, families: &[Family]) -> Result<Vec<IpAddr>, Refusal> {
    let mut kept: Vec<IpAddr> = Vec::new();
    for part in text.split(',') {
        let address = parse_address(part).ok_or_else(|| Refusal::UnreadableAddress(part.trim().to_owned()))?;
        let family = Family::of(address);
        if !families.contains(&family) {
            return Err(Refusal::FamilyNotServed { address, families: families.to_vec() });
        }
        if kept.iter().any(|known| Family::of(*known) == family) {
            return Err(Refusal::TwoOfOneFamily(family));
        }
        kept.push(address);
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;

    use super::*;

    fn request(spec: &str, annotations: &str) -> Result<Request, Refusal> {
        let text = format!("metadata: {{name: a, namespace: b, annotations: {annotations}}}\nspec: {spec}");
        Request::of(&Service::try_from(&serde_saphyr::from_str::<core::Service>(&text).unwrap()).unwrap())
    }

    #[test]
    fn families_are_those_of_the_cluster_ips() {
        let prefer = request("{ipFamilyPolicy: PreferDualStack, clusterIPs: [10.0.0.1]}", "{}").unwrap();
        assert_eq!((prefer.families, prefer.takes_one_of_two), (vec![Family::V4], false));
        let dual = request("{ipFamilyPolicy: PreferDualStack, clusterIPs: ['fd00::1', 10.0.0.1]}", "{}").unwrap();
        assert_eq!((dual.families, dual.takes_one_of_two), (vec![Family::V6, Family::V4], true));
        let required = "{ipFamilyPolicy: RequireDualStack, clusterIPs: [10.0.0.1]}";
        assert_eq!(request(required, "{}"), Err(Refusal::OneClusterIp));
        assert_eq!(request("{}", "{}"), Err(Refusal::NoClusterIp));
    }

    #[test]
    fn contradictions_are_refused() {
        let single = "{clusterIPs: [10.0.0.1]}";
        let ask = |text: &str| format!("{{steelyard.dev/loadBalancerIPs: '{text}'}}");
        assert_eq!(request(single, &ask("1.2.3.4")).unwrap().addresses, ["1.2.3.4".parse::<IpAddr>().unwrap()]);
        assert_eq!(request(single, &ask("x")), Err(Refusal::UnreadableAddress("x".into())));
        assert_eq!(request(single, &ask("1.2.3.4, 1.2.3.5")), Err(Refusal::TwoOfOneFamily(Family::V4)));
        assert!(matches!(request(single, &ask("1::2")), Err(Refusal::FamilyNotServed { .. })));
        let both = "{clusterIPs: [10.0.0.1], loadBalancerIP: 1.2.3.4}";
        assert_eq!(request(both, &ask("1.2.3.4")), Err(Refusal::AskedTwice));
    }
}
