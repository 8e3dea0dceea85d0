//! Looks for another service proxy in this network namespace: who listens where only one does, and what it answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::model::service_proxy::{Health, Look, METRICS_PORT};
use crate::netlink::listeners::{Listener, listeners, own_sockets};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is read of an answer: its status line is within.
const ENOUGH: usize = 128;

/// Who listens on the health port or on kube-proxy's metrics port, besides this process; with `asks` also what the health
/// port answers. Rules are not looked at.
///
/// # Errors
/// When it cannot be found out who listens. That is no sign that nobody does.
pub async fn look(health_port: u16, asks: bool) -> io::Result<Look> {
    let others = others(&[health_port, METRICS_PORT])?;
    let mut listening: Vec<u16> = others.iter().map(|listener| listener.address.port()).collect();
    listening.sort_unstable();
    listening.dedup();
    let asked = others.iter().find(|listener| listener.address.port() == health_port).filter(|_| asks);
    let health = match asked {
        Some(listener) => health(reachable(listener.address)).await,
        None => None,
    };
    Ok(Look { listening, health, rules: None })
}

fn others(ports: &[u16]) -> io::Result<Vec<Listener>> {
    let listeners = listeners(ports)?;
    if listeners.is_empty() {
        return Ok(listeners);
    }
    let own = own_sockets()?;
    Ok(listeners.into_iter().filter(|listener| !own.contains(&listener.inode)).collect())
}

fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// `/livez` where there is one: unlike `/healthz` it does not turn bad because the node is about to be taken away, which
/// says nothing about forwarding and which the speaker knows by itself.
async fn health(address: SocketAddr) -> Option<Health> {
    const NOT_FOUND: u16 = 404;
    let code = match status(address, "/livez").await? {
        NOT_FOUND => status(address, "/healthz").await?,
        code => code,
    };
    Some(if (200..300).contains(&code) { Health::Healthy } else { Health::Unhealthy(code) })
}

async fn status(address: SocketAddr, path: &str) -> Option<u16> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        while answer.len() < ENOUGH && !answer.contains(&b'\n') {
            if stream.read_buf(&mut answer).await.ok()? == 0 {
                break;
            }
        }
        String::from_utf8_lossy(&answer).split_ascii_whitespace().nth(1)?.parse().ok()
    };
    tokio::time::timeout(PATIENCE, ask).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server that knows only the paths given.
    async fn server(paths: &'static [(&'static str, u16)]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = text.split_ascii_whitespace().nth(1).unwrap();
                let code = paths.iter().find(|(known, _)| *known == path).map_or(404, |(_, code)| *code);
                let answer = format!("HTTP/1.1 {code} Whatever\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn livez_is_asked_first_and_healthz_where_there_is_none() {
        assert_eq!(health(server(&[("/livez", 200), ("/healthz", 503)]).await).await, Some(Health::Healthy));
        assert_eq!(health(server(&[("/healthz", 200)]).await).await, Some(Health::Healthy));
        assert_eq!(health(server(&[("/livez", 503)]).await).await, Some(Health::Unhealthy(503)));
        assert_eq!(health("127.0.0.1:9".parse().unwrap()).await, None);
    }

    #[tokio::test]
    async fn our_own_sockets_are_no_other_proxy() {
        let ours = server(&[("/livez", 200)]).await;
        let look = look(ours.port(), true).await.unwrap();
        assert!(!look.listening.contains(&ours.port()), "{look:?}");
        assert_eq!(look.health, None);
    }
}
