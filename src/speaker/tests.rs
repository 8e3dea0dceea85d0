//! The speaker's beginning and end, without an API server.

use kube::Config as ClientConfig;

use super::*;
use crate::membership::Members;

/// The other ends of what a speaker follows.
struct Ends {
    links: channel::Sender<Arc<Links>>,
    _programmed: channel::Sender<Arc<Programmed>>,
}

fn start(readiness: &Readiness, stop: Shutdown) -> (impl Future<Output = ()> + Send + use<>, Ends) {
    let client = Client::try_from(ClientConfig::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
    let (links, links_here) = channel::channel(Arc::new(Links::default()));
    let (programmed, programmed_here) = channel::channel(Arc::new(Programmed::default()));
    let surroundings = Surroundings {
        inbox: Inbox::default(),
        links: links_here,
        membership: Membership::fixed(Members { nodes: BTreeMap::new(), is_informed: false }),
        programmed: programmed_here,
        readiness: readiness.clone(),
        reports: NodeReports::default(),
    };
    let config = Config::new(NodeName::new("node1"));
    (run(config, client, surroundings, Metrics::default(), stop), Ends { links, _programmed: programmed })
}

#[tokio::test]
async fn it_is_awaited_before_it_runs_and_not_ready_before_the_first_lists() {
    let readiness = Readiness::default();
    let (trigger, stop) = stop();
    let (speaker, _ends) = start(&readiness, stop);
    assert_eq!(readiness.missing(), ["speaker"]);
    let speaker = tokio::spawn(speaker);
    tokio::task::yield_now().await;
    assert_eq!(readiness.missing(), ["speaker"]);
    assert!(!speaker.is_finished(), "nothing has ended");
    trigger.request();
    tokio::time::timeout(Duration::from_secs(60), speaker).await.expect("the speaker ends").unwrap();
}

#[tokio::test]
async fn a_source_that_ends_unasked_ends_it() {
    let (_trigger, stop) = stop();
    let (speaker, ends) = start(&Readiness::default(), stop);
    drop(ends.links);
    tokio::time::timeout(Duration::from_secs(60), speaker).await.expect("the speaker ends");
}

#[tokio::test]
async fn a_source_that_panics_is_named() {
    let mut sources = Sources::new();
    sources.spawn(watch::named("interfaces", async { panic!("as the test wants it") }));
    let (_trigger, mut stop) = stop();
    assert_eq!(first_end(&mut sources, &mut stop).await, Some("interfaces"));
}
