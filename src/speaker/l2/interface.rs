//! One interface: a task that answers and announces there.
//!
//! The task reads what it announces from a `watch`: a change holds for the very next frame. Dropping the
//! [`Responder`] ends the task; from then on nothing is answered.

use std::hash::Hasher;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use siphasher::sip::SipHasher13;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::gratuitous::Schedule;
use super::responder::{DropReason, Station, answer_arp, answer_ndp};
use super::socket::Sockets;
use super::{arp, ndp};
use crate::model::link::{InterfaceIndex, Mac};
use crate::names::InterfaceName;
use crate::netlink::packet_socket::PacketSocket;
use crate::speaker::metrics::{InterfaceMetrics, Metrics, Protocol};

/// The longest frame that is read: a solicitation with more options than anybody sends. Longer ones are cut, and then
/// fail their checks.
const LONGEST_FRAME: usize = 512;
/// How many addresses are announced before the next frame is looked at: 2,000 at once must not keep a client waiting.
const PORTION: usize = 32;
/// How much of the refresh interval is jitter: an eighth.
const JITTER_SHARE: u32 = 8;

/// What a responder needs besides its station.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Between two unasked announcements of an address once it has settled.
    pub refresh: Duration,
    /// What is counted.
    pub metrics: Metrics,
    /// Told when a task ends by itself.
    pub ended: Arc<Notify>,
}

/// A handle to the task of one interface.
#[derive(Debug)]
pub struct Responder {
    name: InterfaceName,
    station: watch::Sender<Arc<Station>>,
    task: JoinHandle<()>,
}

impl Responder {
    /// Opens the sockets and starts to answer and announce.
    ///
    /// # Errors
    /// When the sockets cannot be opened: no `CAP_NET_RAW`, or the interface is gone.
    pub fn start(index: InterfaceIndex, name: InterfaceName, station: Station, settings: Settings) -> io::Result<Self> {
        let sockets = Sockets::open(index, &station)?;
        let mut schedule = Schedule::new(settings.refresh);
        schedule.set(&station.addresses, Instant::now());
        let (sender, receiver) = watch::channel(Arc::new(station));
        let task = Task {
            sockets,
            schedule,
            jitter: settings.refresh / JITTER_SHARE,
            arp: settings.metrics.on(&name, Protocol::Arp),
            ndp: settings.metrics.on(&name, Protocol::Ndp),
        };
        let interface = name.clone();
        let task = tokio::spawn(async move {
            if let Err(error) = task.run(receiver).await {
                tracing::warn!(%interface, %error, "interface no longer answers");
                settings.ended.notify_one();
            }
        });
        Ok(Self { name, station: sender, task })
    }

    /// Announces this from the next frame on.
    pub fn set(&self, station: Station) {
        self.station.send_replace(Arc::new(station));
    }

    /// What it announces.
    pub fn station(&self) -> Arc<Station> {
        Arc::clone(&self.station.borrow())
    }

    /// The interface's name when it was started.
    pub fn name(&self) -> &InterfaceName {
        &self.name
    }

    /// Whether it has stopped by itself.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    sockets: Sockets,
    schedule: Schedule,
    jitter: Duration,
    arp: InterfaceMetrics,
    ndp: InterfaceMetrics,
}

impl Task {
    async fn run(mut self, mut stations: watch::Receiver<Arc<Station>>) -> io::Result<()> {
        let mut arp_frame = [0; LONGEST_FRAME];
        let mut ndp_frame = [0; LONGEST_FRAME];
        let mut mac = stations.borrow().mac;
        loop {
            // Fair, not biased: neither a flood of questions nor a mass take-over starves the other.
            tokio::select! {
                changed = stations.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let station = Arc::clone(&stations.borrow_and_update());
                    self.follow(&station, &mut mac)?;
                }
                received = receive(self.sockets.arp.as_ref(), &mut arp_frame) => {
                    if let Some(frame) = heard(received)?.and_then(|length| arp_frame.get(..length)) {
                        let answer = answer_arp(&stations.borrow(), frame);
                        reply(self.sockets.arp.as_ref(), answer, &self.arp);
                    }
                }
                received = receive(self.sockets.ndp.as_ref(), &mut ndp_frame) => {
                    if let Some(frame) = heard(received)?.and_then(|length| ndp_frame.get(..length)) {
                        let answer = answer_ndp(&stations.borrow(), frame);
                        reply(self.sockets.ndp.as_ref(), answer, &self.ndp);
                    }
                }
                () = until(self.schedule.next_due()) => {
                    let station = Arc::clone(&stations.borrow());
                    self.announce(&station);
                }
            }
        }
    }

    fn follow(&mut self, station: &Station, mac: &mut Mac) -> io::Result<()> {
        let now = Instant::now();
        self.sockets.follow(station)?;
        self.schedule.set(&station.addresses, now);
        if *mac != station.mac {
            *mac = station.mac;
            self.schedule.restart(now);
        }
        Ok(())
    }

    fn announce(&mut self, station: &Station) {
        let jitter = |address, count| jitter(station.mac, address, count, self.jitter);
        for address in self.schedule.take_due(Instant::now(), PORTION, jitter) {
            match address {
                // It may have been withdrawn a moment ago.
                address if !station.addresses.contains(&address) => {}
                IpAddr::V4(address) => {
                    send(self.sockets.arp.as_ref(), &arp::gratuitous_request(address, station.mac), &self.arp);
                    send(self.sockets.arp.as_ref(), &arp::gratuitous_reply(address, station.mac), &self.arp);
                }
                IpAddr::V6(address) => {
                    let advertisement = ndp::unsolicited_advertisement(address, station.mac);
                    send(self.sockets.ndp.as_ref(), &advertisement, &self.ndp);
                }
            }
        }
    }
}

/// Receives from a socket that may not be open. Cancel safe.
async fn receive(socket: Option<&PacketSocket>, buffer: &mut [u8]) -> io::Result<usize> {
    match socket {
        Some(socket) => socket.receive(buffer).await,
        None => std::future::pending().await,
    }
}

/// The length of what came, or nothing where the interface has only gone down: it may come back, and if it does not,
/// the interfaces' watch says so.
fn heard(received: io::Result<usize>) -> io::Result<Option<usize>> {
    match received {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::NetworkDown => Ok(None),
        Err(error) => Err(error),
    }
}

fn reply<const LENGTH: usize>(
    socket: Option<&PacketSocket>,
    answer: Result<[u8; LENGTH], DropReason>,
    metrics: &InterfaceMetrics,
) {
    metrics.requests.inc();
    match answer {
        Ok(frame) => match socket.map(|socket| socket.send(&frame)) {
            Some(Ok(())) => {
                metrics.replies.inc();
            }
            Some(Err(_)) | None => {
                metrics.send_failures.inc();
            }
        },
        Err(reason) => metrics.drop(reason),
    }
}

fn send(socket: Option<&PacketSocket>, frame: &[u8], metrics: &InterfaceMetrics) {
    match socket.map(|socket| socket.send(frame)) {
        Some(Ok(())) => metrics.gratuitous.inc(),
        Some(Err(_)) | None => metrics.send_failures.inc(),
    };
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A span up to `most` that differs between nodes, addresses and rounds, so that refreshes of many addresses spread out.
fn jitter(mac: Mac, address: IpAddr, count: u32, most: Duration) -> Duration {
    let mut hasher = SipHasher13::new();
    hasher.write(&mac.octets());
    match address {
        IpAddr::V4(address) => hasher.write(&address.octets()),
        IpAddr::V6(address) => hasher.write(&address.octets()),
    }
    hasher.write_u32(count);
    let share = hasher.finish() % 1000;
    most.mul_f64(share as f64 / 1000.0)
}
