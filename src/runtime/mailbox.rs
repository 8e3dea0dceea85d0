//! A channel that carries the newest value of each key: what is written twice before anybody reads is read once, so that a
//! slow reader costs memory by the number of keys, never by the number of changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// What has been written and not been read; `None` means that the key is gone.
type Letters<K, V> = BTreeMap<K, Option<V>>;

#[derive(Debug)]
struct Shared<K, V> {
    letters: Mutex<Letters<K, V>>,
    arrived: Notify,
}

/// Where values are written.
#[derive(Debug)]
pub struct Outbox<K, V>(Arc<Shared<K, V>>);

/// Where they are read, by one reader.
#[derive(Debug)]
pub struct Inbox<K, V>(Arc<Shared<K, V>>);

/// Both ends.
pub fn mailbox<K: Ord, V>() -> (Outbox<K, V>, Inbox<K, V>) {
    let shared = Arc::new(Shared { letters: Mutex::new(BTreeMap::new()), arrived: Notify::new() });
    (Outbox(Arc::clone(&shared)), Inbox(shared))
}

impl<K: Ord, V> Outbox<K, V> {
    /// Writes values; each takes the place of one for the same key that has not been read yet.
    pub fn send(&self, letters: impl IntoIterator<Item = (K, Option<V>)>) {
        let mut waiting = self.0.letters.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(letters);
        if !waiting.is_empty() {
            self.0.arrived.notify_one();
        }
    }
}

impl<K: Ord, V> Inbox<K, V> {
    /// Waits until there is something, then gives all of it. Cancel safe.
    pub async fn receive(&mut self) -> BTreeMap<K, Option<V>> {
        loop {
            let letters = std::mem::take(&mut *self.0.letters.lock().unwrap_or_else(PoisonError::into_inner));
            if !letters.is_empty() {
                return letters;
            }
            self.0.arrived.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn of_each_key_the_newest_value_is_read_once() {
        let (outbox, mut inbox) = mailbox();
        outbox.send([("a", Some(1)), ("b", Some(1))]);
        outbox.send([("a", Some(2))]);
        outbox.send([("b", None)]);
        assert_eq!(inbox.receive().await, BTreeMap::from([("a", Some(2)), ("b", None)]));
        assert_eq!(inbox.receive().now_or_never(), None);
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let (outbox, mut inbox) = mailbox();
        let reader = tokio::spawn(async move { inbox.receive().await });
        tokio::task::yield_now().await;
        outbox.send([("a", Some(1))]);
        assert_eq!(reader.await.unwrap(), BTreeMap::from([("a", Some(1))]));
    }
}
