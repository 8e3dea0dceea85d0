//! Who is alive: node agents hear each other directly, so that a death is noticed within 350 ms and without the API
//! server. The speaker asks who may announce, the datapath asks whose endpoints are gone.
//!
//! ```text
//!  nodes.rs ──addresses──▶ task.rs (UDP socket, clock) ◀──▶ state.rs (pure) ──▶ watch: Members
//!                             ▲ heartbeat.rs (bytes)
//! ```
//!
//! # Limits
//!
//! * Every agent sends to every other: `n × (n − 1) / interval` packets per second in the cluster, so about ten per
//!   second and peer on each node. Right up to some hundred nodes.
//! * Heartbeats go between the nodes' primary addresses, not over each announcing link.
//! * They need neighbour resolution: after a lost link heals, the kernel may take up to a second to ask for a peer again,
//!   and until then that peer does not hear us and both may announce.
//! * They are not authenticated. A heartbeat counts only if it comes from an address of the node that it names.

pub mod heartbeat;
pub mod nodes;
pub mod state;
mod task;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;

pub use self::state::{Life, Members, Timing};
use crate::names::NodeName;
use crate::runtime::shutdown::Shutdown;

/// The UDP port of heartbeats, unless configured otherwise.
pub const DEFAULT_PORT: u16 = 7473;

/// The addresses of each node of the cluster, primary first.
pub type NodeAddresses = BTreeMap<NodeName, Vec<IpAddr>>;

/// How this node takes part.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node: NodeName,
    /// The UDP port, the same on all nodes.
    pub port: u16,
    /// Intervals and timeouts.
    pub timing: Timing,
}

/// What components hold: who is alive, and a way to say that this node is ready.
#[derive(Clone, Debug)]
pub struct Membership {
    members: watch::Receiver<Arc<Members>>,
    is_serving: Arc<watch::Sender<bool>>,
    /// The other end of a picture that never changes: without it, receivers would take it for over.
    _fixed: Option<Arc<watch::Sender<Arc<Members>>>>,
}

impl Membership {
    /// A receiver that always holds the newest picture.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// Tells the others whether this node may be given addresses. False until told.
    pub fn set_serving(&self, is_serving: bool) {
        self.is_serving.send_if_modified(|known| std::mem::replace(known, is_serving) != is_serving);
    }

    /// Membership without a network, of just these nodes, for tests and for clusters of one.
    pub fn fixed(members: Members) -> Self {
        let (sender, receiver) = watch::channel(Arc::new(members));
        Self { members: receiver, is_serving: Arc::new(watch::channel(false).0), _fixed: Some(Arc::new(sender)) }
    }
}

/// Starts to take part: spawns the task and returns at once. It says goodbye on shutdown; await the returned task then,
/// so that the process does not end before that is sent.
pub fn start(
    config: Config,
    nodes: watch::Receiver<Arc<NodeAddresses>>,
    registry: &mut Registry,
    shutdown: Shutdown,
) -> (Membership, tokio::task::JoinHandle<()>) {
    let own = [(config.node.clone(), Life::Starting)];
    let (members, receiver) = watch::channel(Arc::new(Members { nodes: own.into(), is_informed: false }));
    let (is_serving, serving) = watch::channel(false);
    let counters = task::Counters::register(registry);
    let task = tokio::spawn(task::run(config, nodes, serving, members, counters, shutdown));
    (Membership { members: receiver, is_serving: Arc::new(is_serving), _fixed: None }, task)
}
