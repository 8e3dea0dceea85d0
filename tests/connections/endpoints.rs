//! Servers that answer with their own name.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::namespace::Namespace;

const TICK: Duration = Duration::from_millis(50);

/// Servers at one address, for both protocols; end when dropped.
pub(crate) struct Server {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(namespace: &Namespace, address: SocketAddr) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let (udp, tcp) = namespace.run(|| (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap()));
        udp.set_read_timeout(Some(TICK)).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (over_udp, over_tcp) = (Arc::clone(&is_over), Arc::clone(&is_over));
        let name = address.to_string();
        let threads = vec![
            std::thread::spawn(move || answer_datagrams(&udp, &over_udp, &name)),
            std::thread::spawn(move || accept(&tcp, &over_tcp, &address.to_string())),
        ];
        Self { is_over, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, is_over: &AtomicBool, name: &str) {
    let mut buffer = [0; 64];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _lost = socket.send_to(name.as_bytes(), from);
        }
    }
}

/// Answers each byte with the name and a line's end.
fn accept(listener: &TcpListener, is_over: &AtomicBool, name: &str) {
    let mut streams = Vec::new();
    let mut buffer = [0; 64];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            streams.push(stream);
        }
        streams.retain_mut(|stream| match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => (0..count).all(|_| stream.write_all(format!("{name}\n").as_bytes()).is_ok()),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
