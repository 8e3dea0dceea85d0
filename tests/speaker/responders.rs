//! Several interfaces, of which one fails.

use std::sync::Arc;
use std::time::Duration;

use steelyard::model::link::{InterfaceIndex, Mac};
use steelyard::netlink::links::follow;
use steelyard::runtime::shutdown::shutdown;
use steelyard::speaker::apply::Responders;
use steelyard::speaker::l2::interface::Settings;
use steelyard::speaker::l2::responder::Station;
use steelyard::speaker::metrics::Metrics;
use steelyard::speaker::plan::Change;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::namespace::{INTERFACE, Pair, join};

const LIMIT: Duration = Duration::from_secs(10);

fn station(addresses: &[&str]) -> Station {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Station { mac: Mac::new([2, 0, 0, 0, 0, 7]), addresses }
}

#[test]
fn an_interface_that_fails_leaves_the_others_alone_and_its_end_is_told() {
    let pair = Pair::new("fails");
    let (answering, is_answering) = std::sync::mpsc::channel();
    let (go_on, mut is_gone) = tokio::sync::mpsc::channel::<()>(1);
    let thread = pair.node.spawn(async move || {
        let (_trigger, handle) = shutdown();
        let links = follow(handle).await.unwrap();
        let index = links.borrow().iter().find(|link| link.name.as_str() == INTERFACE).unwrap().index;
        let ended = Arc::new(Notify::new());
        let settings = Settings { refresh: LIMIT, metrics: Metrics::default(), ended: Arc::clone(&ended) };
        let mut responders = Responders::new(settings);
        let absent = Change::Start(InterfaceIndex::new(4_000_000), "absent0".into(), station(&["192.0.2.51"]));
        let present = Change::Start(index, INTERFACE.into(), station(&["192.0.2.50"]));
        let begin = Instant::now();
        responders.apply(vec![absent, present], begin);
        assert_eq!(responders.actual().keys().collect::<Vec<_>>(), [&index]);
        assert_eq!(responders.errors().count(), 1);
        answering.send(()).unwrap();
        is_gone.recv().await.unwrap();

        // A group cannot be joined on an interface that is gone.
        responders.apply(vec![Change::Set(index, station(&["2001:db8::50"]))], Instant::now());
        assert_eq!(responders.errors().count(), 0, "what is not wanted is no failure");
        timeout(LIMIT, ended.notified()).await.expect("the end was not told");
        assert!(responders.actual().is_empty(), "told before the task was finished");
        let errors: Vec<String> =
            responders.errors().map(|error| steelyard::runtime::telemetry::chain(error)).collect();
        assert_eq!(errors, [format!("interface {INTERFACE} stopped answering")]);
        assert!(responders.next_retry().unwrap() >= begin + Duration::from_secs(1));
    });
    is_answering.recv().expect("nothing was started");
    let output = pair.client.run(&format!("arping -c 1 -w 5 -i {INTERFACE} 192.0.2.50"));
    assert!(output.status.success(), "{output:?}");
    pair.node.ip(&format!("link del {INTERFACE}"));
    go_on.blocking_send(()).unwrap();
    join(thread);
}
