//! Two agents that hear each other over a wire.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use steelyard::membership::{self, Config, DEFAULT_PORT, Life, Members, Membership, NodeAddresses, Timing};
use steelyard::names::NodeName;
use steelyard::runtime::shutdown::{Shutdown, shutdown};
use tokio::sync::watch;

use crate::namespace::{INTERFACE, Namespace, Pair, join, wait};

const LIMIT: Duration = Duration::from_secs(10);

fn nodes(family: char) -> BTreeMap<NodeName, Vec<std::net::IpAddr>> {
    let prefix = if family == '4' { "192.0.2." } else { "2001:db8::" };
    let address = |number: &str| vec![format!("{prefix}{number}").parse().unwrap()];
    [("a".into(), address("11")), ("b".into(), address("9"))].into()
}

/// An agent in a thread; it lives as long as its shutdown is not requested and `kill` is not dropped.
struct Agent {
    membership: Membership,
    members: watch::Receiver<Arc<Members>>,
    kill: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
    _nodes: watch::Sender<Arc<NodeAddresses>>,
}

impl Agent {
    fn start(namespace: &Namespace, name: &'static str, family: char, shutdown: Shutdown) -> Self {
        let (nodes, known) = watch::channel(Arc::new(nodes(family)));
        let (kill, killed) = tokio::sync::oneshot::channel();
        let (sender, started) = std::sync::mpsc::channel();
        let thread = namespace.spawn(async move || {
            let config = Config { node: name.into(), port: DEFAULT_PORT, timing: Timing::default() };
            let (membership, task) = membership::start(config, known, &mut Registry::default(), shutdown);
            sender.send(membership).unwrap();
            tokio::select! {
                // Ends the runtime and with it the task, without a goodbye.
                _ = killed => {}
                ended = task => ended.unwrap(),
            }
        });
        let membership = started.recv().unwrap();
        Self { members: membership.members(), membership, kill, thread, _nodes: nodes }
    }

    fn life(&self, node: &str) -> Option<Life> {
        self.members.borrow().nodes.get(&node.into()).copied()
    }
}

fn both_serve(family: char, pair: &Pair) -> (Agent, Agent, steelyard::runtime::shutdown::ShutdownTrigger) {
    let (trigger_a, shutdown_a) = shutdown();
    let (trigger_b, shutdown_b) = shutdown();
    let a = Agent::start(&pair.node, "a", family, shutdown_a);
    let b = Agent::start(&pair.client, "b", family, shutdown_b);
    wait(LIMIT, "both heard", || a.life("b") == Some(Life::Starting) && b.life("a") == Some(Life::Starting));
    a.membership.set_serving(true);
    b.membership.set_serving(true);
    wait(LIMIT, "both serve", || a.life("b") == Some(Life::Serving) && b.life("a") == Some(Life::Serving));
    // Kept until the end: a trigger that is dropped is a request.
    std::mem::forget(trigger_a);
    (a, b, trigger_b)
}

#[test]
fn a_death_is_noticed_within_450_ms() {
    for family in ['4', '6'] {
        let pair = Pair::new(&format!("death{family}"));
        let (a, b, _trigger) = both_serve(family, &pair);
        let start = Instant::now();
        b.kill.send(()).unwrap();
        wait(LIMIT, "death", || a.life("b") == Some(Life::Dead));
        let took = start.elapsed();
        assert!(took < Duration::from_millis(450), "noticed after {took:?}");
        assert!(took > Duration::from_millis(200), "noticed after {took:?}, too soon to be sure");
        join(b.thread);
        a.kill.send(()).unwrap();
        join(a.thread);
    }
}

#[test]
fn a_lost_link_is_a_death_on_both_sides_and_heals() {
    let pair = Pair::new("cut");
    let (a, b, _trigger) = both_serve('4', &pair);
    pair.client.ip(&format!("link set {INTERFACE} down"));
    wait(Duration::from_millis(450), "both dead", || {
        a.life("b") == Some(Life::Dead) && b.life("a") == Some(Life::Dead)
    });
    pair.client.ip(&format!("link set {INTERFACE} up"));
    wait(LIMIT, "healed", || a.life("b") == Some(Life::Serving) && b.life("a") == Some(Life::Serving));
    a.kill.send(()).unwrap();
    b.kill.send(()).unwrap();
    join(a.thread);
    join(b.thread);
}

#[test]
fn a_goodbye_counts_at_once_and_is_no_death() {
    let pair = Pair::new("goodbye");
    let (a, b, trigger) = both_serve('4', &pair);
    trigger.request();
    let took = wait(LIMIT, "goodbye", || a.life("b") == Some(Life::Left));
    assert!(took < Duration::from_millis(150), "{took:?}");
    join(b.thread);
    assert!(!a.members.borrow().is_dead(&"b".into()));
    // The next run of the agent is heard as a new one.
    let (_trigger, shutdown) = shutdown();
    let again = Agent::start(&pair.client, "b", '4', shutdown);
    wait(LIMIT, "return", || a.life("b") == Some(Life::Starting));
    again.kill.send(()).unwrap();
    join(again.thread);
    a.kill.send(()).unwrap();
    join(a.thread);
}
