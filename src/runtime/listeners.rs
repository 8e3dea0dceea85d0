//! Listening TCP sockets held to what is wanted: opened, closed and tried again one by one, so that a change costs what it
//! changes, and an address that another program has costs nobody else.
//!
//! Each socket has a task that accepts, and each connection one of its own. A connection outlives the socket that it
//! came by.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long until what could not be had is tried again. What this process itself gives up is tried at once.
pub const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Connections that one socket serves at a time; more wait in its backlog, so that one socket cannot use up the process.
pub const MOST_CONNECTIONS: usize = 256;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// The pause after the process ran out of file descriptors, say: the next attempt would fail too.
const PAUSE: Duration = Duration::from_millis(100);

/// What is done with a connection.
pub trait Serve: Send + Sync + 'static {
    /// Serves one connection to its end.
    fn serve(&self, stream: TcpStream) -> impl Future<Output = ()> + Send;
}

/// What a key wants.
#[derive(Debug)]
pub struct Wanted<S> {
    /// Where it listens.
    pub addresses: BTreeSet<SocketAddr>,
    /// Who serves.
    pub server: Arc<S>,
}

/// A set of listening sockets, each wanted by a key.
#[derive(Debug)]
pub struct Listeners<K, S> {
    wanted: BTreeMap<K, Wanted<S>>,
    open: BTreeMap<(K, SocketAddr), Listener>,
    failed: BTreeMap<(K, SocketAddr), io::Error>,
    retry_at: Option<Instant>,
}

/// A socket and the task that accepts from it; closed when dropped, though not at once.
#[derive(Debug)]
struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Listener {
    /// Gives the address back: it is free when this returns.
    async fn close(mut self) {
        self.0.abort();
        // It was cancelled, which is what was asked for.
        let _cancelled = (&mut self.0).await;
    }
}

impl<K, S> Default for Listeners<K, S> {
    fn default() -> Self {
        Self { wanted: BTreeMap::new(), open: BTreeMap::new(), failed: BTreeMap::new(), retry_at: None }
    }
}

impl<K: Clone + Ord, S: Serve> Listeners<K, S> {
    /// Makes the keys named want something else, or nothing. What none wants any more is closed before anything is opened,
    /// so that an address can pass from one key to another in one change. A socket that stays serves on as it did: to
    /// change what it answers is up to its server.
    pub async fn change(&mut self, changes: Vec<(K, Option<Wanted<S>>)>) {
        let mut changed = Vec::new();
        let mut is_any_closed = false;
        for (key, wanted) in changes {
            let addresses = wanted.as_ref().map(|wanted| wanted.addresses.clone()).unwrap_or_default();
            let before = match wanted {
                Some(wanted) => self.wanted.insert(key.clone(), wanted),
                None => self.wanted.remove(&key),
            };
            let mut before = before.map(|before| before.addresses).unwrap_or_default();
            before.retain(|address| !addresses.contains(address));
            for address in before {
                let socket = (key.clone(), address);
                self.failed.remove(&socket);
                if let Some(listener) = self.open.remove(&socket) {
                    listener.close().await;
                    is_any_closed = true;
                }
            }
            changed.extend(addresses.into_iter().map(|address| (key.clone(), address)));
        }
        for socket in changed {
            self.open(socket);
        }
        if is_any_closed {
            self.retry();
        }
    }

    /// Waits until it is time to [`Self::retry`]; without end while nothing failed. Cancel safe.
    pub async fn retry_is_due(&self) {
        match self.retry_at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Tries again what could not be had.
    pub fn retry(&mut self) {
        self.retry_at = None;
        for (socket, _) in std::mem::take(&mut self.failed) {
            self.open(socket);
        }
    }

    /// What could not be had, by key and address. A node that lacks a whole family lacks nothing here.
    pub fn failures(&self) -> impl Iterator<Item = (&K, SocketAddr, &io::Error)> {
        let failed = self.failed.iter().filter(|(_, error)| !has_no_family(error));
        failed.map(|((key, address), error)| (key, *address, error))
    }

    fn open(&mut self, socket: (K, SocketAddr)) {
        if self.open.contains_key(&socket) || self.failed.contains_key(&socket) {
            return;
        }
        let Some(Wanted { server, .. }) = self.wanted.get(&socket.0) else { return };
        match listen(socket.1) {
            Ok(listener) => {
                let accepting = tokio::spawn(accept(listener, Arc::clone(server)));
                self.open.insert(socket, Listener(accepting));
            }
            Err(error) => {
                self.failed.insert(socket, error);
                self.retry_at.get_or_insert_with(|| Instant::now() + RETRY_AFTER);
            }
        }
    }
}

/// The sockets that an address stands for: `[::]` is the address of both families, each with a socket of its own, so that a
/// node without IPv6 has the other.
pub fn sockets_of(address: SocketAddr) -> BTreeSet<SocketAddr> {
    let twin = (address.ip() == Ipv6Addr::UNSPECIFIED)
        .then(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()));
    twin.into_iter().chain([address]).collect()
}

/// A socket of one family. It takes addresses that this machine does not have yet too: one that is still being checked for
/// duplicates, say.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn has_no_family(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(Errno::EAFNOSUPPORT)
}

/// Accepts until it is cancelled.
async fn accept<S: Serve>(listener: TcpListener, server: Arc<S>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    server.serve(stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "failed to accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
