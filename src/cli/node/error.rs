//! Why the agent ended, in words for whoever reads its last log line.

use thiserror::Error;
use tokio::task::JoinError;

use crate::cli::cluster::ClusterError;
use crate::datapath::apply::ApplyError;
use crate::netlink::ctnetlink::ConntrackError;
use crate::netlink::links::LinksError;
use crate::netlink::nf_tables::ConnectionError;
use crate::runtime::admin::AdminError;
use crate::runtime::sysctls::SysctlsError;

/// Why the agent ended.
#[derive(Debug, Error)]
pub enum NodeError {
    /// No way to the API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Interfaces cannot be followed.
    #[error("failed to follow the network interfaces")]
    Links(#[from] LinksError),
    /// The datapath could not start.
    #[error("failed to start the datapath")]
    Datapath(#[source] ApplyError),
    /// There is no way to the tracked connections.
    #[error("failed to start following connections")]
    Sweeper(#[source] ConntrackError),
    /// Changes of our tables by others would go unnoticed.
    #[error("failed to follow the changes of nf_tables")]
    Listener(#[source] ConnectionError),
    /// Rules of an earlier run would go on forwarding to endpoints of then.
    #[error("failed to remove what the agent left")]
    Cleanup(#[source] ApplyError),
    /// Settings of the kernel may not be what they were.
    #[error("failed to put back the kernel's settings")]
    Sysctls(#[from] SysctlsError),
    /// The result is there, and nobody reads it.
    #[error("failed to say what was removed")]
    Say(#[source] std::io::Error),
    /// Another agent would undo what this one does.
    #[error("another steelyard node runs in this network namespace")]
    NotAlone,
    /// It would write its rules again.
    #[error("an agent (steelyard node) runs on this node: stop it first, or uninstall the chart")]
    AgentRuns,
    /// Whether another runs is not known.
    #[error("failed to find out whether another agent runs on this node")]
    Alone(#[source] std::io::Error),
    /// There is nobody to announce or forward for.
    #[error("--node-name is missing")]
    NoNodeName,
    /// The admin server could not start or broke.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Signals cannot be taken.
    #[error("failed to install signal handlers")]
    Signals(#[source] std::io::Error),
    /// A part ended though nobody asked it to.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
    /// A part panicked.
    #[error("a part of the agent panicked")]
    Panicked(#[from] JoinError),
}
