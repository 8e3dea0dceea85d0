//! The parts of the agent: tasks that run until the agent ends, and the end itself.

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use super::NodeError;
use crate::runtime::shutdown::Shutdown;

/// The parts of the agent; each ends with its name.
pub(super) type Parts = JoinSet<Result<&'static str, NodeError>>;

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
