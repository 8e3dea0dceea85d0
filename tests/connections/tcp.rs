//! TCP connections to endpoints that are gone, and those that have nothing to do with it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::agent::{State, service, slice, slice_of};
use crate::endpoints::Server;
use crate::invalid::send_segment;
use crate::namespace::run_program;
use crate::stage::{LIMIT, Place, Stage, VARIANTS, on_a_busy_machine, wait};

const PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;
const GRACE: Duration = Duration::from_millis(600);
/// From a client's packet to the reset: before the client would send it again (Linux waits 200 ms at least).
const SOON: Duration = Duration::from_millis(180);

struct Scene {
    stage: Stage,
    place: Place,
    _servers: Vec<Server>,
}

impl Scene {
    fn each(grace: Option<Duration>, test: impl Fn(&Self)) {
        for (family, place) in VARIANTS {
            let mut stage = Stage::without_agent(family);
            stage.grace = grace;
            stage.start_agent();
            let servers = (1..=2).map(|number| Server::start(&stage.pods, stage.endpoint(number, PORT))).collect();
            let scene = Self { stage, place, _servers: servers };
            scene.stage.agent().lists(vec![scene.service()], vec![]);
            test(&scene);
        }
    }

    fn service(&self) -> steelyard::model::service::Service {
        service(
            self.stage.cluster_ip(80),
            json!({"ports": [{"name": "tcp", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT}]}),
            &[],
        )
    }

    fn slice(&self, endpoints: &[(u8, State)]) {
        let all: Vec<_> =
            endpoints.iter().map(|(number, state)| (self.stage.endpoint(*number, PORT), *state)).collect();
        self.stage.agent().slice(slice(&all));
    }

    /// Connects, as soon as the endpoint is there, until it gets to this one.
    fn connect(&self, to: SocketAddr, number: u8) -> Connection {
        let mut found = None;
        wait(LIMIT, "a connection to the endpoint", || {
            found = Connection::open(&self.stage, self.place, to)
                .filter(|(_, name)| *name == self.stage.endpoint(number, PORT).to_string());
            found.is_some()
        });
        found.unwrap().0
    }
}

struct Connection(TcpStream);

impl Connection {
    fn open(stage: &Stage, place: Place, to: SocketAddr) -> Option<(Self, String)> {
        let stream = stage.namespace(place).run(|| TcpStream::connect_timeout(&to, Duration::from_millis(500))).ok()?;
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut connection = Self(stream);
        let name = connection.ask().ok()?;
        Some((connection, name))
    }

    fn ask(&mut self) -> std::io::Result<String> {
        self.0.write_all(b"?")?;
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            match self.0.read(&mut byte) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => drop(other?),
            }
            if byte[0] == b'\n' {
                return Ok(String::from_utf8(line).unwrap());
            }
            line.push(byte[0]);
        }
    }

    fn works(&mut self, what: &str) {
        let answer = self.ask();
        assert!(answer.is_ok(), "{what}: {answer:?}");
    }

    /// The next packet is answered with a reset.
    fn is_reset(&mut self, what: &str) {
        let start = Instant::now();
        let error = self.ask().expect_err(what);
        let took = start.elapsed();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}: {error}");
        println!("{what}: reset {:.2} ms after the packet", took.as_secs_f64() * 1000.0);
        assert!(took < on_a_busy_machine(SOON), "{what}: {took:?}");
    }
}

/// As many tracked connections as there are to an endpoint.
fn tracked(scene: &Scene, number: u8) -> usize {
    let address = scene.stage.endpoint(number, PORT).ip().to_string();
    let family = match scene.stage.family {
        steelyard::model::Family::V4 => "ipv4",
        steelyard::model::Family::V6 => "ipv6",
    };
    let arguments = ["-L", "-p", "tcp", "-f", family, "-r", &address, "--state", "ESTABLISHED"];
    let listing = scene.stage.node.run(|| run_program("conntrack", &arguments, "")).unwrap();
    listing.lines().filter(|line| line.contains("tcp")).count()
}

#[test]
fn connections_to_an_endpoint_that_is_gone_are_reset_and_others_are_not() {
    Scene::each(Some(GRACE), |scene| {
        let name = format!("{} {:?}", scene.stage.family, scene.place);
        scene.slice(&[(1, State::Ready), (2, State::Ready)]);
        let mut gone = scene.connect(scene.stage.cluster_ip(80), 1);
        let mut idle = scene.connect(scene.stage.cluster_ip(80), 1);
        let mut by_node_port = scene.connect(scene.stage.node_port(NODE_PORT), 1);
        let mut other = scene.connect(scene.stage.cluster_ip(80), 2);
        let start = Instant::now();
        scene.slice(&[(2, State::Ready)]);
        // It is alive, so that what happens is our doing.
        gone.works("within the grace");
        wait(LIMIT, "its connections are forgotten", || tracked(scene, 1) == 0);
        assert!(start.elapsed() >= GRACE, "forgotten after {:?}", start.elapsed());
        gone.is_reset(&format!("{name}, active"));
        by_node_port.is_reset(&format!("{name}, by NodePort"));
        other.works("to another endpoint");
        // The other endpoint goes too, and with it the last: a reset all the same, not an ICMP message.
        scene.slice(&[]);
        wait(LIMIT, "its connections are forgotten", || tracked(scene, 2) == 0);
        other.is_reset(&format!("{name}, no endpoint left"));
        idle.is_reset(&format!("{name}, idle for {:.1} s", start.elapsed().as_secs_f64()));
    });
}

#[test]
fn connections_stay_with_an_endpoint_that_only_is_unready_or_comes_back_or_serves_another_service() {
    Scene::each(Some(GRACE), |scene| {
        scene.slice(&[(1, State::Ready), (2, State::Ready)]);
        let mut connection = scene.connect(scene.stage.cluster_ip(80), 1);
        let mut judge = scene.connect(scene.stage.cluster_ip(80), 2);
        scene.slice(&[(1, State::Unready), (2, State::Ready)]);
        scene.slice(&[(1, State::Ended), (2, State::Ready)]);
        connection.works("unready");
        scene.slice(&[(2, State::Ready)]);
        connection.works("gone for a moment");
        scene.slice(&[(1, State::Ready), (2, State::Ready)]);
        scene.slice(&[(2, State::Ready)]);
        scene.stage.agent().slice(slice_of("other", &[(scene.stage.endpoint(1, PORT), State::Ready)]));
        // When the second one is reset, the grace of the first is long over.
        scene.slice(&[]);
        wait(LIMIT, "the other's connections are forgotten", || tracked(scene, 2) == 0);
        judge.is_reset("the other");
        connection.works("in the slice of another Service");
    });
}

#[test]
fn connections_to_endpoints_that_went_while_no_agent_ran_are_reset_after_a_grace() {
    for family in steelyard::model::Family::ALL {
        let mut stage = Stage::without_agent(family);
        stage.grace = Some(GRACE);
        stage.start_agent();
        let servers: Vec<_> = (1..=2).map(|number| Server::start(&stage.pods, stage.endpoint(number, PORT))).collect();
        let mut scene = Scene { stage, place: Place::Outside, _servers: servers };
        scene.stage.agent().lists(vec![scene.service()], vec![]);
        scene.slice(&[(1, State::Ready)]);
        let mut connection = scene.connect(scene.stage.cluster_ip(80), 1);
        scene.stage.agent = None;
        scene.stage.start_agent();
        let start = Instant::now();
        let second = slice(&[(scene.stage.endpoint(2, PORT), State::Ready)]);
        scene.stage.agent().lists(vec![scene.service()], vec![second]);
        connection.works("within the grace");
        wait(LIMIT, "its connections are forgotten", || tracked(&scene, 1) == 0);
        assert!(start.elapsed() >= GRACE);
        connection.is_reset("gone before the start");
    }
}

#[test]
fn segments_of_a_live_connection_are_not_reset_however_odd_they_are() {
    Scene::each(Some(GRACE), |scene| {
        scene.slice(&[(1, State::Ready)]);
        let mut connection = scene.connect(scene.stage.cluster_ip(80), 1);
        let from = connection.0.local_addr().unwrap();
        let client = scene.stage.namespace(scene.place);
        // Far out of the window, so that connection tracking calls it invalid.
        for (sequence, flags) in [(0x1000, 0x10), (0x7fff_0000, 0x18), (0xf000_0000, 0x10)] {
            send_segment(client, from, connection.0.peer_addr().unwrap(), flags, sequence);
        }
        connection.works("after segments that are out of the window");
        connection.works("and once more");
    });
}

#[test]
fn switched_off_nothing_is_forgotten() {
    Scene::each(None, |scene| {
        scene.slice(&[(1, State::Ready)]);
        let mut connection = scene.connect(scene.stage.cluster_ip(80), 1);
        scene.slice(&[(2, State::Ready)]);
        let _moved = scene.connect(scene.stage.cluster_ip(80), 2);
        let until = Instant::now() + 2 * GRACE;
        while Instant::now() < until {
            connection.works("with the option off");
        }
    });
}
