//! The API server is reached at loopback in every proxy's namespace: so the namespaces have no link of their own for it, and
//! are the same in all that a proxy looks at.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::stage::namespace::Namespace;

/// Where it is reached.
pub const ADDRESS: &str = "127.0.0.1:6443";

/// Takes no new connections once it is dropped.
pub struct Relay {
    is_over: Arc<AtomicBool>,
    wake: TcpStream,
}

impl Relay {
    /// Relays connections in `from` to the same address in `to`.
    pub fn start(from: &Namespace, to: &Arc<Namespace>) -> Result<Self, String> {
        let failed = |error: io::Error| format!("failed to relay: {error}");
        let (listener, wake, gate) = from
            .run(|| {
                let listener = TcpListener::bind(ADDRESS)?;
                // Ends the wait for the next connection when it is closed.
                let gate = TcpListener::bind("127.0.0.1:0")?;
                let wake = TcpStream::connect(gate.local_addr()?)?;
                Ok((listener, wake, gate))
            })
            .map_err(failed)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (to, over) = (Arc::clone(to), Arc::clone(&is_over));
        listener.set_nonblocking(true).map_err(failed)?;
        let (gate, _) = gate.accept().map_err(failed)?;
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((near, _)) => serve(near, Arc::clone(&to)),
                    Err(_) => wait(&listener, &gate),
                }
            }
        });
        Ok(Self { is_over, wake })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.wake.shutdown(Shutdown::Both);
    }
}

fn wait(listener: &TcpListener, gate: &TcpStream) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let _ = poll(&mut [watch(listener.as_fd()), watch(gate.as_fd())], PollTimeout::NONE);
}

fn serve(near: TcpStream, to: Arc<Namespace>) {
    thread::spawn(move || {
        let _ = near.set_nonblocking(false);
        if let Ok(far) = to.run(|| TcpStream::connect(ADDRESS)) {
            let _ = join(near, far);
        }
    });
}

fn join(near: TcpStream, far: TcpStream) -> io::Result<()> {
    let (mut up_from, mut up_to) = (near.try_clone()?, far.try_clone()?);
    let upwards = thread::spawn(move || {
        let _ = io::copy(&mut up_from, &mut up_to);
        let _ = up_to.shutdown(Shutdown::Both);
    });
    let (mut down_from, mut down_to) = (far, near);
    let _ = io::copy(&mut down_from, &mut down_to);
    let _ = down_to.shutdown(Shutdown::Both);
    let _ = upwards.join();
    Ok(())
}
