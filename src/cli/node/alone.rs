//! One agent on a node, and `--cleanup` only when there is none: a name that the kernel gives to one process in a network
//! namespace, and takes back when that ends, however it ends.
//!
//! Any process of the namespace may take the name, whoever it belongs to, and must not keep agents away by it: so who has
//! it is looked at.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use nix::unistd::geteuid;
use tokio::time::Instant;

/// An abstract address of a Unix socket, which belongs to the network namespace.
const NAME: &str = "steelyard-node";
/// How long an agent waits for its predecessor to end.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// How often somebody is looked at who has the name and does not listen.
const LOOKS: u32 = 3;

/// Held for as long as this process is the one.
#[derive(Debug)]
pub(super) struct Alone {
    /// Nothing where somebody has the name who can be no agent.
    _held: Option<UnixListener>,
}

/// Who has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// A process that may be an agent.
    Agent,
    /// One of this user's, which has not the rights of an agent.
    Stranger(u32),
    /// Nobody, or somebody who does not listen, as agents do from the moment that they have the name.
    Nobody,
}

impl Alone {
    /// Whether no other agent has the name now.
    pub(super) fn take() -> io::Result<Option<Self>> {
        for _ in 0..LOOKS {
            if let Some(alone) = Self::bind()? {
                return Ok(Some(alone));
            }
            match holder()? {
                Holder::Agent => return Ok(None),
                Holder::Stranger(user) => return Ok(Some(Self::without_name(Some(user)))),
                Holder::Nobody => std::thread::park_timeout(PAUSE),
            }
        }
        Ok(Some(Self::without_name(None)))
    }

    fn without_name(user: Option<u32>) -> Self {
        tracing::warn!(
            user,
            "a program that can be no agent has the agents' name @{NAME} in this network namespace: going on without the              name, so that nobody will notice if a second agent starts on this node"
        );
        Self { _held: None }
    }

    /// As [`Self::take`], with some time for a predecessor to end.
    pub(super) async fn wait() -> io::Result<Option<Self>> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(alone) = Self::bind()? {
                return Ok(Some(alone));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Self::take()
    }

    fn bind() -> io::Result<Option<Self>> {
        let address = SocketAddr::from_abstract_name(NAME)?;
        match UnixListener::bind_addr(&address) {
            Ok(held) => Ok(Some(Self { _held: Some(held) })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Looks at who has the name. Where that cannot be told it is taken for an agent: anybody may fill an agent's queue.
fn holder() -> io::Result<Holder> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new_abstract(NAME.as_bytes())?) {
        Ok(()) => {}
        Err(Errno::ECONNREFUSED) => return Ok(Holder::Nobody),
        Err(_) => return Ok(Holder::Agent),
    }
    // Of when it began to listen.
    let user = getsockopt(&socket, sockopt::PeerCredentials)?.uid();
    let may_be_agent = user == 0 || user == geteuid().as_raw();
    Ok(if may_be_agent { Holder::Agent } else { Holder::Stranger(user) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command};

    use nix::sys::socket::{Backlog, bind, listen};

    use super::*;
    use crate::netlink::nf_tables::test::in_new_namespace;

    /// A program of a user that listens at the name.
    fn listener_of(user: u32) -> Child {
        let mut command = Command::new("socat");
        command.args(["ABSTRACT-LISTEN:steelyard-node,fork", "/dev/null"]).uid(user);
        let child = command.spawn().expect("socat is needed (apt install socat)");
        let deadline = std::time::Instant::now() + PATIENCE;
        while holder().unwrap() == Holder::Nobody {
            assert!(std::time::Instant::now() < deadline, "socat does not listen");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        child
    }

    fn bound() -> OwnedFd {
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(NAME.as_bytes()).unwrap()).unwrap();
        socket
    }

    #[test]
    fn who_has_not_the_rights_of_an_agent_keeps_none_away() {
        in_new_namespace(|| {
            for (user, is_in_the_way) in [(65_534, false), (0, true)] {
                let mut child = listener_of(user);
                let taken = Alone::take().unwrap();
                assert_eq!(taken.is_none(), is_in_the_way, "user {user}");
                assert!(taken.is_none_or(|alone| alone._held.is_none()));
                child.kill().unwrap();
                child.wait().unwrap();
            }
            let taken = Alone::take().unwrap();
            assert!(taken.is_some_and(|alone| alone._held.is_some()));
        });
    }

    #[test]
    fn who_has_the_name_and_does_not_listen_is_no_agent() {
        in_new_namespace(|| {
            let deaf = bound();
            assert!(Alone::take().unwrap().is_some());
            drop(deaf);
        });
    }

    #[test]
    fn an_agent_whose_queue_somebody_has_filled_is_one_still() {
        in_new_namespace(|| {
            let agent = bound();
            listen(&agent, Backlog::new(0).unwrap()).unwrap();
            let address = UnixAddr::new_abstract(NAME.as_bytes()).unwrap();
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let mut clients = Vec::new();
            loop {
                let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
                match connect(client.as_raw_fd(), &address) {
                    Ok(()) => clients.push(client),
                    Err(error) => break assert_eq!(error, Errno::EAGAIN),
                }
            }
            assert!(Alone::take().unwrap().is_none());
        });
    }

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
