//! Random objects in rounds, for each of several settings.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;

use crate::arena::Site;
use crate::generate::{Generator, NODE_ADDRESSES, POD_CIDRS, ZONES};
use crate::proxies::Flags;
use crate::rng::Rng;
use crate::run::{Run, say};
use crate::stage::Surroundings;
use crate::tries;

/// Rounds for each of the settings.
const ROUNDS: usize = 4;
/// Services at a time.
const SERVICES: usize = 70;
/// A range of cluster IPs that the API server does not have of itself.
const OTHER_CIDR: [&str; 2] = ["172.31.0.0/16", "fd00:31::/112"];
/// Packets of a round.
const PACKETS: usize = 700;

pub fn run(run: &mut Run) -> Result<(), String> {
    let seed = number_from("STEELYARD_SEED")?.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    });
    let rounds = number_from("STEELYARD_ROUNDS")?.map_or(ROUNDS, |rounds| rounds as usize);
    say(&format!("STEELYARD_SEED={seed} repeats the random part; {rounds} rounds for each of the settings"));
    let mut rng = Rng::new(seed);
    let mut generator = Generator::new(Rng::new(rng.next()));
    for flags in settings() {
        run.enter(&site(flags.clone())).map_err(|error| format!("{flags}: {error}"))?;
        for round in 1..=rounds {
            let began = Instant::now();
            generator.change(SERVICES);
            let zones = [None, Some(ZONES[0]), Some(ZONES[1])];
            let zone = *rng.pick(&zones);
            let refused = run.become_these(&generator.objects, zone)?;
            for (key, reason) in &refused {
                say(&format!("  the API server refuses {}/{}: {reason}", key.0, key.1));
                generator.forget(key);
            }
            let mut expected = run.settle().map_err(|error| format!("{flags}, round {round}: {error}"))?;
            let settled = began.elapsed();
            let packets = tries::packets(&expected.ours, &mut rng, PACKETS);
            let names = packets.iter().map(|packet| {
                format!(
                    "round {round} [{flags}] {} -> {} port {}/{}",
                    packet.source, packet.destination, packet.port, packet.protocol
                )
            });
            run.compare_with(&mut expected, names.collect(), &packets)?;
            say(&format!(
                "round {round} [{flags}, zone {}]: {} Services, {} slices, {} flows, {} refused; programmed after {:.1} s, all after {:.1} s",
                zone.unwrap_or("none"),
                generator.objects.services.len(),
                generator.objects.slices.len(),
                packets.len(),
                refused.len(),
                settled.as_secs_f32(),
                began.elapsed().as_secs_f32(),
            ));
        }
    }
    Ok(())
}

fn number_from(variable: &str) -> Result<Option<u64>, String> {
    match std::env::var(variable) {
        Ok(text) if !text.is_empty() => text.parse().map(Some).map_err(|error| format!("{variable}={text}: {error}")),
        _ => Ok(None),
    }
}

fn settings() -> Vec<Flags> {
    let cidrs = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let texts = |texts: &[&str]| -> Vec<String> { texts.iter().map(|text| (*text).to_owned()).collect() };
    vec![
        Flags { cluster_cidrs: cidrs(&POD_CIDRS), masquerade_all: false, node_port_addresses: Vec::new() },
        Flags { cluster_cidrs: Vec::new(), masquerade_all: false, node_port_addresses: texts(&["0.0.0.0/0", "::/0"]) },
        Flags {
            cluster_cidrs: cidrs(&POD_CIDRS),
            masquerade_all: true,
            node_port_addresses: texts(&["192.168.0.0/16", "127.0.0.0/8"]),
        },
        Flags {
            cluster_cidrs: cidrs(&POD_CIDRS[..1]),
            masquerade_all: false,
            node_port_addresses: texts(&["0.0.0.0/0"]),
        },
    ]
}

fn site(flags: Flags) -> Site {
    let loopback = ["127.0.0.1", "::1"];
    let elsewhere = ["192.168.7.7/32", "2001:db8:7::7/128"];
    Site {
        flags,
        node_addresses: NODE_ADDRESSES[..2].iter().map(|text| (*text).to_owned()).collect(),
        surroundings: Surroundings {
            local: NODE_ADDRESSES.iter().chain(&loopback).map(|text| text.parse().unwrap()).collect(),
            pod_prefixes: POD_CIDRS.iter().chain(&elsewhere).map(|text| text.parse().unwrap()).collect(),
        },
        service_cidrs: vec![OTHER_CIDR.iter().map(|text| (*text).to_owned()).collect()],
    }
}
