//! Tests with real sockets on loopback.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Sends its name and hangs up.
struct Named(&'static str);

impl Serve for Named {
    async fn serve(&self, mut stream: TcpStream) {
        let _gone = stream.write_all(self.0.as_bytes()).await;
    }
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn at(addresses: &[SocketAddr], name: &'static str) -> Option<Wanted<Named>> {
    Some(Wanted { addresses: addresses.iter().copied().collect(), server: Arc::new(Named(name)) })
}

async fn answer(address: SocketAddr) -> io::Result<String> {
    let mut text = String::new();
    TcpStream::connect(address).await?.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn an_address_passes_from_one_key_to_another_in_one_change() {
    let (first, second) = (free_address(), free_address());
    let mut listeners = Listeners::default();
    listeners.change(vec![("a", at(&[first], "a")), ("b", at(&[second], "b"))]).await;
    assert_eq!(answer(first).await.unwrap(), "a");
    listeners.change(vec![("a", at(&[second], "a")), ("b", at(&[first], "b"))]).await;
    // What they say is their servers' business, and these are new ones.
    assert_eq!((answer(first).await.unwrap(), answer(second).await.unwrap()), ("b".into(), "a".into()));
    listeners.change(vec![("a", None), ("b", None)]).await;
    assert!(answer(first).await.is_err() && answer(second).await.is_err());
    assert_eq!(listeners.failures().count(), 0);
}

#[tokio::test]
async fn an_address_that_another_has_is_told_and_had_when_it_is_free() {
    let (taken, free) = (free_address(), free_address());
    let squatter = std::net::TcpListener::bind(taken).unwrap();
    let mut listeners = Listeners::default();
    listeners.change(vec![("a", at(&[taken, free], "a"))]).await;
    let failures: Vec<_> = listeners.failures().map(|(key, address, error)| (*key, address, error.kind())).collect();
    assert_eq!(failures, [("a", taken, io::ErrorKind::AddrInUse)]);
    assert_eq!(answer(free).await.unwrap(), "a");
    drop(squatter);
    tokio::time::pause();
    listeners.retry_is_due().await;
    listeners.retry();
    tokio::time::resume();
    assert_eq!(listeners.failures().count(), 0);
    assert_eq!(answer(taken).await.unwrap(), "a");
}

#[tokio::test]
async fn two_keys_cannot_have_one_address_and_the_second_gets_it_after_the_first() {
    let address = free_address();
    let mut listeners = Listeners::default();
    listeners.change(vec![("a", at(&[address], "a")), ("b", at(&[address], "b"))]).await;
    assert_eq!(listeners.failures().map(|(key, ..)| *key).collect::<Vec<_>>(), ["b"]);
    listeners.change(vec![("a", None)]).await;
    assert_eq!(listeners.failures().count(), 0);
    assert_eq!(answer(address).await.unwrap(), "b");
}

#[tokio::test]
async fn a_socket_that_stays_is_not_opened_anew() {
    let (stays, comes) = (free_address(), free_address());
    let mut listeners = Listeners::default();
    listeners.change(vec![("a", at(&[stays], "before"))]).await;
    // Accepted by nobody yet: a socket that was opened anew would have lost it.
    let mut waiting = TcpStream::connect(stays).await.unwrap();
    listeners.change(vec![("a", at(&[stays, comes], "after"))]).await;
    let mut text = String::new();
    waiting.read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), answer(comes).await.unwrap().as_str()), ("before", "after"));
}

#[test]
fn the_address_of_both_families_has_two_sockets() {
    let both: Vec<String> = sockets_of("[::]:10256".parse().unwrap()).iter().map(ToString::to_string).collect();
    assert_eq!(both, ["0.0.0.0:10256", "[::]:10256"]);
    assert_eq!(sockets_of("127.0.0.1:1".parse().unwrap()).len(), 1);
}
