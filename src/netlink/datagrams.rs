//! Answers of the kernel on a socket that does not block: they are all there when `send` returns.

use std::io;

use netlink_sys::Socket;

/// Errors after which a socket is given up.
const ERRORS: usize = 3;

/// The next datagram that is there.
pub(super) fn receive<'a>(socket: &Socket, buffer: &'a mut Vec<u8>) -> io::Result<Option<&'a [u8]>> {
    buffer.clear();
    match socket.recv(buffer, 0) {
        Ok(_) => Ok(Some(buffer)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Forgets answers to an earlier request that failed half-way.
pub(super) fn drain(socket: &Socket, buffer: &mut Vec<u8>) {
    let mut errors = 0;
    // An overrun is reported once, and what is left comes after it.
    while errors < ERRORS {
        match receive(socket, buffer) {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(_) => errors += 1,
        }
    }
}
