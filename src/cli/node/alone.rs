//! One agent on a node, and `--cleanup` only when there is none: a name that the kernel gives to one process in a network
//! namespace, and takes back when that ends, however it ends.
//!
//! Any process of the namespace may take the name, whoever it belongs to, and must not keep agents away by it: so who has
//! it is looked at.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, connect, getsockopt, shutdown, socket, sockopt,
};
use nix::unistd::geteuid;
use tokio::time::Instant;

/// An abstract address of a Unix socket, which belongs to the network namespace.
const NAME: &str = "steelyard-node";
/// How long an agent waits for its predecessor to end.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// How often somebody is looked at who has the name and takes no connection.
const LOOKS: u32 = 10;

/// Held for as long as this process is the one.
#[derive(Debug)]
pub(super) struct Alone {
    /// Nothing where somebody has the name who can be no agent.
    _name: Option<Name>,
}

/// The name, and a thread that takes every connection to it and ends it at once: so an agent can always be looked at.
#[derive(Debug)]
struct Name {
    socket: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl Name {
    fn hold(socket: UnixListener) -> io::Result<Self> {
        let socket = Arc::new(socket);
        let of_thread = Arc::clone(&socket);
        let thread = thread::Builder::new().name("alone".to_owned()).spawn(move || {
            loop {
                match of_thread.accept() {
                    Ok(connection) => drop(connection),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // Too many open files, say. Whoever waits is let in later.
                    Err(error) if error.raw_os_error() != Some(Errno::EINVAL as i32) => thread::park_timeout(PAUSE),
                    // It is over.
                    Err(_) => return,
                }
            }
        })?;
        Ok(Self { socket, thread: Some(thread) })
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Its `accept` fails by this, and the kernel takes the name back when both have let go.
        let is_over = shutdown(self.socket.as_raw_fd(), Shutdown::Both).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_over) {
            let _ = thread.join();
        }
    }
}

/// Who has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// A process that may be an agent.
    Agent,
    /// One of this user's, which has not the rights of an agent.
    Stranger(u32),
    /// Nobody, or somebody who takes no connection, as agents do all the time.
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
                Holder::Nobody => thread::park_timeout(PAUSE),
            }
        }
        Ok(Some(Self::without_name(None)))
    }

    fn without_name(user: Option<u32>) -> Self {
        tracing::warn!(
            user,
            "a program that can be no agent has the agents' name @{NAME} in this network namespace: going on without the name, \
             so that nobody will notice if a second agent starts on this node"
        );
        Self { _name: None }
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
            Ok(socket) => Ok(Some(Self { _name: Some(Name::hold(socket)?) })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Looks at who has the name. Where that cannot be told it is taken for an agent.
fn holder() -> io::Result<Holder> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new_abstract(NAME.as_bytes())?) {
        Ok(()) => {}
        // The second: its queue is full.
        Err(Errno::ECONNREFUSED | Errno::EAGAIN) => return Ok(Holder::Nobody),
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

    /// So many at the most as wait to be taken, or are.
    fn connections(most: usize) -> Vec<OwnedFd> {
        let address = UnixAddr::new_abstract(NAME.as_bytes()).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let open = || {
            let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
            connect(client.as_raw_fd(), &address).ok().map(|()| client)
        };
        std::iter::from_fn(open).take(most).collect()
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
                assert!(taken.is_none_or(|alone| alone._name.is_none()));
                child.kill().unwrap();
                child.wait().unwrap();
            }
            let taken = Alone::take().unwrap();
            assert!(taken.is_some_and(|alone| alone._name.is_some()));
        });
    }

    #[test]
    fn who_has_the_name_and_takes_no_connection_is_no_agent() {
        in_new_namespace(|| {
            let deaf = bound();
            assert!(Alone::take().unwrap().is_some(), "it does not listen");
            listen(&deaf, Backlog::new(0).unwrap()).unwrap();
            assert!(Alone::take().unwrap().is_none(), "it may be an agent");
            let waiting = connections(100);
            assert!(waiting.len() < 100, "its queue has no end");
            assert!(Alone::take().unwrap().is_some(), "it takes none of those that wait");
        });
    }

    #[test]
    fn nobody_hides_an_agent_by_connections_to_it() {
        in_new_namespace(|| {
            let agent = Alone::take().unwrap().unwrap();
            for _ in 0..20 {
                let connections = connections(500);
                assert!(Alone::take().unwrap().is_none());
                drop(connections);
            }
            drop(agent);
            assert!(Alone::take().unwrap().is_some(), "the name is free as soon as it is let go");
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
