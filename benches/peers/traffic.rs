//! Connections and bytes from a client through a node to a server: through each proxy, and with no translation at all.
//! All take turns in each round, so that whatever else the machine does hits all alike; what counts is the ratio in a round.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::figures::{at, median};
use crate::objects::{CLUSTER_IP, PORTS, STICKY, VIP, sticky_ip};
use crate::say;
use crate::world::{ENDPOINTS, World, outside, pods};

const ROUNDS: usize = 15;
/// How long one of them has its turn.
const TURN: Duration = Duration::from_millis(400);
/// A packet that is lost is not waited for: the next tries again after a second.
const LIMIT: Duration = Duration::from_secs(3);
/// What is sent at once.
const BULK: usize = 128 << 10;

/// Which of the ports.
const GREET: usize = 0;
const ECHO: usize = 1;
const SINK: usize = 2;

/// How a client gets to the server.
#[derive(Clone, Copy)]
struct Way<'a> {
    world: &'a World,
    to: Ipv4Addr,
    /// To an endpoint itself.
    is_direct: bool,
}

impl Way<'_> {
    fn at(&self, port: usize) -> SocketAddr {
        let (_, port, target) = PORTS[port];
        (self.to, if self.is_direct { target } else { port }).into()
    }
}

/// What one variant made of its turns.
#[derive(Default)]
struct Turns {
    /// Per second: connections, or exchanges, or gigabits.
    rates: Vec<f64>,
    /// Of all, in microseconds.
    delays: Vec<f64>,
}

/// Prints what traffic gets through each of the worlds, where so many Services are programmed.
pub fn measure(ours: &World, theirs: &World, plain: &World, size: u32) {
    for world in [ours, theirs, plain] {
        serve(world);
    }
    let endpoint = Ipv4Addr::from([ENDPOINTS[0], ENDPOINTS[1], ENDPOINTS[2], 1]);
    let ways = |to: Ipv4Addr| {
        [(ours, to, false), (theirs, to, false), (plain, endpoint, true)].map(|(world, to, is_direct)| Way {
            world,
            to,
            is_direct,
        })
    };
    println!(
        "\n| {size} Services, traffic | rate: Steelyard | kube-proxy | no translation | Steelyard / kube-proxy | Steelyard / no \
         translation | kube-proxy / no translation | p50 µs: Steelyard | kube-proxy | no translation | p99 µs: Steelyard | \
         kube-proxy | no translation |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    let (pods, outside) = (pods(), outside());
    let kinds = [("pod to cluster IP", CLUSTER_IP, &pods), ("outside to VIP, masqueraded", VIP, &outside)];
    for (name, to, from) in kinds {
        for flights in [1, 8] {
            let label = format!("new connections, {name}, {flights} in flight");
            run(&label, &ways(to), |way| connections(way, from, flights));
        }
        run(&format!("exchanges on a connection, {name}"), &ways(to), |way| exchanges(way, from[0]));
        run(&format!("Gbit/s, one stream, {name}"), &ways(to), |way| bulk(way, from[0]));
    }
    for count in STICKY {
        let label = format!("new connections, affinity, {count} endpoints, 1 in flight");
        run(&label, &ways(sticky_ip(count)), |way| connections(way, &pods, 1));
    }
}

/// Gives each its turn in each round and prints the line.
fn run(label: &str, ways: &[Way<'_>], turn: impl Fn(&Way<'_>) -> (f64, Vec<f64>)) {
    let mut all: Vec<Turns> = ways.iter().map(|_| Turns::default()).collect();
    for round in 0..=ROUNDS {
        for at in 0..ways.len() {
            // Another one begins each time.
            let at = (at + round) % ways.len();
            ways[at].world.forget_connections();
            let (rate, delays) = turn(&ways[at]);
            // The first round warms up.
            if round > 0 {
                all[at].rates.push(rate);
                all[at].delays.extend(delays);
            }
        }
    }
    let against = |a: usize, b: usize| {
        let ratios: Vec<f64> = all[a].rates.iter().zip(&all[b].rates).map(|(a, b)| a / b).collect();
        format!("**{:.2}**", median(&ratios))
    };
    let rates: Vec<String> = all.iter().map(|turns| digits(median(&turns.rates))).collect();
    let delays = |share: usize| -> Vec<String> {
        let one =
            |turns: &Turns| if turns.delays.is_empty() { "-".to_owned() } else { digits(at(&turns.delays, share)) };
        all.iter().map(one).collect()
    };
    println!(
        "| {label} | {} | {} | {} | {} | {} | {} |",
        rates.join(" | "),
        against(0, 1),
        against(0, 2),
        against(1, 2),
        delays(50).join(" | "),
        delays(99).join(" | ")
    );
    say(label);
}

fn digits(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// New connections one after another in each flight: up to the server's first byte, then reset, which leaves nothing behind.
fn connections(way: &Way<'_>, sources: &[Ipv4Addr], flights: usize) -> (f64, Vec<f64>) {
    let to = way.at(GREET);
    let started = Instant::now();
    let fly = |flight: usize| {
        way.world.client.enter();
        let mut delays = Vec::new();
        let mut number = 0_usize;
        while started.elapsed() < TURN {
            // Ports of a flight's own, used again only when all were.
            let source = sources[number % sources.len()];
            let port = 10_000 + flight * 6_000 + number / sources.len() % 6_000;
            number += 1;
            let begun = Instant::now();
            let mut stream = connect(source, u16::try_from(port).unwrap(), to);
            stream.read_exact(&mut [0]).unwrap();
            delays.push(micros(begun));
        }
        delays
    };
    let delays: Vec<f64> = thread::scope(|scope| {
        let fly = &fly;
        let flights: Vec<_> = (0..flights).map(|flight| scope.spawn(move || fly(flight))).collect();
        flights.into_iter().flat_map(|flight| flight.join().unwrap()).collect()
    });
    (delays.len() as f64 / started.elapsed().as_secs_f64(), delays)
}

/// One byte there and back, again and again.
fn exchanges(way: &Way<'_>, source: Ipv4Addr) -> (f64, Vec<f64>) {
    way.world.client.within(|| {
        let mut stream = connect(source, 0, way.at(ECHO));
        let (started, mut delays) = (Instant::now(), Vec::new());
        while started.elapsed() < TURN {
            let begun = Instant::now();
            stream.write_all(&[1]).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            delays.push(micros(begun));
        }
        (delays.len() as f64 / started.elapsed().as_secs_f64(), delays)
    })
}

/// As many bytes as go; the server says at the end how many came.
fn bulk(way: &Way<'_>, source: Ipv4Addr) -> (f64, Vec<f64>) {
    way.world.client.within(|| {
        let mut stream = connect(source, 0, way.at(SINK));
        let (started, block) = (Instant::now(), vec![0; BULK]);
        while started.elapsed() < TURN {
            stream.write_all(&block).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut count = [0; 8];
        stream.read_exact(&mut count).unwrap();
        (u64::from_be_bytes(count) as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9, Vec::new())
    })
}

fn connect(source: Ipv4Addr, port: u16, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::from((source, port)))).unwrap();
    socket.connect(&to.into()).unwrap_or_else(|error| panic!("failed to connect {source}:{port} to {to}: {error}"));
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream
}

fn micros(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}

/// Starts what answers in the server's namespace, until the process ends.
fn serve(world: &World) {
    let listen = |port: u16| {
        world.server.within(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))).unwrap();
            socket.listen(4096).unwrap();
            TcpListener::from(socket)
        })
    };
    let [greeter, echo, sink] = PORTS.map(|(_, _, target)| listen(target));
    thread::spawn(move || {
        for stream in greeter.incoming() {
            // The client may have gone.
            let _ = stream.and_then(|mut stream| stream.write_all(&[1]));
        }
    });
    thread::spawn(move || {
        for mut stream in echo.incoming().flatten() {
            let mut buffer = [0; 64];
            stream.set_nodelay(true).unwrap();
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        }
    });
    thread::spawn(move || {
        for mut stream in sink.incoming().flatten() {
            let (mut buffer, mut sum) = (vec![0; BULK], 0_u64);
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => sum += length as u64,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            let _ = stream.write_all(&sum.to_be_bytes());
        }
    });
}
