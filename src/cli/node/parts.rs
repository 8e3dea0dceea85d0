//! The parts of the agent: tasks that run until the agent ends, and the end itself.

use std::collections::BTreeSet;

use futures::future::BoxFuture;
use tokio::task::{JoinError, JoinSet};

use super::NodeError;
use crate::runtime::shutdown::Shutdown;

/// How a part ends: with its name.
type Ended = Result<&'static str, NodeError>;

/// The parts of the agent.
#[derive(Default)]
pub(super) struct Parts(JoinSet<Ended>);

impl Parts {
    /// None yet.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Starts one.
    pub(super) fn spawn(&mut self, part: impl Future<Output = Ended> + Send + 'static) {
        // A box, or the program would have each part several times: for each scheduler that there is in the runtime.
        let part: BoxFuture<'static, Ended> = Box::pin(part);
        self.0.spawn(part);
    }

    /// Waits for the next that ends.
    pub(super) async fn join_next(&mut self) -> Option<Result<Ended, JoinError>> {
        self.0.join_next().await
    }
}

/// A part that ends with its name.
pub(super) async fn ends(part: impl Future<Output = ()>, name: &'static str) -> Result<&'static str, NodeError> {
    part.await;
    Ok(name)
}

/// Waits for the parts that have something to put in order after shutdown was requested; they end in no certain order. A
/// part that ends before is an error. The other parts, the watches among them, end with the process.
pub(super) async fn finish(
    mut parts: Parts,
    stop: &Shutdown,
    mut awaited: BTreeSet<&'static str>,
) -> Result<(), NodeError> {
    while let Some(part) = parts.join_next().await {
        let name = part??;
        if !stop.is_requested() {
            return Err(NodeError::Ended(name));
        }
        awaited.remove(name);
        if awaited.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}
