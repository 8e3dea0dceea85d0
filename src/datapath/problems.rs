//! What the datapath cannot do for a Service, as the Service's condition will say it.

use std::collections::{BTreeMap, BTreeSet};

use super::apply::Quarantine;
use super::desired::Conflict;
use super::entry::EntryKey;
use crate::model::problem::Problem;

/// Another Service has the address and port.
const FRONTEND_TAKEN: &str = "FrontendTaken";
/// The kernel does not take it.
const REFUSED: &str = "RefusedByKernel";
/// A limit of our own.
const EXHAUSTED: &str = "Exhausted";

/// Of every Service and Service port that goes without something.
pub(super) fn problems<'a>(
    conflicts: impl IntoIterator<Item = &'a Conflict>,
    quarantined: &BTreeMap<EntryKey, Quarantine>,
    unusable: impl IntoIterator<Item = &'a Problem>,
) -> BTreeSet<Problem> {
    let conflicts = conflicts
        .into_iter()
        .map(|conflict| Problem::of_service(conflict.loser.port.service.clone(), FRONTEND_TAKEN, conflict.to_string()));
    let quarantined = quarantined.iter().map(|(key, why)| {
        let reason = match why {
            Quarantine::Refused(_) => REFUSED,
            Quarantine::Exhausted(_) => EXHAUSTED,
        };
        let how = if why.is_partial() { "is forwarded without session affinity" } else { "is not forwarded" };
        let message = format!("{} ({}) {how}: {why}", key.port, key.family);
        Problem::of_service(key.port.service.clone(), reason, message)
    });
    conflicts.chain(quarantined).chain(unusable.into_iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Protocol};
    use crate::names::{PortName, ServiceKey, ServicePortKey};

    #[test]
    fn a_quarantined_port_is_told_with_its_family() {
        let port = ServicePortKey {
            service: ServiceKey::new("default", "web"),
            port: PortName::new("http"),
            protocol: Protocol::Tcp,
        };
        let key = EntryKey { port, family: Family::V6 };
        let quarantined = [(key, Quarantine::Refused("ENOSPC".to_owned()))].into();
        let told: Vec<Problem> = problems([], &quarantined, []).into_iter().collect();
        let message = "default/web:http/TCP (IPv6) is not forwarded: the kernel refuses it: ENOSPC";
        assert_eq!(told, [Problem::of_service(ServiceKey::new("default", "web"), "RefusedByKernel", message)]);
    }
}
