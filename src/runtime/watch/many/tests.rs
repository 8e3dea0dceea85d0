//! A watch of Services, from an API server that says what it is told to say.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request as Question, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::core::v1 as core;
use kube::Config;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::model::service::Service;
use crate::runtime::watch::{Event, forward_many, sink};

const PROTOBUF: &[u8] = include_bytes!("../wire/services.pb");
const JSON: &str = include_str!("../wire/services.json");

/// What is asked, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    CachedProtobuf,
    Json,
    Watch,
}

type Asking = Arc<Mutex<Vec<Asked>>>;

async fn answer(State((asking, speaks_protobuf)): State<(Asking, bool)>, question: Question) -> Response {
    let query = question.uri().query().unwrap_or_default();
    let wants_protobuf = question.headers().get("accept").is_some_and(|kind| kind == super::PROTOBUF);
    let asked = match (query.contains("watch=true"), wants_protobuf && query.contains("resourceVersion=0")) {
        (true, _) => Asked::Watch,
        (false, true) => Asked::CachedProtobuf,
        (false, false) => Asked::Json,
    };
    let is_first_watch = {
        let mut asking = asking.lock().unwrap();
        asking.push(asked);
        asking.iter().filter(|asked| **asked == Asked::Watch).count() == 1
    };
    match asked {
        Asked::CachedProtobuf if !speaks_protobuf => {
            let status = r#"{"kind":"Status","status":"Failure","message":"only JSON","code":406}"#;
            (StatusCode::NOT_ACCEPTABLE, status).into_response()
        }
        Asked::CachedProtobuf => PROTOBUF.into_response(),
        Asked::Json => JSON.into_response(),
        Asked::Watch if is_first_watch && speaks_protobuf => {
            assert!(query.contains("resourceVersion=2716"), "goes on where the list ended: {query}");
            let object = r#"{"metadata":{"name":"new","namespace":"shop","resourceVersion":"2717"},"spec":{}}"#;
            let gone = r#"{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}"#;
            let lines = [("ADDED", object), ("DELETED", object), ("ERROR", gone)];
            lines
                .map(|(kind, object)| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
                .concat()
                .into_response()
        }
        Asked::Watch => std::future::pending().await,
    }
}

/// Watches until so many events came.
async fn watch(speaks_protobuf: bool, count: usize) -> (Vec<Event<Service>>, Vec<Asked>) {
    let asking = Asking::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state((Arc::clone(&asking), speaks_protobuf));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let client = super::Client::try_from(Config::new(url.parse().unwrap())).unwrap();
    let (sender, mut events) = mpsc::channel(16);
    let config = super::watcher::Config::default();
    let watching = tokio::spawn(forward_many::<core::Service>(client, config, vec![sink(sender, |event| event)]));
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.push(events.recv().await.unwrap());
    }
    watching.abort();
    server.abort();
    let asked = asking.lock().unwrap().clone();
    (seen, asked)
}

#[tokio::test]
async fn a_version_that_is_forgotten_brings_a_new_list_that_is_not_from_the_cache() {
    let (seen, asked) = watch(true, 4).await;
    let [Event::Replaced(first), Event::Applied(new), Event::Removed(gone), Event::Replaced(second)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(first.len(), 3);
    assert_eq!(first, second);
    assert_eq!(new.key, *gone);
    assert_eq!(asked[..3], [Asked::CachedProtobuf, Asked::Watch, Asked::Json]);
}

#[tokio::test]
async fn a_server_without_protobuf_is_asked_for_json() {
    let (seen, asked) = watch(false, 1).await;
    assert!(matches!(&seen[..], [Event::Replaced(all)] if all.len() == 3), "{seen:?}");
    assert_eq!(asked[..2], [Asked::CachedProtobuf, Asked::Json]);
}
