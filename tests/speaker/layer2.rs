//! The responder against other people's programs: arping, ndisc6 and the kernel's neighbour discovery.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::registry::Registry;
use steelyard::netlink::links::follow;
use steelyard::runtime::shutdown::shutdown;
use steelyard::speaker::l2::interface::{Responder, Settings};
use steelyard::speaker::l2::responder::Station;
use steelyard::speaker::metrics::Metrics;
use tokio::sync::{Notify, watch};

use crate::namespace::{INTERFACE, Namespace, Pair, join, wait};

const LIMIT: Duration = Duration::from_secs(10);

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A node that announces.
struct Announcer {
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    thread: JoinHandle<()>,
    registry: Registry,
}

impl Announcer {
    /// Announces these addresses from here on.
    fn start(node: &Namespace, texts: &[&str]) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (wanted, mut changes) = watch::channel(addresses(texts));
        let (started, is_started) = std::sync::mpsc::channel();
        let thread = node.spawn(async move || {
            let (_trigger, handle) = shutdown();
            let links = follow(handle).await.unwrap().borrow().clone();
            let link = links.iter().find(|link| link.name.as_str() == INTERFACE).unwrap();
            let mac = link.mac.unwrap();
            let settings = Settings { refresh: Duration::from_secs(60), metrics, ended: Arc::new(Notify::new()) };
            let station = Station { mac, addresses: changes.borrow().clone() };
            let responder = Responder::start(link.index, link.name.clone(), station, settings).unwrap();
            started.send(()).unwrap();
            while changes.changed().await.is_ok() {
                responder.set(Station { mac, addresses: changes.borrow_and_update().clone() });
            }
            assert!(!responder.is_finished(), "the responder ended by itself");
        });
        is_started.recv().expect("the responder did not start");
        Self { wanted, thread, registry }
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    fn stop(self) {
        drop(self.wanted);
        join(self.thread);
    }
}

fn answers_arp(client: &Namespace, address: &str) -> bool {
    client.run(&format!("arping -c 1 -w 0.5 -i {INTERFACE} {address}")).status.success()
}

fn answers_ndp(client: &Namespace, address: &str) -> bool {
    client.run(&format!("ndisc6 -1 -r 1 -w 500 {address} {INTERFACE}")).status.success()
}

#[test]
fn arping_gets_answers_for_announced_addresses_and_for_no_others() {
    let pair = Pair::new("arp");
    assert!(!answers_arp(&pair.client, "192.0.2.50"));
    let announcer = Announcer::start(&pair.node, &["192.0.2.50"]);
    let output = pair.client.run(&format!("arping -c 3 -w 5 -i {INTERFACE} 192.0.2.50"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches(&format!("from {} (192.0.2.50)", pair.node.mac())).count(), 3, "{text}");
    assert!(!answers_arp(&pair.client, "192.0.2.51"));
    // A probe, as RFC 5227 has it, is answered too: the address is in use.
    let probe = format!("arping -0 -c 1 -w 5 -i {INTERFACE} 192.0.2.50");
    assert!(pair.client.run(&probe).status.success());
    // What is for others never reached the process.
    let metrics = announcer.metrics();
    let requests = format!("speaker_requests_total{{interface=\"{INTERFACE}\",protocol=\"arp\"}} 4");
    assert!(metrics.contains(&requests), "{metrics}");
    assert!(!metrics.contains("speaker_drops_total{"), "{metrics}");
    announcer.stop();
}

#[test]
fn what_is_withdrawn_is_no_longer_answered() {
    let pair = Pair::new("withdraw");
    let announcer = Announcer::start(&pair.node, &["192.0.2.50", "192.0.2.51", "2001:db8::50"]);
    assert!(answers_arp(&pair.client, "192.0.2.50") && answers_ndp(&pair.client, "2001:db8::50"));
    announcer.wanted.send_replace(addresses(&["192.0.2.51"]));
    wait(LIMIT, "withdrawal", || {
        !answers_arp(&pair.client, "192.0.2.50") && !answers_ndp(&pair.client, "2001:db8::50")
    });
    assert!(answers_arp(&pair.client, "192.0.2.51"));
    announcer.wanted.send_replace(addresses(&["2001:db8::50"]));
    wait(LIMIT, "return", || answers_ndp(&pair.client, "2001:db8::50"));
    announcer.stop();
    assert!(!answers_ndp(&pair.client, "2001:db8::50"));
}

#[test]
fn ndisc6_gets_answers_for_announced_addresses_and_for_no_others() {
    let pair = Pair::new("ndp");
    let announcer = Announcer::start(&pair.node, &["2001:db8::50"]);
    let output = pair.client.run(&format!("ndisc6 -1 -r 3 -w 1000 2001:db8::50 {INTERFACE}"));
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    assert!(output.status.success() && text.contains(&pair.node.mac()), "{text}");
    assert!(!answers_ndp(&pair.client, "2001:db8::51"));
    announcer.stop();
}

#[test]
fn a_take_over_corrects_the_caches_of_both_families() {
    let pair = Pair::new("gratuitous");
    let stale = |address: &str| {
        pair.client.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:66 dev {INTERFACE} nud stale"));
    };
    stale("192.0.2.50");
    stale("2001:db8::50");
    let announcer = Announcer::start(&pair.node, &["192.0.2.50", "2001:db8::50"]);
    let mac = pair.node.mac();
    let took = wait(LIMIT, "corrected neighbour entries", || {
        ["192.0.2.50", "2001:db8::50"].iter().all(|address| pair.client.neighbour(address).contains(&mac))
    });
    assert!(took < Duration::from_millis(500), "{took:?}");
    // The whole burst: at 0, 50, 200, 1000 and 2000 ms, ARP as request and as reply.
    let sent = |protocol: &str, count| {
        format!("speaker_gratuitous_total{{interface=\"{INTERFACE}\",protocol=\"{protocol}\"}} {count}\n")
    };
    wait(LIMIT, "burst", || {
        let metrics = announcer.metrics();
        metrics.contains(&sent("arp", 10)) && metrics.contains(&sent("ndp", 5))
    });
    announcer.stop();
}

/// The kernel resolves by multicast, and later asks again by unicast whether the neighbour is still there (RFC 4861
/// §7.3.3): a responder that only hears the group fails that.
#[test]
fn the_kernels_unreachability_detection_is_satisfied() {
    let pair = Pair::new("nud");
    for (family, setting) in [
        ("ipv4", "base_reachable_time_ms=200"),
        ("ipv6", "base_reachable_time_ms=200"),
        ("ipv4", "delay_first_probe_time=1"),
        ("ipv6", "delay_first_probe_time=1"),
    ] {
        let output = pair.client.run(&format!("sysctl -qw net.{family}.neigh.{INTERFACE}.{setting}"));
        assert!(output.status.success(), "{output:?}");
    }
    let announcer = Announcer::start(&pair.node, &["192.0.2.50", "2001:db8::50"]);
    let states = |address: &str| {
        let mut seen = BTreeSet::new();
        wait(LIMIT, "reachable again after a probe", || {
            pair.client.run(&format!("ping -c 1 -W 0.01 {address}"));
            let entry = pair.client.neighbour(address);
            let state = entry.rsplit(' ').next().unwrap_or_default().to_owned();
            assert_ne!(state, "FAILED", "{address} after {seen:?}");
            let is_again = state == "REACHABLE" && (seen.contains("PROBE") || seen.contains("DELAY"));
            seen.insert(state);
            is_again
        });
    };
    states("192.0.2.50");
    states("2001:db8::50");
    announcer.stop();
}

#[test]
fn duplicate_address_detection_of_others_finds_the_address_in_use() {
    let pair = Pair::new("dad");
    let announcer = Announcer::start(&pair.node, &["2001:db8::50"]);
    pair.client.ip(&format!("addr add 2001:db8::50/64 dev {INTERFACE}"));
    wait(LIMIT, "failed duplicate address detection", || {
        pair.client.ip(&format!("addr show dev {INTERFACE}")).contains("dadfailed")
    });
    announcer.stop();
}

#[test]
fn two_thousand_addresses_are_announced_and_answered() {
    let pair = Pair::new("many");
    let many: Vec<String> = (0..2000).map(|number| format!("198.18.{}.{}", number / 250, number % 250 + 1)).collect();
    let announcer = Announcer::start(&pair.node, &many.iter().map(String::as_str).collect::<Vec<_>>());
    pair.client.ip(&format!("route add 198.18.0.0/16 dev {INTERFACE}"));
    assert!(answers_arp(&pair.client, "198.18.7.250") && answers_arp(&pair.client, "198.18.0.1"));
    wait(LIMIT, "one announcement of each", || {
        let metrics = announcer.metrics();
        let line = metrics.lines().find(|line| line.contains("gratuitous_total{") && line.contains("arp"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).is_some_and(|sent| sent >= 4000)
    });
    announcer.stop();
}

/// Before Linux 6.8 a socket may hold filters of 20 KiB together, the old and the new one while one replaces the other:
/// some 640 addresses, and half of that for a change.
#[test]
fn a_kernel_without_room_for_the_filter_does_not_end_the_answers() {
    let pair = Pair::new("optmem");
    // The same limit on newer kernels, where each namespace has its own.
    let output = pair.node.run("sysctl -qw net.core.optmem_max=20480");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors} (needs Linux 6.8)");
    let some = |count| -> Vec<String> {
        let v4 = (0..count).map(|number| format!("198.18.{}.{}", number / 250, number % 250 + 1));
        v4.chain((0..count).map(|number| format!("2001:db8::1:{number:x}"))).collect()
    };
    let texts = some(1000);
    let announcer = Announcer::start(&pair.node, &texts.iter().map(String::as_str).collect::<Vec<_>>());
    pair.client.ip(&format!("route add 198.18.0.0/16 dev {INTERFACE}"));
    assert!(answers_arp(&pair.client, "198.18.3.250") && answers_ndp(&pair.client, "2001:db8::1:3e7"));
    assert!(!answers_arp(&pair.client, "198.18.4.1"));
    let metrics = announcer.metrics();
    assert!(metrics.contains("reason=\"not-announced\""), "the exact filter fitted: {metrics}");
    // Each of these fits, but not beside the one before.
    for count in [500, 501, 600, 2000, 400] {
        announcer.wanted.send_replace(some(count).iter().map(|text| text.parse().unwrap()).collect());
        let last = count - 1;
        let v4 = format!("198.18.{}.{}", last / 250, last % 250 + 1);
        wait(LIMIT, "answers after a change", || {
            answers_arp(&pair.client, &v4) && answers_ndp(&pair.client, &format!("2001:db8::1:{last:x}"))
        });
    }
    assert!(!answers_arp(&pair.client, "198.18.7.250"));
    announcer.stop();
}
