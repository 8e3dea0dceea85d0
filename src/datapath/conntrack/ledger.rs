//! Keeps the account from which flows are judged: after each turn, what of it concerns flows, and which endpoints have been
//! gone for how long. A turn costs what it changed; only a turn over everything names every frontend.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Fate, Here, View};
use crate::datapath::desired::{Desired, FrontendKey};
use crate::datapath::entry::{EntryKey, ForwardingEntry};
use crate::datapath::index::Index;
use crate::model::Protocol;
use crate::names::ServiceKey;

/// Endpoints whose grace ends are looked for in all slices: at most this often.
const PAUSE: Duration = Duration::from_secs(1);

/// What a turn did.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// Services of which anything changed.
    pub services: BTreeSet<ServiceKey>,
    /// Frontends that went from the kernel.
    pub removed: Vec<FrontendKey>,
    /// Everything is to be judged: the first turn, a resync, a change of where NodePorts answer.
    pub is_whole: bool,
}

/// The account.
#[derive(Debug)]
pub struct Ledger {
    /// How long an endpoint may be gone before its TCP flows are; without one they stay.
    grace: Option<Duration>,
    /// When the grace of an endpoint ends that left a Service.
    gone: BTreeMap<(ServiceKey, IpAddr), Instant>,
    /// When TCP flows are held to the list of all endpoints: of those that left before our time nobody told us.
    audit_at: Option<Instant>,
    not_before: Option<Instant>,
    here: Arc<Here>,
}

impl Ledger {
    /// An empty account.
    pub fn new(grace: Option<Duration>) -> Self {
        Self { grace, gone: BTreeMap::new(), audit_at: None, not_before: None, here: Arc::default() }
    }

    /// Sees endpoints leave a slice. Their grace begins, also where the turn that is due then fails.
    pub fn see_left(&mut self, endpoints: impl IntoIterator<Item = (ServiceKey, IpAddr)>, now: Instant) {
        if let Some(grace) = self.grace {
            self.gone.extend(endpoints.into_iter().map(|endpoint| (endpoint, now + grace)));
        }
    }

    /// Takes a turn into account and tells what to look for in the kernel's flows.
    pub fn turn(&mut self, turn: Turn, index: &Index, desired: &Desired, now: Instant) -> View {
        if turn.is_whole || self.here.local_addresses != *index.local_addresses() {
            self.here = Arc::new(Here {
                local_addresses: index.local_addresses().clone(),
                node_ports: desired.node().node_ports.clone(),
                service_cidrs: desired.node().service_cidrs.clone(),
            });
        }
        let mut fates = BTreeMap::new();
        for frontend in turn.removed.iter().filter(|frontend| is_udp(frontend)) {
            if desired.owner(frontend).is_none() {
                fates.insert(*frontend, Fate::Gone);
            }
        }
        if turn.is_whole {
            add_served(desired.entries().iter(), index, &mut fates);
            // Nobody has left: only what was begun before there were rules goes.
            let nobody = Fate::Without { left: BTreeSet::new(), known: None };
            add_tcp(desired.entries().iter(), &nobody, &mut fates);
        } else {
            for service in &turn.services {
                add_served(desired.entries_of(service), index, &mut fates);
            }
        }
        if let Some(grace) = self.grace {
            if turn.is_whole {
                // Not pushed on by the next one: where there is always one before the grace is over, none would ever come.
                self.audit_at.get_or_insert(now + grace);
            }
            self.add_gone(index, desired, now, &mut fates);
        }
        View { fates, here: Arc::clone(&self.here), is_whole: turn.is_whole }
    }

    /// When there is something to look for though nothing changes.
    pub fn due(&self) -> Option<Instant> {
        let first = self.gone.values().copied().chain(self.audit_at).min()?;
        Some(self.not_before.map_or(first, |not_before| first.max(not_before)))
    }

    fn add_gone(&mut self, index: &Index, desired: &Desired, now: Instant, fates: &mut BTreeMap<FrontendKey, Fate>) {
        if self.due().is_none_or(|due| now < due) {
            return;
        }
        self.not_before = Some(now + PAUSE);
        let over: Vec<(ServiceKey, IpAddr)> =
            self.gone.iter().filter(|(_, due)| **due <= now).map(|(endpoint, _)| endpoint.clone()).collect();
        for endpoint in &over {
            self.gone.remove(endpoint);
        }
        // One that is back, or serves another Service, is not gone.
        let mut lost: HashSet<IpAddr> = over.iter().map(|(_, address)| *address).collect();
        if !lost.is_empty() {
            for endpoint in index.slices().flat_map(|slice| &slice.endpoints) {
                lost.remove(&endpoint.address);
            }
        }
        for (service, address) in over.into_iter().filter(|(_, address)| lost.contains(address)) {
            let fate = Fate::Without { left: BTreeSet::from([address]), known: None };
            add_tcp(desired.entries_of(&service), &fate, fates);
        }
        if self.audit_at.is_some_and(|due| due <= now) {
            self.audit_at = None;
            let endpoints = index.slices().flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address);
            let known = Arc::new(endpoints.chain(self.gone.keys().map(|(_, address)| *address)).collect());
            let fate = Fate::Without { left: BTreeSet::new(), known: Some(known) };
            add_tcp(desired.entries().iter(), &fate, fates);
        }
    }
}

fn is_udp(frontend: &FrontendKey) -> bool {
    frontend.protocol == Protocol::Udp
}

fn frontends<'a>(key: &'a EntryKey, entry: &'a ForwardingEntry) -> impl Iterator<Item = FrontendKey> + 'a {
    entry.frontends.keys().map(|frontend| FrontendKey {
        family: key.family,
        protocol: key.port.protocol,
        frontend: *frontend,
    })
}

fn add_served<'a>(
    entries: impl Iterator<Item = (&'a EntryKey, &'a ForwardingEntry)>,
    index: &Index,
    fates: &mut BTreeMap<FrontendKey, Fate>,
) {
    for (key, entry) in entries.filter(|(key, _)| key.port.protocol == Protocol::Udp) {
        let serving = Arc::new(serving(key, index));
        fates.extend(frontends(key, entry).map(|frontend| (frontend, Fate::ServedBy(Arc::clone(&serving)))));
    }
}

fn add_tcp<'a>(
    entries: impl Iterator<Item = (&'a EntryKey, &'a ForwardingEntry)>,
    fate: &Fate,
    fates: &mut BTreeMap<FrontendKey, Fate>,
) {
    for (key, entry) in entries.filter(|(key, _)| key.port.protocol == Protocol::Tcp) {
        for frontend in frontends(key, entry) {
            let before = fates.remove(&frontend);
            fates.insert(frontend, before.map_or_else(|| fate.clone(), |before| before.followed_by(fate.clone())));
        }
    }
}

/// The endpoints that still answer, ready for new connections or not.
fn serving(key: &EntryKey, index: &Index) -> BTreeSet<SocketAddr> {
    let of_slice = |slice: &crate::model::endpoints::EndpointSlice| {
        let port = slice.ports.get(&(key.port.port.clone(), key.port.protocol)).copied();
        let serving = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.is_serving);
        serving.filter_map(|endpoint| Some(SocketAddr::new(endpoint.address, port?.get()))).collect::<Vec<SocketAddr>>()
    };
    index.slices_of(&key.port.service).filter(|slice| slice.family == key.family).flat_map(of_slice).collect()
}
