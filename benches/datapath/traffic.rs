//! Traffic through the hooks of the bench's namespace: a datagram each millisecond, and the longest wait for its echo.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A client and a server that echoes, on the loopback of this namespace.
pub(crate) struct Echo {
    longest: Arc<AtomicU64>,
    is_stopped: Arc<AtomicBool>,
    threads: [JoinHandle<()>; 2],
}

impl Echo {
    pub(crate) fn start() -> Self {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let (longest, is_stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stop = Arc::clone(&is_stopped);
        let serving = thread::spawn(move || {
            let mut buffer = [0; 16];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, client)) = server.recv_from(&mut buffer) {
                    server.send_to(&buffer[..length], client).unwrap();
                }
            }
        });
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (stop, worst) = (Arc::clone(&is_stopped), Arc::clone(&longest));
        let asking = thread::spawn(move || {
            let mut last = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                client.send(b"ping").unwrap();
                client.recv(&mut [0; 16]).unwrap();
                let gap = last.elapsed();
                last = Instant::now();
                worst.fetch_max(u64::try_from(gap.as_nanos()).unwrap(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { longest, is_stopped, threads: [serving, asking] }
    }

    /// The longest time between two echoes since this was last asked.
    pub(crate) fn gaps(&self) -> Duration {
        Duration::from_nanos(self.longest.swap(0, Ordering::Relaxed))
    }

    pub(crate) fn stop(self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
