//! The controller's end, asked for and not.

use k8s_openapi::api::coordination::v1::Lease;
use kube::Config;

use super::*;
use crate::api::LOAD_BALANCER_CLASS;
use crate::runtime::lease::LeaseError;

/// A store that never answers, or panics.
struct Store {
    panics: bool,
}

impl LeaseStore for Store {
    async fn get(&self, _: &str) -> Result<Option<Lease>, LeaseError> {
        assert!(!self.panics, "as the test wants it");
        std::future::pending().await
    }

    async fn create(&self, _: &Lease) -> Result<Lease, LeaseError> {
        std::future::pending().await
    }

    async fn replace(&self, _: &Lease) -> Result<Lease, LeaseError> {
        std::future::pending().await
    }
}

/// Serves without an API server until told to stop.
async fn serve_with(store: Store, stop: Shutdown) -> Result<(), ServeError> {
    let client = Client::try_from(Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
    let settings = Settings { load_balancer_class: LOAD_BALANCER_CLASS.to_owned(), handles_classless: true };
    let lease = LeaseSettings {
        name: "test".to_owned(),
        identity: "one".to_owned(),
        duration: Duration::from_secs(4),
        renew_every: Duration::from_secs(1),
    };
    let served = serve(client, settings, None, lease, store, Metrics::default(), Readiness::default(), stop);
    tokio::time::timeout(Duration::from_secs(60), served).await.expect("the controller ends")
}

#[tokio::test]
async fn an_election_that_fails_ends_the_controller() {
    let (_trigger, stop) = shutdown();
    let outcome = serve_with(Store { panics: true }, stop).await;
    assert!(matches!(outcome, Err(ServeError::Panicked { part: "election", .. })), "{outcome:?}");
}

#[tokio::test]
async fn shutdown_is_no_failure() {
    let (trigger, stop) = shutdown();
    trigger.request();
    assert!(serve_with(Store { panics: false }, stop).await.is_ok());
}
