//! One client on localhost: an endpoint that answers is found, then bytes go both ways until both sides have ended. Either
//! side may end first and go on reading (half-close).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

/// How long an endpoint may take to answer before the next is tried.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// Who knows the endpoints.
pub trait Chooser: Send + Sync {
    /// Endpoints for a new connection, in the order in which they are tried.
    fn choose(&self) -> Vec<SocketAddr>;
    /// This one took it.
    fn chosen(&self, endpoint: SocketAddr);
}

/// Forwards one connection to its end. A client for whom no endpoint answers is reset.
pub async fn forward(mut client: TcpStream, chooser: &impl Chooser) {
    let mut server = match connect(chooser).await {
        Ok(server) => server,
        Err(error) => {
            tracing::debug!(%error, "no endpoint answers a client on localhost");
            // It goes by without a word if the client is gone already.
            let _gone = client.set_zero_linger();
            return;
        }
    };
    // What is small and urgent on one side is so on the other.
    for stream in [&client, &server] {
        let _gone = stream.set_nodelay(true);
    }
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
        tracing::debug!(%error, "a connection from localhost broke");
        for stream in [&client, &server] {
            let _gone = stream.set_zero_linger();
        }
    }
}

async fn connect(chooser: &impl Chooser) -> io::Result<TcpStream> {
    let mut outcome = Err(io::ErrorKind::ConnectionRefused.into());
    for endpoint in chooser.choose() {
        outcome = match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(endpoint)).await {
            Ok(Ok(stream)) => {
                chooser.chosen(endpoint);
                return Ok(stream);
            }
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        };
    }
    outcome
}
