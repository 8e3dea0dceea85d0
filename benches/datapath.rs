//! What the datapath costs at the scale of a large cluster: `make bench`, as root. See `benches/README.md`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a bench prints and may end badly"
)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use steelyard::datapath::apply::Programmer;
use steelyard::datapath::desired::Desired;
use steelyard::datapath::index::Index;
use steelyard::datapath::plan::Scope;
use steelyard::datapath::settings::Settings;
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::node::Node;
use steelyard::model::service::Service;

const SERVICES: [u32; 2] = [1_000, 10_000];
const ENDPOINTS: u32 = 5;
const CHANGES: u32 = 50;

fn main() -> ExitCode {
    // A namespace of our own: nothing of the machine is touched, and it goes with this process.
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("no network namespace of its own, run it as root: {error}");
        return ExitCode::FAILURE;
    }
    println!("| Services × {ENDPOINTS} endpoints | what | median | 90 % |\n|---|---|---|---|");
    for services in SERVICES {
        bench(services);
    }
    ExitCode::SUCCESS
}

fn bench(services: u32) {
    let settings = Settings::default();
    let mut index = Index::default();
    index.apply_node(node());
    index.replace_services((0..services).map(service));
    index.replace_slices((0..services).map(|number| slice(number, ENDPOINTS)));
    let row = |what: &str, times: &[Duration]| row(services, what, times);

    let scratch: Vec<Duration> = (0..5).map(|_| timed(|| Desired::from_index(&index, &settings)).0).collect();
    row("deciding everything from scratch", &scratch);
    let mut desired = Desired::from_index(&index, &settings);
    index.take_changes();

    let mut loads = Vec::new();
    let mut programmer = Programmer::new().unwrap();
    for _ in 0..5 {
        programmer.cleanup().unwrap();
        loads.push(timed(|| programmer.apply(desired.entries(), &Scope::All, desired.node()).unwrap()).0);
    }
    row("programming everything into an empty kernel", &loads);
    let resyncs: Vec<Duration> = (0..5)
        .map(|_| {
            let (took, report) = timed(|| programmer.apply(desired.entries(), &Scope::All, desired.node()).unwrap());
            assert_eq!((report.added, report.deleted), (0, 0), "a resync without a change must not change anything");
            took
        })
        .collect();
    row("resync without a change", &resyncs);

    let mut turn = |index: &mut Index| {
        let start = Instant::now();
        let changes = index.take_changes();
        let update = desired.update(index, &settings, &changes);
        let report = programmer.apply(desired.entries(), &Scope::Keys(update.entries), desired.node()).unwrap();
        assert!(report.added > 0 && report.added < 20, "one change added {} elements", report.added);
        start.elapsed()
    };
    let mut one_more = Vec::new();
    for change in 0..CHANGES {
        index.apply_slice(slice(change * 7 % services, ENDPOINTS + 1));
        one_more.push(turn(&mut index));
    }
    row("one endpoint more, from observation to kernel", &one_more);
    let mut created = Vec::new();
    for number in services..services + CHANGES {
        index.apply_service(service(number));
        index.apply_slice(slice(number, ENDPOINTS));
        created.push(turn(&mut index));
    }
    row("one Service more, from observation to kernel", &created);

    // The same table as text, as a proxy that calls the nft program would load it.
    let listing = Command::new("nft").args(["list", "table", "ip", "steelyard"]).output().unwrap();
    programmer.cleanup().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &listing.stdout).unwrap();
    let texts: Vec<Duration> = (0..3)
        .map(|_| {
            let (took, status) = timed(|| Command::new("nft").arg("-f").arg(file.path()).status().unwrap());
            assert!(status.success(), "nft does not load our listing");
            programmer.cleanup().unwrap();
            took
        })
        .collect();
    row("the IPv4 table alone, as text by `nft -f`, for comparison", &texts);
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

fn row(services: u32, what: &str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |share: usize| sorted[(sorted.len() * share).div_ceil(100) - 1].as_secs_f64() * 1000.0;
    println!("| {services} | {what} | {:.2} ms | {:.2} ms |", at(50), at(90));
}

fn address(number: u32, of: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + number * 16 + of)
}

fn service(number: u32) -> Service {
    let object: core::Service = serde_json::from_value(json!({
        "metadata": {"name": format!("service-{number}"), "namespace": "bench"},
        "spec": {"clusterIP": Ipv4Addr::from(0xac10_0000 + number).to_string(), "ports": [{"port": 80}]},
    }))
    .unwrap();
    Service::try_from(&object).unwrap()
}

fn slice(number: u32, endpoints: u32) -> EndpointSlice {
    let addresses: BTreeSet<Ipv4Addr> = (1..=endpoints).map(|of| address(number, of)).collect();
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({"addresses": [address.to_string()], "nodeName": "other"})).collect();
    let object: discovery::EndpointSlice = serde_json::from_value(json!({
        "metadata": {
            "name": format!("service-{number}"), "namespace": "bench",
            "labels": {"kubernetes.io/service-name": format!("service-{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    }))
    .unwrap();
    EndpointSlice::try_from(&object).unwrap()
}

fn node() -> Node {
    let object: core::Node = serde_json::from_value(json!({"metadata": {"name": "bench"}})).unwrap();
    Node::try_from(&object).unwrap()
}
