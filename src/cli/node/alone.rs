//! One agent on a node, and `--cleanup` only when there is none: a name that the kernel gives to one process in a network
//! namespace, and takes back when that ends, however it ends.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use tokio::time::Instant;

/// An abstract address of a Unix socket, which belongs to the network namespace.
const NAME: &str = "steelyard-node";
/// How long an agent waits for its predecessor to end.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Held for as long as this process is the one.
#[derive(Debug)]
pub(super) struct Alone {
    _held: UnixListener,
}

impl Alone {
    /// Whether no other holds it now.
    pub(super) fn take() -> io::Result<Option<Self>> {
        let address = SocketAddr::from_abstract_name(NAME)?;
        match UnixListener::bind_addr(&address) {
            Ok(held) => Ok(Some(Self { _held: held })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::take`], with some time for a predecessor to end.
    pub(super) async fn wait() -> io::Result<Option<Self>> {
        let end = Instant::now() + PATIENCE;
        loop {
            match Self::take()? {
                None if Instant::now() < end => tokio::time::sleep(PAUSE).await,
                outcome => return Ok(outcome),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::nf_tables::test::in_new_namespace;

    #[test]
    fn one_at_a_time_in_each_namespace() {
        in_new_namespace(|| {
            let first = Alone::take().unwrap();
            assert!(first.is_some());
            assert!(Alone::take().unwrap().is_none());
            in_new_namespace(|| assert!(Alone::take().unwrap().is_some(), "another node"));
            drop(first);
            assert!(Alone::take().unwrap().is_some());
        });
    }
}
