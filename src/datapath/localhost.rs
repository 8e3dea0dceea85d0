//! NodePorts on 127.0.0.1 and ::1, by forwarding in user space: the kernel routes nothing from loopback to anywhere else
//! unless a node is opened to CVE-2020-8558. Only where loopback is listed among the NodePort addresses, and only TCP.
//!
//! `forwards` decides who is served and by which endpoint; this file has the sockets, `connection` what becomes of a
//! client.

pub mod connection;
pub mod forwards;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio::time::Instant;

use self::connection::{Chooser, forward};
use self::forwards::{Choice, Forward};
use super::entry::EntryKey;
use super::servers::Complaints;
use crate::runtime::listeners::{Listeners, Serve, Wanted};
use crate::runtime::mailbox::Inbox;
use crate::runtime::node_report::Reporter;
use crate::runtime::shutdown::Shutdown;

/// Of a Service whose NodePort another program has.
const NOT_LISTENING: &str = "FailedToListenOnLocalhost";

/// Forwards until shutdown, and tells which Services cannot be, and why.
pub async fn run(mut forwards: Inbox<EntryKey, Forward>, reporter: Reporter, mut shutdown: Shutdown) {
    let mut open: BTreeMap<EntryKey, Open> = BTreeMap::new();
    let mut listeners = Listeners::default();
    let mut complaints = Complaints::new(reporter, NOT_LISTENING);
    tracing::info!("node ports of TCP answer on localhost; those of UDP and SCTP do not");
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            changes = forwards.receive() => {
                let sockets: Vec<_> = changes.into_iter().filter_map(|(key, forward)| change(&mut open, key, forward)).collect();
                listeners.change(sockets).await;
            }
            () = listeners.retry_is_due() => listeners.retry(),
        }
        complaints.tell(listeners.failures().map(|(key, address, error)| {
            (Some(key.port.service.clone()), format!("failed to serve the node port at {address}: {error}"))
        }));
    }
}

struct Open {
    at: SocketAddr,
    server: Arc<Server>,
}

/// Takes in one change, and says what that means for sockets: nothing where only endpoints changed.
fn change(
    open: &mut BTreeMap<EntryKey, Open>,
    key: EntryKey,
    forward: Option<Forward>,
) -> Option<(EntryKey, Option<Wanted<Server>>)> {
    let Some(forward) = forward else {
        open.remove(&key);
        return Some((key, None));
    };
    let at = forward.at;
    if let Some(known) = open.get(&key).filter(|known| known.at == at) {
        known.server.replace(forward);
        return None;
    }
    let server = Arc::new(Server(Mutex::new(Choice::new(forward, RandomState::new().hash_one(at)))));
    open.insert(key.clone(), Open { at, server: Arc::clone(&server) });
    Some((key, Some(Wanted { addresses: BTreeSet::from([at]), server })))
}

/// The NodePort of one Service port and family.
#[derive(Debug)]
struct Server(Mutex<Choice>);

impl Server {
    fn replace(&self, forward: Forward) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(forward);
    }
}

impl Chooser for Server {
    fn choose(&self) -> Vec<SocketAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).candidates(Instant::now())
    }

    fn chosen(&self, endpoint: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keep(endpoint, Instant::now());
    }
}

impl Serve for Server {
    async fn serve(&self, stream: TcpStream) {
        forward(stream, self).await;
    }
}
