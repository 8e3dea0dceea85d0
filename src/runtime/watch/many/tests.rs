//! A watch of Services, from an API server that says what it is told to say.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as Question, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::stream;
use k8s_openapi::api::core::v1 as core;
use kube::Config;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::messages::{Status, Unknown};
use super::*;
use crate::model::service::Service;
use crate::runtime::watch::{Event, forward_many, sink};

const LIST: &[u8] = include_bytes!("../wire/services.pb");
const JSON: &str = include_str!("../wire/services.json");
/// The version of both.
const VERSION: u64 = 2716;

/// What is asked, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    CachedProtobuf,
    Json,
    /// From a version on.
    Watch(u64),
}

use Asked::{CachedProtobuf, Json, Watch};

/// What the server answers to all that was asked so far, the newest last.
type Answers = fn(&[Asked]) -> Response;
type Asking = Arc<Mutex<Vec<Asked>>>;

async fn answer(State((asking, answers)): State<(Asking, Answers)>, question: Question) -> Response {
    let query = question.uri().query().unwrap_or_default();
    let version = query.split('&').find_map(|part| part.strip_prefix("resourceVersion="));
    let wants_protobuf = question.headers().get("accept").is_some_and(|kind| kind == PROTOBUF);
    let asked = match (query.contains("watch=true"), wants_protobuf && version == Some("0")) {
        (true, _) => Watch(version.unwrap().parse().unwrap()),
        (false, true) => CachedProtobuf,
        (false, false) => Json,
    };
    let answer = {
        let mut asking = asking.lock().unwrap();
        asking.push(asked);
        // Nobody asks without end.
        (asking.len() < 20).then(|| answers(&asking))
    };
    answer.unwrap_or_else(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// Watches until so many events came and so much was asked.
async fn watch(answers: Answers, events: usize, questions: usize) -> (Vec<Event<Service>>, Vec<Asked>) {
    let asking = Asking::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state((Arc::clone(&asking), answers));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let client = Client::try_from(Config::new(url.parse().unwrap())).unwrap();
    let (sender, mut received) = mpsc::channel(16);
    let config = watcher::Config::default();
    let watching = tokio::spawn(forward_many::<core::Service>(client, config, vec![sink(sender, |event| event)]));
    let mut seen = Vec::new();
    let asked = || asking.lock().unwrap().clone();
    let all = async {
        while seen.len() < events {
            seen.push(received.recv().await.unwrap());
        }
        while asked().len() < questions {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let outcome = timeout(Duration::from_secs(20), all).await;
    watching.abort();
    server.abort();
    assert!(outcome.is_ok(), "saw only {seen:?} after {:?}", asked());
    (seen, asked())
}

/// Shortly, what was seen.
fn short(events: &[Event<Service>]) -> Vec<String> {
    let short = |event: &Event<Service>| match event {
        Event::Replaced(all) => format!("{} in all", all.len()),
        Event::Applied(service) => format!("{} is there", service.key),
        Event::Removed(key) => format!("{key} is gone"),
    };
    events.iter().map(short).collect()
}

/// Lines of a watch, each a kind and an object; then the server ends it.
fn lines(lines: &[(&str, &str)]) -> Response {
    let line = |(kind, object): &(&str, &str)| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
    lines.iter().map(line).collect::<String>().into_response()
}

/// A watch on which nothing happens.
fn silence() -> Response {
    Body::from_stream(stream::pending::<Result<&[u8], std::io::Error>>()).into_response()
}

/// A refusal in the language that was asked for, in bytes that are no text.
fn protobuf_refusal(code: StatusCode) -> Response {
    let message = format!("no, because {}", "of this and that ".repeat(20));
    let status = Status { message, reason: "Because".to_owned(), code: i32::from(code.as_u16()) };
    let body = [MAGIC, &Unknown { raw: status.encode_to_vec() }.encode_to_vec()].concat();
    assert!(std::str::from_utf8(&body).is_err());
    (code, body).into_response()
}

const GONE: &str = r#"{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}"#;

#[tokio::test]
async fn a_version_that_is_forgotten_brings_a_new_list_that_is_not_from_the_cache() {
    let answers: Answers = |asked| match asked {
        [.., CachedProtobuf] => LIST.into_response(),
        [.., Json] => JSON.into_response(),
        [_, Watch(_)] => {
            let object = r#"{"metadata":{"name":"new","namespace":"shop","resourceVersion":"2717"},"spec":{}}"#;
            lines(&[("ADDED", object), ("DELETED", object), ("ERROR", GONE)])
        }
        _ => silence(),
    };
    let (seen, asked) = watch(answers, 4, 4).await;
    assert_eq!(short(&seen), ["3 in all", "shop/new is there", "shop/new is gone", "3 in all"]);
    let (Event::Replaced(first), Event::Replaced(second)) = (&seen[0], &seen[3]) else { panic!("{seen:?}") };
    assert_eq!(first, second);
    assert_eq!(asked, [CachedProtobuf, Watch(VERSION), Json, Watch(VERSION)]);
}

#[tokio::test]
async fn a_version_that_is_forgotten_at_once_brings_a_new_list() {
    for code in [StatusCode::GONE, StatusCode::BAD_REQUEST] {
        let answers: Answers = match code {
            StatusCode::GONE => |asked| match asked {
                [.., CachedProtobuf] => LIST.into_response(),
                [_, Watch(_)] => (StatusCode::GONE, GONE).into_response(),
                [.., Json] => JSON.into_response(),
                _ => silence(),
            },
            _ => |asked| match asked {
                [.., CachedProtobuf] => LIST.into_response(),
                [_, Watch(_)] => (StatusCode::BAD_REQUEST, "what version is that").into_response(),
                [.., Json] => JSON.into_response(),
                _ => silence(),
            },
        };
        let (seen, asked) = watch(answers, 2, 4).await;
        assert_eq!(short(&seen), ["3 in all", "3 in all"]);
        assert_eq!(asked, [CachedProtobuf, Watch(VERSION), Json, Watch(VERSION)], "{code}");
    }
}

#[tokio::test]
async fn a_server_that_gives_no_protobuf_is_asked_for_json() {
    let whole: Answers = |asked| match asked {
        [.., CachedProtobuf] => (StatusCode::NOT_ACCEPTABLE, "only JSON").into_response(),
        [.., Json] => JSON.into_response(),
        _ => silence(),
    };
    let said_in_protobuf: Answers = |asked| match asked {
        [.., CachedProtobuf] => protobuf_refusal(StatusCode::BAD_REQUEST),
        [.., Json] => JSON.into_response(),
        _ => silence(),
    };
    let heedless: Answers = |asked| match asked {
        [.., CachedProtobuf | Json] => JSON.into_response(),
        _ => silence(),
    };
    let garbled: Answers = |asked| match asked {
        [.., CachedProtobuf] => LIST[..LIST.len() / 2].into_response(),
        [.., Json] => JSON.into_response(),
        _ => silence(),
    };
    for answers in [whole, said_in_protobuf, heedless, garbled] {
        let (seen, asked) = watch(answers, 1, 3).await;
        assert_eq!(short(&seen), ["3 in all"]);
        assert_eq!(asked, [CachedProtobuf, Json, Watch(VERSION)]);
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_is_asked_for_anew_and_told_once() {
    let answers: Answers = |asked| match asked {
        [CachedProtobuf] => protobuf_refusal(StatusCode::TOO_MANY_REQUESTS),
        [_, CachedProtobuf] => {
            // Past the first Service.
            let half = Ok(&LIST[..LIST.len() / 2]);
            Body::from_stream(stream::iter([half, Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe))]))
                .into_response()
        }
        [.., CachedProtobuf] => LIST.into_response(),
        _ => silence(),
    };
    let (seen, asked) = watch(answers, 1, 4).await;
    assert_eq!(short(&seen), ["3 in all"]);
    assert_eq!(asked, [CachedProtobuf, CachedProtobuf, CachedProtobuf, Watch(VERSION)]);
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was() {
    let answers: Answers = |asked| {
        match asked {
        [.., CachedProtobuf] => LIST.into_response(),
        [_, Watch(_)] => lines(&[
            ("ADDED", r#"{"metadata":{"name":"new","namespace":"shop","resourceVersion":"2717"},"spec":{}}"#),
            ("BOOKMARK", r#"{"kind":"Service","apiVersion":"v1","metadata":{"resourceVersion":"2800"}}"#),
        ]),
        // The second event breaks off.
        [_, _, Watch(_)] => [
            r#"{"type":"DELETED","object":{"metadata":{"name":"new","namespace":"shop","resourceVersion":"2801"},"spec":{}}}"#,
            r#"{"type":"ADDED","object":{"metadata":{"name":"newer","#,
        ]
        .join("\n")
        .into_response(),
        [_, _, _, Watch(_)] => (StatusCode::TOO_MANY_REQUESTS, "later").into_response(),
        _ => silence(),
    }
    };
    let (seen, asked) = watch(answers, 3, 5).await;
    assert_eq!(short(&seen), ["3 in all", "shop/new is there", "shop/new is gone"]);
    assert_eq!(asked, [CachedProtobuf, Watch(VERSION), Watch(2800), Watch(2801), Watch(2801)]);
}

#[tokio::test]
async fn a_watch_that_the_server_cannot_serve_brings_a_new_list() {
    let answers: Answers = |asked| match asked {
        [.., CachedProtobuf] => LIST.into_response(),
        [.., Json] => JSON.into_response(),
        [.., Json, Watch(_)] => silence(),
        // It would say so again however often it is asked.
        _ => lines(&[(
            "ERROR",
            r#"{"kind":"Status","status":"Failure","message":"no previous value","reason":"InternalError","code":500}"#,
        )]),
    };
    let (seen, asked) = watch(answers, 2, 4).await;
    assert_eq!(short(&seen), ["3 in all", "3 in all"]);
    assert_eq!(asked, [CachedProtobuf, Watch(VERSION), Json, Watch(VERSION)]);
}

#[tokio::test]
async fn an_object_that_cannot_be_decoded_counts_as_absent() {
    let answers: Answers = |asked| match asked {
        [.., CachedProtobuf] => LIST.into_response(),
        [_, Watch(_)] => {
            let odd = r#"{"metadata":{"name":"odd","namespace":"shop","resourceVersion":"2717"},"spec":5}"#;
            lines(&[("MODIFIED", odd)])
        }
        _ => silence(),
    };
    let (seen, asked) = watch(answers, 2, 3).await;
    assert_eq!(short(&seen), ["3 in all", "shop/odd is gone"]);
    assert_eq!(asked, [CachedProtobuf, Watch(VERSION), Watch(2717)]);
}

#[tokio::test]
async fn a_refusal_in_protobuf_says_why() {
    let bytes = |response: Response| async { axum::body::to_bytes(response.into_body(), 4096).await.unwrap().to_vec() };
    let body = bytes(protobuf_refusal(StatusCode::FORBIDDEN)).await;
    let error = refused(kube::Error::FromUtf8(String::from_utf8(body).unwrap_err()));
    let kube::Error::Api(status) = &error else { panic!("{error:?}") };
    assert_eq!((status.code, status.reason.as_str()), (403, "Because"));
    assert!(status.message.starts_with("no, because of this"), "{}", status.message);
}
