//! What the datapath costs at the scale of a large cluster: `make bench`, as root. See `benches/README.md`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a bench prints, waits and may end badly"
)]

#[path = "datapath/traffic.rs"]
mod traffic;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use nix::sched::{CloneFlags, unshare};
use prometheus_client::registry::Registry;
use serde_json::json;
use steelyard::datapath::apply::Programmer;
use steelyard::datapath::desired::{Desired, Update};
use steelyard::datapath::foreign;
use steelyard::datapath::index::Index;
use steelyard::datapath::metrics::Metrics;
use steelyard::datapath::plan::Scope;
use steelyard::datapath::reconciler::{Datapath, Outputs};
use steelyard::datapath::service::ForwardedService;
use steelyard::datapath::settings::Settings;
use steelyard::datapath::watch::Event;
use steelyard::model::endpoints::EndpointSlice;
use steelyard::model::node::Node;
use steelyard::model::programmed::Programmed;
use steelyard::model::service::Service;
use steelyard::names::{NodeName, ServiceKey};
use steelyard::netlink::nf_tables::Connection;
use steelyard::runtime::reconcile::{self, Component, Now};
use steelyard::runtime::shutdown::shutdown;
use steelyard::runtime::watch::Event as Seen;
use tokio::sync::{mpsc, watch};

const SERVICES: [u32; 3] = [1_000, 10_000, 44_000];
const ENDPOINTS: u32 = 5;
const CHANGES: u32 = 300;
const REPAIRS: u32 = 5;

/// Set in a process of its own for each number of Services, so that its memory is that of this number.
const CHILD: &str = "STEELYARD_BENCH_SERVICES";

fn main() -> ExitCode {
    if let Some(services) = std::env::var(CHILD).ok().and_then(|text| text.parse().ok()) {
        return bench(services);
    }
    println!("| Services × {ENDPOINTS} endpoints | what | p50 | p99 | worst |\n|---|---|---|---|---|");
    for services in SERVICES {
        let child = Command::new(std::env::current_exe().unwrap()).env(CHILD, services.to_string()).status();
        if !child.is_ok_and(|status| status.success()) {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn bench(services: u32) -> ExitCode {
    // A namespace of our own: nothing of the machine is touched, and it goes with this process.
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("no network namespace of its own, run it as root: {error}");
        return ExitCode::FAILURE;
    }
    changes(services);
    programming(services);
    if services < 44_000 {
        text(services);
    }
    ExitCode::SUCCESS
}

/// The agent's own component, from object to kernel, and a rival who changes our tables.
fn changes(services: u32) {
    let row = |what: &str, times: &[Duration]| row(services, what, times);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let guard = runtime.enter();
    let metrics = Metrics::register(&mut Registry::default());
    let (programmed, _programmed) = watch::channel(Arc::new(Programmed::default()));
    let outputs = Outputs::alone(programmed);
    let mut datapath = Datapath::new(NodeName::new("bench"), Settings::default(), outputs, metrics).unwrap();
    let listener = datapath.listen().unwrap();
    let before = memory();
    datapath.observe(Event::Service(Seen::Replaced((0..services).map(|n| read_service(&service(n))).collect())));
    let slices = (0..services).map(|n| read_slice(&slice(n, ENDPOINTS))).collect();
    datapath.observe(Event::Slice(Seen::Replaced(slices)));
    datapath.observe(Event::ServiceCidr(Seen::Replaced(vec![])));
    datapath.observe(Event::LocalAddresses(BTreeSet::new()));
    datapath.observe(Event::Node(Seen::Replaced(vec![node()])));
    let mut turn = |scope, events: Vec<Event>| {
        let start = Instant::now();
        events.into_iter().for_each(|event| datapath.observe(event));
        let now = Now { wall: Timestamp::now(), monotonic: start.into() };
        runtime.block_on(datapath.turn(scope, now)).unwrap();
        start.elapsed()
    };
    let traffic = traffic::Echo::start();
    thread::sleep(Duration::from_secs(2));
    let idle = traffic.gaps();
    let mut eyes = Connection::open().unwrap();
    let before_load = eyes.generation().unwrap();
    let commit = thread::spawn(move || committed(&mut eyes, before_load, 1));
    let start = Instant::now();
    let first = turn(reconcile::Scope::Resync, vec![]);
    let loading = traffic.gaps();
    row("first turn from full caches, until the kernel has all", &[commit.join().unwrap() - start]);
    row("the same, until the loop goes on", &[first]);
    println!(
        "| {services} | longest gap of a 1 ms UDP echo on the node: idle for 2 s, and during the first turn | {:.2} ms | {:.2} ms | |",
        idle.as_secs_f64() * 1000.0,
        loading.as_secs_f64() * 1000.0,
    );
    println!(
        "| {services} | resident memory with all programmed; before the first object | {:.1} MiB | {:.1} MiB | |",
        memory(),
        before
    );
    let mut run = |what: &str, events: &dyn Fn(u32) -> Vec<Event>| {
        let times: Vec<Duration> = (0..CHANGES)
            .map(|change| {
                let start = Instant::now();
                let events = events(change);
                let reading = start.elapsed();
                reading + turn(reconcile::Scope::Changed, events)
            })
            .collect();
        row(what, &times);
    };
    let objects: Vec<_> = (0..CHANGES).map(|n| slice(n * 7 % services, ENDPOINTS + 1)).collect();
    run("one endpoint more, from object to kernel", &|n| {
        vec![Event::Slice(Seen::Applied(read_slice(&objects[n as usize])))]
    });
    let new: Vec<_> = (services..services + CHANGES).map(|n| (service(n), slice(n, ENDPOINTS))).collect();
    run("one Service more, with a new cluster IP, from objects to kernel", &|n| {
        let (service, slice) = &new[n as usize];
        vec![Event::Slice(Seen::Applied(read_slice(slice))), Event::Service(Seen::Applied(read_service(service)))]
    });
    run("one Service deleted, from object to kernel", &|n| {
        vec![Event::Service(Seen::Removed(ServiceKey::new("bench", format!("service-{}", services + n))))]
    });

    let (sender, events) = mpsc::channel(16);
    let (trigger, stop) = shutdown();
    runtime.spawn(foreign::follow(listener, sender));
    let running = runtime.spawn(async move { reconcile::run(&mut datapath, events, stop).await });
    drop(guard);
    let mut eyes = Connection::open().unwrap();
    // The loop begins with a look at everything, which changes nothing.
    thread::sleep(Duration::from_secs(3));
    for act in [
        "delete table ip steelyard",
        "flush table ip steelyard",
        "add rule ip steelyard frontend drop",
        "flush map ip steelyard frontends",
    ] {
        let times: Vec<Duration> = (0..REPAIRS).map(|_| repair(&mut eyes, act)).collect();
        row(&format!("`nft {act}` by others, until it is undone"), &times);
    }
    trigger.request();
    runtime.block_on(running).unwrap();
    traffic.stop();
    Programmer::new().unwrap().cleanup().unwrap();
}

/// When the kernel had so many transactions more.
fn committed(eyes: &mut Connection, before: u32, more: u32) -> Instant {
    let deadline = Instant::now() + Duration::from_secs(60);
    while eyes.generation().unwrap().wrapping_sub(before) < more {
        assert!(Instant::now() < deadline, "no transaction comes");
        thread::sleep(Duration::from_micros(50));
    }
    Instant::now()
}

/// From the rival's transaction until ours.
fn repair(eyes: &mut Connection, act: &str) -> Duration {
    let before = eyes.generation().unwrap();
    let mut rival = Command::new("nft").arg(act).stdout(Stdio::null()).spawn().unwrap();
    let (done, undone) = (committed(eyes, before, 1), committed(eyes, before, 2));
    assert!(rival.wait().unwrap().success());
    // Longer than who fights us has to wait.
    thread::sleep(Duration::from_millis(600) + (undone - done) * 5);
    undone - done
}

/// The stations one by one.
fn programming(services: u32) {
    let row = |what: &str, times: &[Duration]| row(services, what, times);
    let settings = Settings::default();
    let mut index = Index::default();
    index.apply_node(node());
    index.replace_services((0..services).map(|n| read_service(&service(n))));
    index.replace_slices((0..services).map(|n| read_slice(&slice(n, ENDPOINTS))));
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

    // An address of the other family does not fit into the table: nobody but the kernel says so.
    let mut entries = desired.entries().clone();
    let (key, mut bad) =
        entries.iter().nth(services as usize / 3).map(|(key, entry)| (key.clone(), entry.clone())).unwrap();
    let treatment = *bad.frontends.values().next().unwrap();
    bad.frontends =
        [(steelyard::datapath::entry::Frontend::Address("[2001:db8::1]:80".parse().unwrap()), treatment)].into();
    let good = entries.insert(key.clone(), bad.clone()).unwrap();
    let isolated: Vec<Duration> = (0..20)
        .map(|_| {
            let mut change = |entry: &steelyard::datapath::entry::ForwardingEntry| {
                entries.insert(key.clone(), entry.clone());
                let scope = Scope::Update(Update { entries: [key.clone()].into(), ..Update::default() });
                timed(|| programmer.apply(&entries, &scope, desired.node()).unwrap())
            };
            let (took, report) = change(&bad);
            assert_eq!((report.quarantined.len(), report.is_rebuilt), (1, false));
            assert!(change(&good).1.quarantined.is_empty());
            took
        })
        .collect();
    row("a change that the kernel refuses, until it is left out", &isolated);
    entries.insert(key.clone(), bad);
    let from_all: Vec<Duration> = (0..2)
        .map(|_| {
            let mut programmer = Programmer::new().unwrap();
            programmer.cleanup().unwrap();
            let (took, report) = timed(|| programmer.apply(&entries, &Scope::All, desired.node()).unwrap());
            assert_eq!(report.quarantined.len(), 1);
            took
        })
        .collect();
    row("programming everything, with one entry that the kernel refuses", &from_all);
    desired.update(&index, &settings, &index.everything());
}

/// The same table as text, as a proxy that calls the nft program would load it.
fn text(services: u32) {
    let listing = Command::new("nft").args(["list", "table", "ip", "steelyard"]).output().unwrap();
    let mut programmer = Programmer::new().unwrap();
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
    row(services, "the IPv4 table alone, as text by `nft -f`, for comparison", &texts);
}

/// In MiB.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
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
    println!("| {services} | {what} | {:.2} ms | {:.2} ms | {:.2} ms |", at(50), at(99), at(100));
}

fn address(number: u32, of: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + number * 16 + of)
}

fn service(number: u32) -> core::Service {
    serde_json::from_value(json!({
        "metadata": {"name": format!("service-{number}"), "namespace": "bench"},
        "spec": {"clusterIP": Ipv4Addr::from(0xac10_0000 + number).to_string(), "ports": [{"port": 80}]},
    }))
    .unwrap()
}

fn read_service(object: &core::Service) -> ForwardedService {
    Service::try_from(object).unwrap().into()
}

fn slice(number: u32, endpoints: u32) -> discovery::EndpointSlice {
    let addresses: BTreeSet<Ipv4Addr> = (1..=endpoints).map(|of| address(number, of)).collect();
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({"addresses": [address.to_string()], "nodeName": "other"})).collect();
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("service-{number}"), "namespace": "bench",
            "labels": {"kubernetes.io/service-name": format!("service-{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    }))
    .unwrap()
}

fn read_slice(object: &discovery::EndpointSlice) -> EndpointSlice {
    EndpointSlice::try_from(object).unwrap()
}

fn node() -> Node {
    let object: core::Node = serde_json::from_value(json!({"metadata": {"name": "bench"}})).unwrap();
    Node::try_from(&object).unwrap()
}
