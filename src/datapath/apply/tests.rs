//! Against the real kernel, in network namespaces of their own.

mod changes;
mod found;
mod growth;
mod listing;
mod refusal;

use std::time::Duration;

use super::*;
use crate::datapath::entry::{Frontend, NodePortAddresses, NodePorts, Treatment};
use crate::datapath::nft::compose::test::{EXTERNAL, EXTERNAL_LOCAL, INTERNAL, entry, key, target};
use crate::model::service::TrafficPolicy;
use crate::model::{Family, Protocol};
use crate::netlink::nf_tables::test::{in_new_namespace, nft};

type Entries = BTreeMap<EntryKey, ForwardingEntry>;

const FILTERED_LOCAL: Treatment = Treatment::External { policy: TrafficPolicy::Local, is_filtered: true };

fn node() -> NodeForwarding {
    NodeForwarding {
        pod_cidrs: ["10.244.1.0/24", "10.244.2.0/24", "fd00:10:244::/64"].map(|text| text.parse().unwrap()).to_vec(),
        masquerade_all: false,
        node_ports: NodePorts {
            v4: NodePortAddresses::These(["192.168.0.2".parse().unwrap()].into()),
            v6: NodePortAddresses::These(["2001:db8::2".parse().unwrap()].into()),
        },
        service_cidrs: ["10.96.0.0/16", "fd00:10:96::/112"].map(|text| text.parse().unwrap()).to_vec(),
        cluster_ips: ["10.96.0.1", "10.96.0.2", "fd00:10:96::1"].iter().map(|text| text.parse().unwrap()).collect(),
        served: ["192.0.2.1", "2001:db8:1::1"].map(|text| text.parse().unwrap()).into(),
        echo_answers: ["192.168.0.2", "2001:db8::2"].map(|text| text.parse().unwrap()).into(),
        ..NodeForwarding::default()
    }
}

fn with(name: &str, family: Family, protocol: Protocol) -> EntryKey {
    let mut key = key(name);
    key.family = family;
    key.port.protocol = protocol;
    key
}

/// One of everything.
fn entries() -> Entries {
    let mut web = entry(
        &[("10.96.0.1:80", INTERNAL), ("192.0.2.1:80", FILTERED_LOCAL), ("30001", EXTERNAL_LOCAL)],
        "10.244.1.5:8080 10.244.2.5:8080 10.244.3.5:8080",
    );
    web.local = target("10.244.1.5:8080");
    web.affinity = Some(Duration::from_secs(10_800));
    web.source_ranges = ["203.0.113.0/24", "198.51.100.7/32"].map(|text| text.parse().unwrap()).to_vec();
    web.local_addresses = ["10.244.1.5".parse().unwrap()].into();
    let mut six = entry(
        &[("[fd00:10:96::1]:80", INTERNAL), ("[2001:db8:1::1]:80", FILTERED_LOCAL), ("30001", EXTERNAL)],
        "[fd00:10:244::5]:8080 [fd00:10:245::5]:8080",
    );
    six.affinity = Some(Duration::from_secs(60));
    six.source_ranges = vec!["2001:db8:2::/48".parse().unwrap()];
    six.local_addresses = ["fd00:10:244::5".parse().unwrap()].into();
    six.local = target("drop");
    [
        (with("web", Family::V4, Protocol::Tcp), web),
        (with("dns", Family::V4, Protocol::Udp), entry(&[("10.96.0.2:53", INTERNAL)], "reject")),
        (with("web", Family::V6, Protocol::Tcp), six),
    ]
    .into()
}

fn listing() -> String {
    nft(&["list", "ruleset"], "")
}

/// The listing with the elements of each set in order: the kernel gives them in the order of its hash.
fn sorted_listing() -> String {
    let mut out = String::new();
    let text = listing();
    // And the tables: one that is made anew is listed last.
    let mut tables: Vec<&str> = text.split_inclusive("\n}\n").collect();
    tables.sort_unstable();
    let text = tables.concat();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(first) = line.trim_start().strip_prefix("elements = { ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let mut list = first.to_owned();
        while !list.ends_with('}') {
            list.push_str(lines.next().unwrap().trim());
        }
        let mut elements: Vec<&str> = list.trim_end_matches(" }").split(',').map(str::trim).collect();
        elements.sort_unstable();
        for element in elements {
            out.push_str("\t\telement ");
            out.push_str(element);
            out.push('\n');
        }
    }
    out
}

/// The handle of the first rule of an IPv4 chain.
fn handle_of(chain: &str) -> String {
    let listing = nft(&["--handle", "list", "chain", "ip", "steelyard", chain], "");
    let rule = listing.lines().filter(|line| line.contains("# handle")).nth(2).unwrap();
    rule.split_once("# handle ").unwrap().1.to_owned()
}

fn programmed(entries: &Entries) -> Programmer {
    let mut programmer = Programmer::new().unwrap();
    programmer.apply(entries, &Scope::All, &node()).unwrap();
    programmer
}

/// Turns from one state to another by the keys that differ, and checks that a resync finds nothing left to do and that
/// the kernel has what it would have without a history.
fn turn(programmer: &mut Programmer, from: &Entries, to: &Entries) -> Report {
    let keys: BTreeSet<EntryKey> = from.keys().chain(to.keys()).cloned().collect();
    let keys = keys.into_iter().filter(|key| from.get(key) != to.get(key)).collect();
    let report = programmer.apply(to, &Scope::Keys(keys), &node()).unwrap();
    let again = programmer.apply(to, &Scope::All, &node()).unwrap();
    assert_eq!((again.deleted, again.added, again.is_rebuilt), (0, 0, false));
    report
}

#[test]
fn the_ruleset_is_what_it_was() {
    in_new_namespace(|| {
        programmed(&entries());
        insta::assert_snapshot!(sorted_listing());
    });
}
