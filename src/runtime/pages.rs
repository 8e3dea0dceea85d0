//! Lists of the API page by page: no answer grows with the cluster.

use std::fmt::Debug;

use kube::Api;
use kube::api::ListParams;
use serde::de::DeserializeOwned;

/// How many objects one page has.
const PAGE: u32 = 500;

/// Hands out each object of a list.
///
/// # Errors
/// When a page cannot be had; some objects may have been handed out by then.
pub async fn each<K>(api: &Api<K>, parameters: ListParams, mut take: impl FnMut(K)) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut parameters = parameters.limit(PAGE);
    loop {
        let page = api.list(&parameters).await?;
        page.items.into_iter().for_each(&mut take);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}
