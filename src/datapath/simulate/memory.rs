//! Where clients went last, as far as their Services have session affinity.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::datapath::entry::EntryKey;
use crate::model::service::TrafficPolicy;

/// Endpoints by Service port, policy and client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pins: BTreeMap<(EntryKey, TrafficPolicy, IpAddr), SocketAddr>,
}

impl Memory {
    /// A client went there. Both policies share what they remember where both may use the endpoint: then this is to be
    /// told of both.
    pub fn remember(&mut self, key: &EntryKey, policy: TrafficPolicy, client: IpAddr, endpoint: SocketAddr) {
        self.pins.insert((key.clone(), policy, client), endpoint);
    }

    /// Where a client went last, whether or not that may still be used.
    pub fn endpoint_of(&self, key: &EntryKey, policy: TrafficPolicy, client: IpAddr) -> Option<SocketAddr> {
        self.pins.get(&(key.clone(), policy, client)).copied()
    }
}
