//! Connections that must not be lost: some that stay open, and new ones all the time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use steelyard_lab::Vantage;

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(3);
/// Between two new connections to one target.
const PACE: Duration = Duration::from_millis(20);

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
                return Err(std::io::ErrorKind::UnexpectedEof.into());
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

/// New connections to every target, one after the other.
pub(crate) struct Load {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    pub(crate) fn start(targets: Vec<(Vantage, SocketAddr)>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let run = |(from, target): (Vantage, SocketAddr)| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                let (mut succeeded, mut failed) = (0, Vec::new());
                while !is_over.load(Ordering::Relaxed) {
                    match from.http_get(&format!("http://{target}/hostname"), LIMIT) {
                        Ok(_) => succeeded += 1,
                        Err(error) => failed.push(format!("{target} from {}: {error:#}", from.name())),
                    }
                    // A pace, not a wait.
                    thread::sleep(PACE);
                }
                (succeeded, failed)
            })
        };
        let threads = targets.into_iter().map(run).collect();
        Self { is_over, threads }
    }

    /// How many succeeded, and why the others did not.
    pub(crate) fn stop(self) -> (usize, Vec<String>) {
        self.is_over.store(true, Ordering::Relaxed);
        let outcomes: Vec<(usize, Vec<String>)> =
            self.threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (outcomes.iter().map(|(count, _)| count).sum(), outcomes.into_iter().flat_map(|(_, failed)| failed).collect())
    }
}
