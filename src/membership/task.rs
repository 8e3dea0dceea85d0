//! The socket and the clock around [`super::state`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::registry::Registry;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::Instant;

use super::heartbeat::{DecodeError, Heartbeat, LONGEST, Status};
use super::state::{Members, Membership, Refusal};
use super::{Config, NodeAddresses};
use crate::model::Family;
use crate::runtime::shutdown::Shutdown;

/// Between two tries to bind to an address that the node does not have yet.
const BIND_PAUSE: Duration = Duration::from_millis(250);
/// How often a goodbye is said: one datagram may be lost.
const GOODBYES: usize = 3;
/// Between two goodbyes.
const GOODBYE_PAUSE: Duration = Duration::from_millis(5);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Reason {
    reason: &'static str,
}

/// What the task counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    sent: Counter<u64, AtomicU64>,
    received: Counter<u64, AtomicU64>,
    dropped: Labelled<Reason, Counter>,
}

impl Counters {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counters = Self::default();
        let registry = registry.sub_registry_with_prefix("membership");
        registry.register("heartbeats_sent", "Heartbeats sent to other nodes", counters.sent.clone());
        registry.register("heartbeats_received", "Heartbeats that counted", counters.received.clone());
        let help = "Datagrams on the heartbeat port that did not count, by reason";
        registry.register("heartbeats_dropped", help, counters.dropped.clone());
        counters
    }

    fn drop(&self, reason: &'static str) {
        self.dropped.get_or_create(&Reason { reason }).inc();
    }
}

/// Takes part until shutdown, then says goodbye.
pub(super) async fn run(
    config: Config,
    mut nodes: watch::Receiver<Arc<NodeAddresses>>,
    mut serving: watch::Receiver<bool>,
    members: watch::Sender<Arc<Members>>,
    counters: Counters,
    mut shutdown: Shutdown,
) {
    let epoch = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    let mut state = Membership::new(config.timing, config.node.clone(), epoch, Instant::now());
    loop {
        let known = Arc::clone(&nodes.borrow_and_update());
        state.set_nodes(&known);
        let own = known.get(&config.node).and_then(|addresses| addresses.first()).copied();
        let Some(address) = own else {
            // The API has not told us our own address yet.
            tokio::select! {
                () = shutdown.requested() => return,
                changed = nodes.changed() => if changed.is_err() { return } else { continue },
            }
        };
        let Some(socket) = bind(address, config.port, &mut nodes, &mut shutdown).await else {
            if shutdown.is_requested() {
                return;
            }
            continue;
        };
        tracing::info!(%address, port = config.port, "heartbeats are sent and heard");
        let mut session =
            Session { state: &mut state, socket, port: config.port, family: Family::of(address), counters: &counters };
        match session.run(&mut nodes, &mut serving, &members, &mut shutdown, (&config, address)).await {
            End::Rebind => {}
            End::Shutdown => return,
        }
    }
}

/// A socket on the node's own address, or nothing if the nodes changed or shutdown came first.
async fn bind(
    address: IpAddr,
    port: u16,
    nodes: &mut watch::Receiver<Arc<NodeAddresses>>,
    shutdown: &mut Shutdown,
) -> Option<UdpSocket> {
    let mut is_first = true;
    loop {
        match UdpSocket::bind(SocketAddr::new(address, port)).await {
            Ok(socket) => return Some(socket),
            Err(error) if is_first => {
                tracing::warn!(%address, port, %error, "cannot hear heartbeats yet, trying again")
            }
            Err(_) => {}
        }
        is_first = false;
        tokio::select! {
            () = shutdown.requested() => return None,
            _ = nodes.changed() => return None,
            () = tokio::time::sleep(BIND_PAUSE) => {}
        }
    }
}

enum End {
    /// The node's own address changed.
    Rebind,
    Shutdown,
}

struct Session<'a> {
    state: &'a mut Membership,
    socket: UdpSocket,
    port: u16,
    family: Family,
    counters: &'a Counters,
}

impl Session<'_> {
    async fn run(
        &mut self,
        nodes: &mut watch::Receiver<Arc<NodeAddresses>>,
        serving: &mut watch::Receiver<bool>,
        members: &watch::Sender<Arc<Members>>,
        shutdown: &mut Shutdown,
        (config, address): (&Config, IpAddr),
    ) -> End {
        let mut buffer = [0u8; LONGEST];
        loop {
            tokio::select! {
                () = shutdown.requested() => {
                    self.say_goodbye(members).await;
                    return End::Shutdown;
                }
                changed = nodes.changed() => {
                    if changed.is_err() {
                        return End::Shutdown;
                    }
                    let known = Arc::clone(&nodes.borrow_and_update());
                    if known.get(&config.node).and_then(|addresses| addresses.first()) != Some(&address) {
                        return End::Rebind;
                    }
                    self.state.set_nodes(&known);
                }
                // An error means that nobody can call `set_serving` any more; what was said last stays true.
                Ok(()) = serving.changed() => {}
                received = self.socket.recv_from(&mut buffer) => self.take(received, &buffer),
                () = tokio::time::sleep_until(self.state.next_wake()) => {}
            }
            // All that was sent to us while we did not run, before anybody is blamed.
            while let Some(received) = some_datagram(self.socket.try_recv_from(&mut buffer)) {
                self.take(received, &buffer);
            }
            let now = Instant::now();
            let status = if *serving.borrow() { Status::Serving } else { Status::Starting };
            self.state.set_status(status, now);
            if now >= self.state.next_wake()
                && let Some(heartbeat) = self.state.tick(now)
            {
                self.send(&heartbeat);
            }
            publish(members, self.state.members(now));
        }
    }

    fn take(&mut self, received: io::Result<(usize, SocketAddr)>, buffer: &[u8]) {
        // Errors are echoes of what we sent to nodes that are not there (ICMP unreachable).
        let Ok((length, from)) = received else { return };
        let outcome =
            Heartbeat::decode(buffer.get(..length).unwrap_or_default()).map_err(decode_label).and_then(|heartbeat| {
                self.state.receive(&heartbeat, from.ip().to_canonical(), Instant::now()).map_err(refusal_label)
            });
        match outcome {
            Ok(()) => {
                self.counters.received.inc();
            }
            Err(reason) => self.counters.drop(reason),
        }
    }

    fn send(&self, heartbeat: &Heartbeat) {
        let bytes = heartbeat.encode();
        // Past tokio, which refuses to send on a fresh socket before the reactor has told that it is writable.
        let socket = SockRef::from(&self.socket);
        for target in self.state.targets(self.family) {
            // Lost here or lost on the wire is the same: the next one follows soon.
            if socket.send_to(&bytes, &SocketAddr::new(target, self.port).into()).is_ok() {
                self.counters.sent.inc();
            }
        }
    }

    async fn say_goodbye(&mut self, members: &watch::Sender<Arc<Members>>) {
        for _ in 0..GOODBYES {
            let goodbye = self.state.goodbye();
            self.send(&goodbye);
            publish(members, self.state.members(Instant::now()));
            tokio::time::sleep(GOODBYE_PAUSE).await;
        }
    }
}

/// The datagram, or an error that belongs to one; nothing when none waits.
fn some_datagram(received: io::Result<(usize, SocketAddr)>) -> Option<io::Result<(usize, SocketAddr)>> {
    match received {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        received => Some(received),
    }
}

fn publish(sender: &watch::Sender<Arc<Members>>, members: Members) {
    sender.send_if_modified(|known| {
        let is_new = **known != members;
        if is_new {
            for (node, life) in members.nodes.iter().filter(|(node, life)| known.nodes.get(*node) != Some(*life)) {
                tracing::info!(%node, ?life, "membership changed");
            }
            *known = Arc::new(members);
        }
        is_new
    });
}

fn decode_label(error: DecodeError) -> &'static str {
    match error {
        DecodeError::Foreign => "foreign",
        DecodeError::Version(_) => "version",
        DecodeError::Malformed => "malformed",
    }
}

fn refusal_label(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownNode => "unknown-node",
        Refusal::WrongAddress => "wrong-address",
        Refusal::OurName => "our-name",
        Refusal::Old => "old",
    }
}
