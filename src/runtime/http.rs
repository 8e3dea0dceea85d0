//! Short answers over HTTP, for health checks: one request, one small answer, then the connection is closed, so that
//! nothing of a server that was given up lives on, and a client that dawdles is cut off.

use std::convert::Infallible;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::TcpStream;

/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long request and answer may take together.
const LONGEST: Duration = Duration::from_secs(10);

/// An answer, in plain values: those who decide about it need not know how it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(&'static str, String)>,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// An answer in JSON, which browsers shall take for nothing else.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let headers = [("content-type", "application/json"), ("x-content-type-options", "nosniff")];
        Self {
            status,
            headers: headers.into_iter().map(|(name, value)| (name, value.to_owned())).collect(),
            // Structs of plain fields always have a text.
            body: serde_json::to_string(value).unwrap_or_default(),
        }
    }

    /// 200 for yes, else 503.
    pub const fn status_of(is_good: bool) -> u16 {
        if is_good { 200 } else { 503 }
    }

    /// A word.
    pub fn text(status: u16, body: &str) -> Self {
        Self { status, headers: vec![("content-type", "text/plain; charset=utf-8".to_owned())], body: body.to_owned() }
    }

    /// There is nothing at this path.
    pub fn not_found() -> Self {
        Self::text(404, "not found\n")
    }

    fn into_response(self) -> Response<String> {
        let response = Response::builder().status(self.status);
        let response = self.headers.into_iter().fold(response, |response, (name, value)| response.header(name, value));
        response.body(self.body).unwrap_or_else(|error| {
            tracing::error!(%error, "an answer cannot be sent");
            let mut response = Response::default();
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
    }
}

/// Serves one connection; `answer` gets the path.
pub async fn serve(stream: TcpStream, answer: impl Fn(&str) -> Answer + Send + Sync) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(request.uri().path()).into_response();
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LONGEST, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "health check broke off"),
        Err(_elapsed) => tracing::debug!("health check took too long"),
    }
}
