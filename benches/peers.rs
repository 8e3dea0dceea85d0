//! Steelyard beside the real kube-proxy, fed by one real API server, and beside plain routing: `make bench-peers`, as
//! root. See `benches/README.md`.
//!
//! `STEELYARD_PEERS=start,changes,traffic` chooses parts, `STEELYARD_SIZES=1000,10000` the numbers of Services;
//! at sizes above 10,000 kube-proxy does not take part. `STEELYARD_ROUNDS` says how often each starts, `STEELYARD_BIN` names another agent than the one of this build,
//! `STEELYARD_EARLIER` a second one to compare with in kube-proxy's place.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a bench prints and may end badly, and looks at processes every now and then, which tell nobody of themselves"
)]

#[path = "peers/changes.rs"]
mod changes;
#[path = "peers/etcd.rs"]
mod etcd;
#[path = "peers/figures.rs"]
mod figures;
#[path = "peers/kernel.rs"]
mod kernel;
#[path = "peers/objects.rs"]
mod objects;
#[path = "peers/proxies.rs"]
mod proxies;
#[path = "peers/space.rs"]
mod space;
#[path = "peers/start.rs"]
mod start;
#[path = "peers/traffic.rs"]
mod traffic;
#[path = "peers/world.rs"]
mod world;

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use steelyard_lab::api_server::ApiServer;

use crate::changes::Changes;
use crate::etcd::Etcd;
use crate::proxies::{Launcher, Who};
use crate::space::Space;
use crate::start::Starts;
use crate::world::World;

/// Above it kube-proxy takes minutes for a single change.
const MOST_FOR_KUBE_PROXY: u32 = 10_000;

fn main() -> ExitCode {
    // Test runners ask every target for its list; this one has no single tests to name.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let parts = std::env::var("STEELYARD_PEERS").unwrap_or_else(|_| "start,changes,traffic".to_owned());
    let has = |part: &str| parts.split(',').any(|chosen| chosen == part);
    let sizes = std::env::var("STEELYARD_SIZES").unwrap_or_else(|_| "1000,10000,44000".to_owned());
    let sizes: Vec<u32> = sizes.split(',').map(|size| size.parse().expect("STEELYARD_SIZES holds numbers")).collect();

    let rounds: Option<u32> = std::env::var("STEELYARD_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());

    space::clear_leftovers();
    say("looking for the programs of a cluster");
    let programs = steelyard_lab::programs::ensure(&mut |line| say(line)).unwrap();
    let mut starts = Starts::default();
    let mut changes = Changes::default();
    println!("{}", machine());
    for size in &sizes {
        // A server of its own for each size: what it has to remember of the last is nobody's burden.
        let control = Space::new("api");
        let server = ApiServer::start(control.name(), &programs, &[]).unwrap();
        let mut etcd = Etcd::connect(&control);
        let started = Instant::now();
        etcd.put(&objects::all(*size));
        let api = server.api().unwrap();
        objects::wait_until_listed(api, *size);
        say(&format!("{size} Services are in the API server after {:.1} s", started.elapsed().as_secs_f32()));
        let launcher = Launcher::new(&server, programs.path("kube-proxy"));
        let kube_proxy_too = *size <= MOST_FOR_KUBE_PROXY && !launcher.has_earlier();
        let ours = World::new("ours", &control, 1);
        let theirs = World::new("theirs", &control, 2);
        let rounds = rounds.unwrap_or(if *size >= MOST_FOR_KUBE_PROXY { 3 } else { 5 });
        for round in 0..rounds {
            let mut contenders = vec![(Who::Steelyard, &ours)];
            contenders.extend(launcher.has_earlier().then_some((Who::Earlier, &ours)));
            contenders.extend(kube_proxy_too.then_some((Who::KubeProxy, &theirs)));
            for (who, world) in contenders {
                world.flush();
                let mut proxy = launcher.start(who, world);
                starts.measure(&mut proxy, world, *size);
                if has("changes") {
                    changes.measure(&mut proxy, world, api, *size, round);
                }
                starts.note_memory_at_end(&mut proxy, *size);
                drop(proxy);
            }
        }
        if has("start") || has("changes") {
            starts.print(*size);
            changes.print(*size);
        }
        if has("traffic") && kube_proxy_too && sizes.iter().all(|other| other <= size || *other > MOST_FOR_KUBE_PROXY) {
            let plain = World::new("plain", &control, 3);
            let mut running = Vec::new();
            for (who, world) in [(Who::Steelyard, &ours), (Who::KubeProxy, &theirs)] {
                world.flush();
                let mut proxy = launcher.start(who, world);
                start::wait_until_programmed(&mut proxy, world, *size);
                proxy.wait_until_idle(world);
                running.push(proxy);
            }
            traffic::measure(&ours, &theirs, &plain, *size);
        }
    }
    ExitCode::SUCCESS
}

/// Progress, beside the tables.
fn say(line: &str) {
    eprintln!("{line}");
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let load: Vec<String> = read("/proc/loadavg").split(' ').take(3).map(str::to_owned).collect();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Linux {}, {processors} processors, load at the start {}\n",
        read("/proc/sys/kernel/osrelease").trim(),
        load.join(" ")
    )
}
