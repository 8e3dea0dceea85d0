//! A UDP client that keeps its source port and sends every 5 ms, whatever happens.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::stage::{LIMIT, Place, Stage, on_a_busy_machine};

const EVERY: Duration = Duration::from_millis(5);

/// How long nothing else may be heard.
const SETTLED: Duration = Duration::from_millis(150);

/// What the client hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    From(SocketAddr),
    Refused,
    Nothing,
}

/// How long the clients of one test waited after each event.
pub(crate) struct Times(RefCell<Vec<Duration>>);

impl Times {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self(RefCell::default()))
    }

    /// Typically a client waits no longer than this. A single time tells of the machine's scheduler as much as of us.
    pub(crate) fn are_within(&self, limit: Duration, what: &str) {
        let mut times = self.0.borrow_mut();
        times.sort();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{what}: {} moves, median {median:.1?}, worst {worst:.1?}", times.len());
        assert!(median < on_a_busy_machine(limit), "{what}: took {times:?}");
    }
}

pub(crate) struct Client {
    socket: UdpSocket,
    times: Rc<Times>,
}

impl Client {
    pub(crate) fn new(stage: &Stage, place: Place, to: SocketAddr, times: &Rc<Times>) -> Self {
        let any = match stage.family {
            steelyard::model::Family::V4 => "0.0.0.0:0",
            steelyard::model::Family::V6 => "[::]:0",
        };
        let socket = stage.namespace(place).run(|| {
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(to).unwrap();
            socket
        });
        socket.set_nonblocking(true).unwrap();
        Self { socket, times: Rc::clone(times) }
    }

    /// Sends, and listens until it is time for the next.
    pub(crate) fn ask(&self) -> Heard {
        let start = Instant::now();
        let mut heard = Heard::Nothing;
        if let Err(error) = self.socket.send(b"?")
            && error.kind() == ErrorKind::ConnectionRefused
        {
            heard = Heard::Refused;
        }
        let mut buffer = [0; 64];
        while let Some(rest) = EVERY.checked_sub(start.elapsed()) {
            match self.socket.recv(&mut buffer) {
                Ok(count) => heard = Heard::From(std::str::from_utf8(&buffer[..count]).unwrap().parse().unwrap()),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => heard = Heard::Refused,
                Err(_) => self.wait(rest),
            }
        }
        heard
    }

    /// Until there is something to receive. A socket's own time limit would be rounded up to the kernel's ticks.
    fn wait(&self, limit: Duration) {
        let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        ppoll(&mut sockets, Some(TimeSpec::from_duration(limit)), None).unwrap();
    }

    /// Goes on until it hears this.
    pub(crate) fn until(&self, what: &str, wanted: impl Fn(Heard) -> bool) -> Duration {
        let start = Instant::now();
        let mut last = Heard::Nothing;
        while start.elapsed() < LIMIT {
            last = self.ask();
            if wanted(last) {
                return start.elapsed();
            }
        }
        panic!("{what}: still {last:?} after {LIMIT:?}");
    }

    /// Hears nothing else for a while. What was on its way may come first.
    pub(crate) fn keeps(&self, what: &str, allowed: impl Fn(Heard) -> bool) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(150) {
            let heard = self.ask();
            assert!(heard == Heard::Nothing || allowed(heard), "{what}: {heard:?}");
        }
    }

    /// After an event just told: hears this, and nothing else from then on.
    pub(crate) fn moves(&self, what: &str, wanted: impl Fn(Heard) -> bool) {
        let start = Instant::now();
        let (mut last, mut took, mut since) = (Heard::Nothing, None, Instant::now());
        // Silence for once may only be a slow answer.
        while took.is_none() || since.elapsed() < SETTLED {
            assert!(start.elapsed() < LIMIT, "{what}: still {last:?} after {LIMIT:?}");
            last = self.ask();
            if wanted(last) {
                took.get_or_insert_with(|| start.elapsed());
            } else if last != Heard::Nothing {
                took = None;
                since = Instant::now();
            }
        }
        let took = took.unwrap_or_default();
        println!("{what}: {:.1} ms", took.as_secs_f64() * 1000.0);
        self.times.0.borrow_mut().push(took);
    }
}
