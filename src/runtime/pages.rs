//! Lists of the API page by page: no answer grows with the cluster.

use kube::api::ListParams;
use kube::core::ApiResource;
use kube::{Api, Client, Resource};
use serde::de::{DeserializeOwned, Error as _};

use super::unread::Unread;

/// How many objects one page has.
const PAGE: u32 = 500;

/// Hands out each object of a list.
///
/// # Errors
/// When a page cannot be had, or an object in it not be read; some objects may have been handed out by then.
pub async fn each<K>(
    client: Client,
    namespace: Option<&str>,
    parameters: ListParams,
    mut take: impl FnMut(K),
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let kind = ApiResource::erase::<K>(&());
    let api: Api<Unread> = match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &kind),
        None => Api::all_with(client, &kind),
    };
    let mut parameters = parameters.limit(PAGE);
    loop {
        let page = api.list(&parameters).await?;
        for object in page.items {
            take(object.read().0.map_err(|error| kube::Error::SerdeError(serde_json::Error::custom(error)))?);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Client, Config, ResourceExt as _};
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    /// An API server that gives two objects at a time, five in all, and writes down what it was asked.
    async fn api_server(asked: Arc<Mutex<Vec<String>>>) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let asked = Arc::clone(&asked);
                let service = service_fn(move |request: Request<Incoming>| {
                    let query = request.uri().query().unwrap_or_default().to_owned();
                    let token = query.split_once("continue=").and_then(|(_, token)| token.parse().ok());
                    let from: usize = token.unwrap_or_default();
                    asked.lock().unwrap().push(query);
                    let object = |number| json!({"metadata": {"name": format!("c{number}")}});
                    let page = json!({
                        "apiVersion": "v1", "kind": "ConfigMapList",
                        "metadata": {"continue": if from + 2 < 5 { (from + 2).to_string() } else { String::new() }},
                        "items": (from..5).take(2).map(object).collect::<Vec<_>>(),
                    });
                    let response = Response::builder().header("content-type", "application/json");
                    async move { Ok::<_, Infallible>(response.body(page.to_string()).unwrap()) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Client::try_from(Config::new(url.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn every_page_is_asked_for_once() {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let client = api_server(Arc::clone(&asked)).await;
        let mut names = Vec::new();
        let take = |object: ConfigMap| names.push(object.name_any());
        each(client, Some("ns"), ListParams::default(), take).await.unwrap();
        assert_eq!(names, ["c0", "c1", "c2", "c3", "c4"]);
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 3, "{asked:?}");
        assert!(asked.iter().all(|query| query.contains("limit=500")), "{asked:?}");
    }
}
