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
use tokio::task::{AbortHandle, JoinHandle};
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
    /// Told when a task has ended by itself.
    pub ended: Arc<Notify>,
}

/// A handle to the task of one interface.
#[derive(Debug)]
pub struct Responder {
    name: InterfaceName,
    station: watch::Sender<Arc<Station>>,
    started: Instant,
    task: AbortHandle,
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
        let running = tokio::spawn(task.run(receiver));
        let task = running.abort_handle();
        tokio::spawn(watch_over(running, name.clone(), settings.ended));
        Ok(Self { name, station: sender, started: Instant::now(), task })
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

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
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

/// Tells of a task's end once it is finished: whoever is told finds it so. A panic is an end, too; an abort is none of
/// its own.
async fn watch_over(task: JoinHandle<io::Result<()>>, interface: InterfaceName, ended: Arc<Notify>) {
    match task.await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => tracing::warn!(%interface, %error, "interface no longer answers"),
        Err(error) if error.is_cancelled() => return,
        Err(error) => tracing::error!(%interface, %error, "interface no longer answers"),
    }
    ended.notify_one();
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_told(task: JoinHandle<io::Result<()>>) -> bool {
        let ended = Arc::new(Notify::new());
        watch_over(task, "eth0".into(), Arc::clone(&ended)).await;
        tokio::time::timeout(Duration::ZERO, ended.notified()).await.is_ok()
    }

    #[tokio::test]
    async fn every_end_of_its_own_is_told_once_the_task_is_finished() {
        assert!(is_told(tokio::spawn(async { Err(io::ErrorKind::NotFound.into()) })).await);
        assert!(is_told(tokio::spawn(async { panic!("on purpose") })).await);
        assert!(!is_told(tokio::spawn(async { Ok(()) })).await);
        let aborted = tokio::spawn(std::future::pending());
        aborted.abort();
        assert!(!is_told(aborted).await);
    }
}
