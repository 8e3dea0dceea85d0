//! Send packets from anywhere in the lab: from a client, a node, or a pod.
//!
//! A socket belongs to the network namespace in which it was made, whoever uses it later. So connections and sockets
//! made here are plain ones of the standard library.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cgroup::Hierarchies;
use crate::http::{self, Response};
use crate::lab::Lab;
use crate::layout::Member;
use crate::netns;
use crate::run::run;

/// Somewhere in the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A client on the segment, outside the cluster.
    Client,
    /// A client behind the router.
    Remote,
    /// The router.
    Router,
    /// The control plane.
    Control,
    /// A node, counted from 1.
    Node(u8),
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Place {
    /// A pod.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The member of the lab's network that it is, unless it is a pod.
    pub fn member(&self) -> Option<Member> {
        match self {
            Self::Client => Some(Member::Client),
            Self::Remote => Some(Member::Remote),
            Self::Router => Some(Member::Router),
            Self::Control => Some(Member::Control),
            Self::Node(n) => Some(Member::Node(*n)),
            Self::Pod { .. } => None,
        }
    }
}

impl From<Member> for Place {
    fn from(member: Member) -> Self {
        match member {
            Member::Client => Self::Client,
            Member::Remote => Self::Remote,
            Member::Router => Self::Router,
            Member::Control => Self::Control,
            Member::Node(n) => Self::Node(n),
        }
    }
}

impl FromStr for Place {
    type Err = anyhow::Error;

    /// A member's name, or `[namespace/]pod`.
    fn from_str(text: &str) -> Result<Self> {
        if let Ok(member) = text.parse::<Member>() {
            return Ok(member.into());
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            bail!("{text:?} is neither a node, client, remote, router, control nor [namespace/]pod");
        }
        Ok(Self::pod(namespace, name))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Client | Self::Remote | Self::Router | Self::Control | Self::Node(_) => match self.member() {
                Some(member) => member.fmt(f),
                None => Ok(()),
            },
        }
    }
}

impl Lab {
    /// Stand at a place. It stays valid as long as the place is: for a pod, as long as it runs.
    ///
    /// # Errors
    /// If there is no such place, or the pod does not run.
    pub fn at(&self, place: &Place) -> Result<Vantage> {
        let netns = match (place, place.member()) {
            (_, Some(member)) => netns::open(&self.layout().netns(member))?,
            (Place::Pod { namespace, name }, None) => self.pod_netns(namespace, name)?,
            (_, None) => bail!("{place} has no network namespace"),
        };
        Ok(Vantage { name: place.to_string(), netns })
    }

    fn pod_netns(&self, namespace: &str, name: &str) -> Result<File> {
        let pod = self.get_raw(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))?;
        let field = |path: &str| pod.pointer(path).and_then(serde_json::Value::as_str);
        let node = field("/spec/nodeName").with_context(|| format!("pod {namespace}/{name} is on no node yet"))?;
        let uid = field("/metadata/uid").context("a pod without UID")?;
        let cgroup = self.layout().machine_cgroup(node.parse()?);
        let processes = Hierarchies::detect()?.pod_processes(&cgroup, uid);
        let pid = processes.first().with_context(|| format!("pod {namespace}/{name} runs no process on {node}"))?;
        Ok(File::open(format!("/proc/{pid}/ns/net"))?)
    }
}

/// A place where one stands: an open network namespace.
#[derive(Debug)]
pub struct Vantage {
    name: String,
    netns: File,
}

impl Vantage {
    /// Run `work` in a thread that is at the place.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::within(&self.netns, work)
    }

    /// Run a program of the host at the place; its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.within(|| run(Command::new(program).args(arguments)))
    }

    /// Connect. [`error_kind`] tells a refused connection from one that timed out.
    pub fn tcp_connect(&self, target: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.tcp_connect_from(None, target, limit)
    }

    /// Connect from this address and port (0: any).
    pub fn tcp_connect_from(&self, source: Option<SocketAddr>, target: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.within(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
            if let Some(source) = source {
                socket.set_reuse_address(true)?;
                socket.bind(&source.into()).with_context(|| format!("failed to bind {source}"))?;
            }
            socket.connect_timeout(&target.into(), limit)?;
            Ok(TcpStream::from(socket))
        })
        .with_context(|| format!("failed to connect from {} to {target}", self.name))
    }

    /// Listen.
    pub fn tcp_listen(&self, address: SocketAddr) -> Result<TcpListener> {
        self.within(|| Ok(TcpListener::bind(address)?)).with_context(|| format!("failed to listen at {} on {address}", self.name))
    }

    /// A socket bound to `address`.
    pub fn udp_bind(&self, address: SocketAddr) -> Result<UdpSocket> {
        self.within(|| Ok(UdpSocket::bind(address)?)).with_context(|| format!("failed to bind {address} at {}", self.name))
    }

    /// Connect, send `payload`, and give the first piece of the answer.
    pub fn tcp_exchange(&self, target: SocketAddr, payload: &[u8], limit: Duration) -> Result<Vec<u8>> {
        let mut stream = self.tcp_connect(target, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(payload)?;
        let mut answer = vec![0; 65536];
        let length = stream.read(&mut answer).with_context(|| format!("no answer from {target} to {}", self.name))?;
        answer.truncate(length);
        Ok(answer)
    }

    /// Send one datagram and give the answer.
    pub fn udp_exchange(&self, target: SocketAddr, payload: &[u8], limit: Duration) -> Result<Vec<u8>> {
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.udp_bind(any.parse()?)?;
        let exchange = || -> io::Result<Vec<u8>> {
            // Connected, so that an ICMP error is told at once.
            socket.connect(target)?;
            socket.set_read_timeout(Some(limit))?;
            socket.send(payload)?;
            let mut answer = vec![0; 65536];
            let length = socket.recv(&mut answer)?;
            answer.truncate(length);
            Ok(answer)
        };
        exchange().with_context(|| format!("no UDP answer from {target} to {}", self.name))
    }

    /// Get `http://address[:port]/path`, on a connection of its own.
    pub fn http_get(&self, url: &str, limit: Duration) -> Result<Response> {
        let target = http::Target::parse(url)?;
        let stream = self.tcp_connect(target.address, limit)?;
        http::get(stream, &target, limit).with_context(|| format!("failed to get {url} from {}", self.name))
    }

    /// The place's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Why an exchange failed, as the kernel told it: refused, timed out, host unreachable…
pub fn error_kind(error: &anyhow::Error) -> Option<ErrorKind> {
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)?;
    // What a read past its time limit is called.
    Some(if kind == ErrorKind::WouldBlock { ErrorKind::TimedOut } else { kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_parsed() {
        assert_eq!("client".parse::<Place>().unwrap(), Place::Client);
        assert_eq!("node2".parse::<Place>().unwrap(), Place::Node(2));
        assert_eq!("web-1".parse::<Place>().unwrap(), Place::pod("default", "web-1"));
        assert_eq!("kube-system/x".parse::<Place>().unwrap(), Place::pod("kube-system", "x"));
        assert!("/x".parse::<Place>().is_err());
        assert_eq!(Place::Node(2).to_string(), "node2");
        assert_eq!(Place::pod("a", "b").to_string(), "a/b");
    }

    #[test]
    fn a_read_past_its_limit_counts_as_timed_out() {
        let error = anyhow::Error::from(io::Error::from(ErrorKind::WouldBlock)).context("x");
        assert_eq!(error_kind(&error), Some(ErrorKind::TimedOut));
    }
}
