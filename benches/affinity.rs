//! What session affinity costs: `make bench`, as root. See `benches/README.md`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a bench prints and may end badly, and uses helpers of tests"
)]

#[path = "../tests/stage/links.rs"]
mod links;
#[path = "../tests/stage/namespace.rs"]
mod namespace;
#[path = "../tests/stage/sockets.rs"]
mod sockets;
#[path = "../tests/stage/wire.rs"]
mod wire;
#[path = "../tests/affinity/world.rs"]
mod world;

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use steelyard::datapath::entry::{EntryKey, Target};
use steelyard::datapath::plan::Scope;
use steelyard::datapath::simulate::Packet;
use steelyard::model::{Family, Protocol};

use crate::world::{Entries, INTERNAL, Places, World, entry};

const PLACES: Places = Places { family: Family::V4 };
const TIMEOUT: Option<u64> = Some(10_800);
const ENDPOINTS: [u16; 3] = [1, 10, 100];
/// Connections in one measurement, each from a port of its own.
const BATCH: u16 = 2_000;
const ROUNDS: usize = 31;
const CLIENTS: u16 = 200;
/// Endpoints that come and go, each once all clients of the one before are forgotten.
const CHANGES: u32 = 20;

fn main() -> ExitCode {
    let _processor = namespace::OneProcessor::take().unwrap();
    println!("| what | median | 90 % |\n|---|---|---|");
    change(10_000);
    println!("\n| new connections to | endpoints | CPU time of each, median |\n|---|---|---|");
    connections();
    ExitCode::SUCCESS
}

fn endpoints(of: u32, count: u32) -> Target {
    let address = |number: u32| IpAddr::from((0x0a10_0000 + of * 128 + number).to_be_bytes());
    Target::Endpoints((0..count).map(|number| SocketAddr::new(address(number), 8080)).collect())
}

/// One endpoint comes and goes in a cluster where all Services have affinity and many clients are remembered.
fn change(services: u32) {
    let mut world = World::new("bench-change");
    let key = |number: u32| PLACES.key(&format!("service-{number}"), Protocol::Tcp);
    for (timeout, clients) in [(None, 0), (TIMEOUT, 0), (TIMEOUT, 10_000), (TIMEOUT, 100_000)] {
        let of = |number: u32, count: u32| {
            let address = SocketAddr::new(IpAddr::from((0xac10_0000 + number).to_be_bytes()), 80);
            entry(&[(address, INTERNAL)], endpoints(number, count), timeout)
        };
        world.program(&Entries::new(), &Scope::All);
        let mut entries: Entries = (0..services).map(|number| (key(number), of(number, 5))).collect();
        world.program(&entries, &Scope::All);
        if clients > 0 {
            remember(&world, clients);
        }
        let (mut more, mut less) = (Vec::new(), Vec::new());
        for number in 0..CHANGES {
            let key: EntryKey = key(number * 7);
            let scope = Scope::Keys([key.clone()].into());
            for (count, times) in [(6, &mut more), (5, &mut less)] {
                entries.insert(key.clone(), of(number * 7, count));
                let start = Instant::now();
                world.program(&entries, &scope);
                times.push(start.elapsed());
                world.settle();
            }
        }
        let label = match timeout {
            None => "without affinity".to_owned(),
            Some(_) => format!("with affinity, {clients} clients remembered"),
        };
        for (what, times) in [("more", &mut more), ("less", &mut less)] {
            let (median, most) = (at(times, 50), at(times, 90));
            println!("| one endpoint {what} of {services} Services × 5, {label} | {median:.2} ms | {most:.2} ms |");
        }
    }
}

/// Clients of the last Service, of an endpoint that stays.
fn remember(world: &World, clients: u32) {
    let listing = world.nft(&["list", "map", "ip", "steelyard", "endpoints"], "");
    let whose = listing.split_whitespace().find(|word| word.starts_with("f000:")).unwrap().to_owned();
    let endpoint = listing.split("f000:").nth(1).unwrap().split([':', ',', '}']).nth(1).unwrap().trim().to_owned();
    let mut text = "add element ip steelyard affinity {".to_owned();
    for client in 0..clients {
        let client = IpAddr::from((0x0b00_0000 + client).to_be_bytes());
        write!(text, "{whose} . {client} timeout 3h : {endpoint},").unwrap();
    }
    text.push('}');
    world.nft(&["-f", "-"], &text);
}

fn at(times: &mut [Duration], share: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() * share).div_ceil(100) - 1].as_secs_f64() * 1000.0
}

/// First packets of connections through the node, all on one processor. Each variant takes its turn in each round.
fn connections() {
    let mut ours = World::new("bench-ours");
    let other = World::new("bench-other");
    let mut entries = Entries::new();
    let mut kube_proxy = "table ip kube-proxy {\n".to_owned();
    let mut variants: Vec<(String, u16, bool, SocketAddr)> = Vec::new();
    for (row, timeout) in [(0u16, None), (1, TIMEOUT)] {
        for (column, count) in (0u16..).zip(ENDPOINTS) {
            let port = 1000 + row * 10 + column;
            let to = PLACES.cluster_ip(port);
            let targets = endpoints(u32::from(port), count.into());
            entries.insert(
                PLACES.key(&format!("{port}"), Protocol::Udp),
                entry(&[(to, INTERNAL)], targets.clone(), timeout),
            );
            as_kube_proxy(&mut kube_proxy, port, &targets, timeout.is_some());
            let with = if timeout.is_some() { "with affinity" } else { "without" };
            variants.push((format!("Steelyard, {with}"), count, true, to));
            variants.push((format!("rules as kube-proxy's, {with}"), count, false, to));
        }
    }
    kube_proxy.push_str(KUBE_PROXY_END);
    let services: Vec<String> = (0..2u16)
        .flat_map(|row| (0..3u16).map(move |column| 1000 + row * 10 + column))
        .map(|port| format!("{} . udp . {port} : goto service-{port}", PLACES.cluster_ip(port).ip()))
        .collect();
    kube_proxy.push_str(&format!("add element ip kube-proxy service-ips {{ {} }}\n", services.join(", ")));
    ours.program(&entries, &Scope::All);
    other.nft(&["-f", "-"], &kube_proxy);

    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); variants.len()];
    for round in 0..ROUNDS {
        for ((_, _, is_ours, to), times) in variants.iter().zip(&mut times) {
            let world = if *is_ours { &ours } else { &other };
            let packets: Vec<Vec<u8>> = (0..BATCH).map(|number| packet(*to, round, number)).collect();
            world.forget_connections();
            let start = Instant::now();
            for packet in &packets {
                world.send_from_outside(packet);
            }
            times.push(start.elapsed() / u32::from(BATCH));
            world.discard();
        }
    }
    for ((label, count, ..), times) in variants.iter().zip(&mut times) {
        println!("| {label} | {count} | {:.2} µs |", at(times, 50) * 1000.0);
    }
    // That they did what they should.
    for world in [&ours, &other] {
        assert!(world.connections() > usize::from(BATCH) / 2, "the node made no connections");
    }
    let pinned = u32::try_from(ours.remembered(Family::V4).len()).unwrap();
    assert_eq!(pinned, u32::from(CLIENTS) * 3, "clients that are remembered");
}

fn packet(to: SocketAddr, round: usize, number: u16) -> Vec<u8> {
    let packet = Packet {
        source: PLACES.client(u8::try_from(number % CLIENTS).unwrap()),
        destination: to.ip(),
        port: NonZeroU16::new(to.port()).unwrap(),
        protocol: Protocol::Udp,
    };
    let port = 1024 + u16::try_from(round % 20).unwrap() * BATCH + number;
    wire::first_packet(&packet, port, wire::TAGS + u32::from(number))
}

/// The chains that kube-proxy in its nftables mode makes for a Service, here of one protocol.
fn as_kube_proxy(out: &mut String, port: u16, targets: &Target, is_sticky: bool) {
    let Target::Endpoints(endpoints) = targets else { panic!("no endpoints") };
    let count = endpoints.len();
    for (slot, endpoint) in endpoints.iter().enumerate() {
        let (address, to) = (endpoint.ip(), endpoint.port());
        writeln!(out, " set affinity-{port}-{slot} {{ type ipv4_addr; flags dynamic,timeout; timeout 3h; }}").unwrap();
        writeln!(out, " chain endpoint-{port}-{slot} {{").unwrap();
        writeln!(out, "  ip saddr {address} jump mark_for_masquerade").unwrap();
        if is_sticky {
            writeln!(out, "  update @affinity-{port}-{slot} {{ ip saddr }}").unwrap();
        }
        writeln!(out, "  meta l4proto udp dnat to {address}:{to}\n }}").unwrap();
    }
    writeln!(out, " chain service-{port} {{").unwrap();
    if is_sticky {
        for slot in 0..count {
            writeln!(out, "  ip saddr @affinity-{port}-{slot} goto endpoint-{port}-{slot}").unwrap();
        }
    }
    let slots: Vec<String> = (0..count).map(|slot| format!("{slot} : goto endpoint-{port}-{slot}")).collect();
    writeln!(out, "  numgen random mod {count} vmap {{ {} }}\n }}", slots.join(", ")).unwrap();
}

const KUBE_PROXY_END: &str = "
 map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
 chain mark_for_masquerade { meta mark set meta mark or 0x4000 }
 chain services { ip daddr . meta l4proto . th dport vmap @service-ips }
 chain masquerading { meta mark and 0x4000 == 0 return
  meta mark set meta mark xor 0x4000
  masquerade fully-random
 }
 chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
 chain nat-output { type nat hook output priority -100; jump services; }
 chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
 chain firewall { ct state new jump firewall-check }
 chain firewall-check { return; }
 chain filter-prerouting { type filter hook prerouting priority -110; jump firewall; }
 chain filter-forward { type filter hook forward priority -110; jump firewall; }
}
";
