//! Others who change our tables: the kernel's word for it becomes an event of the loop, which looks at everything at once.

use tokio::sync::mpsc;

use super::watch::Event;
use crate::netlink::nf_tables::{ConnectionError, Listener};

/// Hands on what the listener hears, until the loop or the listener ends.
///
/// # Errors
/// When the kernel tells nothing any more.
pub async fn follow(mut listener: Listener, events: mpsc::Sender<Event>) -> Result<(), ConnectionError> {
    loop {
        let foreign = listener.changed().await?;
        if events.send(Event::Foreign(foreign)).await.is_err() {
            return Ok(());
        }
    }
}
