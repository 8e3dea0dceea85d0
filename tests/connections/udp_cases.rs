//! Every way in which a UDP client could be left with an endpoint that is none, each a test of its own; both families, from
//! outside and from the node itself.

use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use steelyard::datapath::watch::Event;
use steelyard::model::service::Service;
use steelyard::runtime::watch::Event as Seen;

use crate::agent::{State, service, slice};
use crate::endpoints::Server;
use crate::stage::{Place, Stage, VARIANTS};
use crate::udp::{Client, Heard, Times};

const PORT: u16 = 5353;
const NODE_PORT: u16 = 30053;
/// A stale flow is gone within this time of the object's event.
const IN_TIME: Duration = Duration::from_millis(100);

/// With two endpoints' servers, and the Service with one of them.
struct Scene {
    stage: Stage,
    place: Place,
    _servers: Vec<Server>,
    name: &'static str,
    times: Rc<Times>,
}

impl Scene {
    fn each(name: &'static str, test: impl Fn(&mut Self)) {
        let times = Times::new();
        for (family, place) in VARIANTS {
            let stage = Stage::new(family);
            let addresses = [stage.endpoint(1, PORT), stage.endpoint(2, PORT), stage.endpoint(1, PORT + 1)];
            let servers = addresses.into_iter().map(|address| Server::start(&stage.pods, address)).collect();
            test(&mut Self { stage, place, _servers: servers, name, times: Rc::clone(&times) });
        }
        times.are_within(IN_TIME, name);
    }

    fn service(&self) -> Service {
        self.service_with(json!({}))
    }

    fn service_with(&self, spec: serde_json::Value) -> Service {
        service(self.stage.cluster_ip(53), spec, &[])
    }

    fn with_node_port(&self, port: u16) -> Service {
        self.service_with(json!({"type": "NodePort", "ports": [
            {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": port},
        ]}))
    }

    fn first(&self) -> Heard {
        Heard::From(self.stage.endpoint(1, PORT))
    }

    fn second(&self) -> Heard {
        Heard::From(self.stage.endpoint(2, PORT))
    }

    fn endpoints(&self, endpoints: &[(u8, State)]) -> steelyard::model::endpoints::EndpointSlice {
        let all: Vec<_> =
            endpoints.iter().map(|(number, state)| (self.stage.endpoint(*number, PORT), *state)).collect();
        slice(&all)
    }

    /// The Service with its first endpoint.
    fn begin(&self) {
        self.begin_with(self.service());
    }

    fn begin_with(&self, service: Service) {
        self.stage.agent().lists(vec![service], vec![self.endpoints(&[(1, State::Ready)])]);
    }

    fn client(&self, to: std::net::SocketAddr) -> Client {
        Client::new(&self.stage, self.place, to, &self.times)
    }

    /// A client of the cluster IP that is served by the first endpoint.
    fn served(&self) -> Client {
        let client = self.client(self.stage.cluster_ip(53));
        client.until("served at first", |heard| heard == self.first());
        client
    }

    fn what(&self, what: &str) -> String {
        format!("{}, {what} ({}, {:?})", self.name, self.stage.family, self.place)
    }
}

#[test]
fn an_endpoint_is_replaced() {
    Scene::each("endpoint replaced", |scene| {
        scene.begin();
        let client = scene.served();
        scene.stage.agent().slice(scene.endpoints(&[(2, State::Ready)]));
        client.moves(&scene.what("moves to the new one"), |heard| heard == scene.second());
    });
}

#[test]
fn an_endpoint_stops_serving() {
    Scene::each("endpoint stops serving", |scene| {
        scene.begin();
        let client = scene.served();
        scene.stage.agent().slice(scene.endpoints(&[(1, State::Terminating), (2, State::Ready)]));
        client.keeps(&scene.what("stays while it serves"), |heard| heard == scene.first());
        // It is in no map any more: nothing is programmed now.
        scene.stage.agent().slice(scene.endpoints(&[(1, State::Ended), (2, State::Ready)]));
        client.moves(&scene.what("moves when it serves no more"), |heard| heard == scene.second());
    });
}

#[test]
fn an_unready_endpoint_gets_ready() {
    Scene::each("unready to ready", |scene| {
        scene.stage.agent().lists(vec![scene.service()], vec![scene.endpoints(&[(1, State::Unready)])]);
        let client = scene.client(scene.stage.cluster_ip(53));
        client.until("refused at first", |heard| heard == Heard::Refused);
        scene.stage.agent().slice(scene.endpoints(&[(1, State::Ready)]));
        client.moves(&scene.what("is served"), |heard| heard == scene.first());
    });
}

#[test]
fn the_last_endpoint_goes() {
    Scene::each("zero endpoints", |scene| {
        scene.begin();
        let client = scene.served();
        scene.stage.agent().slice(scene.endpoints(&[]));
        client.moves(&scene.what("is told"), |heard| heard == Heard::Refused);
        scene.stage.agent().slice(scene.endpoints(&[(2, State::Ready)]));
        client.moves(&scene.what("is served again"), |heard| heard == scene.second());
    });
}

#[test]
fn the_slice_goes() {
    Scene::each("slice deleted", |scene| {
        scene.begin();
        let client = scene.served();
        scene.stage.agent().no_slice();
        client.moves(&scene.what("is told"), |heard| heard == Heard::Refused);
    });
}

#[test]
fn a_service_comes_after_its_client() {
    Scene::each("client before Service", |scene| {
        scene.stage.agent().lists(vec![], vec![]);
        // Nobody drops packets to this address before: each makes an entry that is not translated.
        let client = scene.client(scene.stage.external(53));
        for _ in 0..10 {
            client.ask();
        }
        scene.stage.agent().slice(scene.endpoints(&[(1, State::Ready)]));
        scene.stage.agent().service(scene.service_with(json!({"externalIPs": [scene.stage.external(53).ip()]})));
        client.moves(&scene.what("is served"), |heard| heard == scene.first());
    });
}

#[test]
fn a_service_is_deleted_and_made_again() {
    Scene::each("Service deleted", |scene| {
        scene.begin();
        let client = scene.served();
        scene.stage.agent().no_service();
        scene.stage.agent().no_slice();
        // Its address is nobody's now, and what is sent there is dropped.
        client.moves(&scene.what("is served no more"), |heard| heard == Heard::Nothing);
        scene.stage.agent().slice(scene.endpoints(&[(2, State::Ready)]));
        scene.stage.agent().service(scene.service());
        client.moves(&scene.what("is served again"), |heard| heard == scene.second());
    });
}

#[test]
fn the_port_changes() {
    Scene::each("port changed", |scene| {
        scene.begin();
        let client = scene.served();
        let ports = json!({"ports": [{"name": "udp", "port": 54, "protocol": "UDP"}]});
        scene.stage.agent().service(scene.service_with(ports));
        client.moves(&scene.what("is told"), |heard| heard == Heard::Refused);
        scene.stage.agent().service(scene.service());
        client.moves(&scene.what("is served again"), |heard| heard == scene.first());
    });
}

#[test]
fn the_target_port_changes() {
    Scene::each("target port changed", |scene| {
        scene.begin();
        let client = scene.served();
        let to = scene.stage.endpoint(1, PORT + 1);
        scene.stage.agent().slice(slice(&[(to, State::Ready)]));
        client.moves(&scene.what("moves to the new port"), |heard| heard == Heard::From(to));
    });
}

#[test]
fn the_node_port_changes() {
    Scene::each("NodePort changed", |scene| {
        scene.begin_with(scene.with_node_port(NODE_PORT));
        let [old, new] = [NODE_PORT, NODE_PORT + 1].map(|port| scene.client(scene.stage.node_port(port)));
        old.until("served at first", |heard| heard == scene.first());
        scene.stage.agent().service(scene.with_node_port(NODE_PORT + 1));
        old.moves(&scene.what("the old one is closed"), |heard| heard == Heard::Refused);
        new.moves(&scene.what("the new one serves"), |heard| heard == scene.first());
        scene.stage.agent().slice(scene.endpoints(&[(2, State::Ready)]));
        new.moves(&scene.what("moves to another endpoint"), |heard| heard == scene.second());
    });
}

#[test]
fn the_type_changes() {
    Scene::each("type changed", |scene| {
        scene.begin_with(scene.with_node_port(NODE_PORT));
        let client = scene.client(scene.stage.node_port(NODE_PORT));
        client.until("served at first", |heard| heard == scene.first());
        scene.stage.agent().service(scene.service_with(json!({"type": "ClusterIP"})));
        client.moves(&scene.what("the NodePort is closed"), |heard| heard == Heard::Refused);
        scene.stage.agent().service(scene.with_node_port(NODE_PORT));
        client.moves(&scene.what("the NodePort serves"), |heard| heard == scene.first());
        scene.stage.agent().service(
            scene.service_with(json!({"type": "ExternalName", "clusterIP": null, "externalName": "a.example"})),
        );
        client.moves(&scene.what("the NodePort is closed again"), |heard| heard == Heard::Refused);
    });
}

#[test]
fn the_policy_changes() {
    Scene::each("policy changed", |scene| {
        scene.begin_with(scene.with_node_port(NODE_PORT));
        let client = scene.client(scene.stage.node_port(NODE_PORT));
        client.until("served at first", |heard| heard == scene.first());
        scene.stage.agent().slice(scene.endpoints(&[(1, State::Ready), (2, State::Ready)]));
        let mut local = scene.with_node_port(NODE_PORT);
        local.external_policy = steelyard::model::service::TrafficPolicy::Local;
        scene.stage.agent().service(local);
        client.keeps(&scene.what("stays with an endpoint that serves"), |heard| heard == scene.first());
        scene.stage.agent().slice(scene.endpoints(&[(2, State::Ready)]));
        client.moves(&scene.what("moves with policy Local too"), |heard| heard == scene.second());
    });
}

#[test]
fn the_agent_restarts() {
    Scene::each("agent restarted", |scene| {
        scene.begin_with(scene.service_with(json!({"externalIPs": [scene.stage.external(53).ip()]})));
        let client = scene.served();
        let external = scene.client(scene.stage.external(53));
        external.until("served at first", |heard| heard == scene.first());
        scene.stage.agent = None;
        client.keeps(&scene.what("stays meanwhile"), |heard| heard == scene.first());
        scene.stage.start_agent();
        scene.stage.agent().tell(Event::Slice(Seen::Replaced(vec![scene.endpoints(&[(2, State::Ready)])])));
        scene.stage.agent().tell(Event::Service(Seen::Replaced(vec![scene.service().into()])));
        client.moves(&scene.what("moves to an endpoint that came meanwhile"), |heard| heard == scene.second());
        external.keeps(&scene.what("an address that went meanwhile serves no more"), |heard| heard == Heard::Nothing);
    });
}

#[test]
fn affinity_holds_nobody() {
    Scene::each("with affinity", |scene| {
        scene.begin_with(scene.service_with(json!({"sessionAffinity": "ClientIP"})));
        let client = scene.served();
        scene.stage.agent().slice(scene.endpoints(&[(2, State::Ready)]));
        client.moves(&scene.what("moves to the new one"), |heard| heard == scene.second());
    });
}

#[test]
fn addresses_of_balancers_and_external_ones_come_and_go() {
    Scene::each("other addresses", |scene| {
        scene.begin();
        let addresses = [scene.stage.balancer(53), scene.stage.external(53)];
        let clients = addresses.map(|address| scene.client(address));
        for client in &clients {
            client.ask();
        }
        let external = json!({"externalIPs": [scene.stage.external(53).ip()]});
        let with_both = || service(scene.stage.cluster_ip(53), external.clone(), &[scene.stage.balancer(53)]);
        for (client, what) in clients.iter().zip(["the balancer's", "the external"]) {
            scene.stage.agent().service(with_both());
            client.moves(&scene.what(&format!("{what} address serves")), |heard| heard == scene.first());
            scene.stage.agent().slice(scene.endpoints(&[(2, State::Ready)]));
            client.moves(&scene.what(&format!("{what} address moves")), |heard| heard == scene.second());
            scene.stage.agent().slice(scene.endpoints(&[(1, State::Ready)]));
            client.moves(&scene.what(&format!("{what} address moves back")), |heard| heard == scene.first());
            scene.stage.agent().service(scene.service());
            client.moves(&scene.what(&format!("{what} address goes")), |heard| heard == Heard::Nothing);
        }
    });
}

#[test]
fn a_service_leaves_this_proxy_by_its_label() {
    Scene::each("label of another proxy", |scene| {
        scene.begin();
        let client = scene.served();
        let mut other = scene.service();
        other.is_proxied = false;
        scene.stage.agent().service(other);
        client.moves(&scene.what("is served no more"), |heard| heard == Heard::Nothing);
        scene.stage.agent().service(scene.service());
        client.moves(&scene.what("is served again"), |heard| heard == scene.first());
    });
}
