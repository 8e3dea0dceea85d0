//! Connections that must not be lost: some that stay open, and new ones all the time, each timed.

use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use steelyard_lab::{Lab, Place, Vantage};

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How many open connections to one target at a time: one that hangs does not keep the others from being tried.
pub(crate) const WORKERS: usize = 3;
/// Between two new connections of one worker: with eight targets up to 160 connections in a second.
const PACE: Duration = Duration::from_millis(150);

/// From where to where.
pub(crate) type Way = (Place, SocketAddr);

/// A connection that stays.
pub(crate) struct Established {
    stream: BufReader<TcpStream>,
    target: SocketAddr,
    name: String,
}

impl Established {
    pub(crate) fn open(from: &Vantage, target: SocketAddr) -> Self {
        let stream = from.tcp_connect(target, LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut connection = Self { stream: BufReader::new(stream), target, name: String::new() };
        connection.name = connection.request().unwrap();
        connection
    }

    /// Some for each way.
    pub(crate) fn open_all(lab: &Lab, ways: &[Way]) -> Vec<Self> {
        let open = |(place, target): &Way| {
            let from = lab.at(place).unwrap();
            (0..3).map(|_| Self::open(&from, *target)).collect::<Vec<_>>()
        };
        ways.iter().flat_map(open).collect()
    }

    /// The same pod answers again.
    pub(crate) fn ask(&mut self, when: &str) {
        match self.request() {
            Ok(name) => assert_eq!(name, self.name, "{when}, another pod answers on the same connection"),
            Err(error) => panic!("{when}, an established connection to {} is lost: {error}", self.target),
        }
    }

    fn request(&mut self) -> std::io::Result<String> {
        self.stream.get_mut().write_all(b"GET /hostname HTTP/1.1\r\nHost: web\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8(body).unwrap())
    }
}

/// One new connection, with one request and its answer.
struct Attempt {
    start: Instant,
    end: Instant,
    outcome: std::io::Result<()>,
}

/// New connections on every way, until it is stopped.
pub(crate) struct Load {
    start: Instant,
    is_over: Arc<AtomicBool>,
    workers: Vec<(Way, JoinHandle<Vec<Attempt>>)>,
}

impl Load {
    pub(crate) fn start(lab: &Lab, ways: &[Way]) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for (place, target) in ways {
            for _ in 0..WORKERS {
                let (from, target, is_over) = (lab.at(place).unwrap(), *target, Arc::clone(&is_over));
                let work = move || from.within(|| Ok(connect_until(&is_over, target))).unwrap();
                workers.push(((place.clone(), target), thread::spawn(work)));
            }
        }
        Self { start: Instant::now(), is_over, workers }
    }

    /// Ends it, and says what became of all.
    pub(crate) fn stop(self) -> Account {
        self.is_over.store(true, Ordering::Relaxed);
        let end = Instant::now();
        let mut account = Account::default();
        // A way's attempts together, so that a gap is one that all of its workers saw.
        let mut ways: Vec<(Way, Vec<Attempt>)> = Vec::new();
        for (way, worker) in self.workers {
            let attempts = worker.join().unwrap();
            match ways.last_mut() {
                Some((last, all)) if *last == way => all.extend(attempts),
                _ => ways.push((way, attempts)),
            }
        }
        for ((place, target), mut attempts) in ways {
            attempts.sort_by_key(|attempt| attempt.end);
            let mut last = self.start;
            for attempt in attempts {
                account.made += 1;
                let took = attempt.end - attempt.start;
                account.slowest = account.slowest.max(took);
                match attempt.outcome {
                    Ok(()) => {
                        account.longest_gap = account.longest_gap.max(attempt.end - last);
                        last = attempt.end;
                    }
                    Err(error) => account.failed.push(Failed {
                        target,
                        start: attempt.start,
                        kind: error.kind(),
                        text: format!(
                            "{place} to {target}, {:?} after the start: {error} after {took:?}",
                            attempt.start - self.start
                        ),
                    }),
                }
            }
            account.longest_gap = account.longest_gap.max(end.saturating_duration_since(last));
        }
        account
    }
}

/// A connection that did not serve.
pub(crate) struct Failed {
    pub(crate) target: SocketAddr,
    /// As the kernel told it.
    pub(crate) kind: ErrorKind,
    /// When it was begun.
    pub(crate) start: Instant,
    text: String,
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What became of a load.
#[derive(Default)]
pub(crate) struct Account {
    pub(crate) made: usize,
    pub(crate) failed: Vec<Failed>,
    /// The longest time in which no connection on one of the ways ended well.
    pub(crate) longest_gap: Duration,
    /// What the slowest took from its begin to the end of the answer.
    pub(crate) slowest: Duration,
}

impl Account {
    /// Prints the figures and expects a real load without a failure.
    pub(crate) fn expect_no_failure(&self, what: &str) {
        eprintln!("{what}: {self}");
        assert!(self.failed.is_empty(), "{what}: {self}\n{:#?}", self.failed);
        self.expect_load(what);
    }

    /// A load that was hardly one shows nothing.
    pub(crate) fn expect_load(&self, what: &str) {
        assert!(self.made >= 300, "{what}: only {} connections were tried", self.made);
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (gap, slowest) = (self.longest_gap.as_millis(), self.slowest.as_millis());
        write!(f, "{} connections, {} failed, longest gap {gap} ms, ", self.made, self.failed.len())?;
        write!(f, "slowest connection {slowest} ms")
    }
}

fn connect_until(is_over: &AtomicBool, target: SocketAddr) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let start = Instant::now();
        let outcome = connect_once(target);
        attempts.push(Attempt { start, end: Instant::now(), outcome });
        // A pace, not a wait.
        thread::sleep(PACE);
    }
    attempts
}

fn connect_once(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}
