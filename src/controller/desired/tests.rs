//! The pure stations together, against an API server made of maps: stale reads, restarts and a second leader included.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::index::testing::{pool, service};
use super::super::index::{NamespaceObject, PoolObject};
use super::super::plan::{Plan, Step, plan};
use super::super::seen::{Gone, Versioned};
use super::*;
use crate::api::claim_name::claim_name;
use crate::model::service::Ingress;

/// An event of the watch that has not arrived yet.
#[derive(Clone, Debug)]
enum Late {
    Service(Box<ServiceObject>),
    NoService(ServiceKey, u64),
    Claim(Box<Claim>),
    NoClaim(ClaimName, u64),
    Pool(Box<PoolObject>),
}

/// One replica: what it has seen, and what it will see.
#[derive(Clone, Debug, Default)]
struct Replica {
    index: Index,
    late: VecDeque<Late>,
}

/// The API server, with its rules: names are unique, a write must carry the newest version.
#[derive(Debug)]
struct World {
    version: u64,
    now: Timestamp,
    services: BTreeMap<ServiceKey, ServiceObject>,
    claims: BTreeMap<ClaimName, Claim>,
    pools: BTreeMap<PoolName, PoolObject>,
    replicas: Vec<Replica>,
    writes: usize,
}

impl World {
    fn new(replicas: usize) -> Self {
        let mut world = Self {
            version: 10,
            now: Timestamp::from_second(1_000_000).unwrap(),
            services: BTreeMap::new(),
            claims: BTreeMap::new(),
            pools: BTreeMap::new(),
            replicas: Vec::new(),
            writes: 0,
        };
        world.replicas = (0..replicas).map(|_| world.listed()).collect();
        world
    }

    /// A replica that has just listed everything.
    fn listed(&self) -> Replica {
        let mut index = Index::default();
        index.services.replaced(self.services.values().cloned().collect());
        index.claims.replaced(self.claims.values().cloned().collect());
        index.pools.replaced(self.pools.values().cloned().collect());
        let namespace =
            NamespaceObject { name: "default".into(), resource_version: "1".into(), labels: BTreeMap::new() };
        index.namespaces.replaced(vec![namespace]);
        index.nodes.replaced(Vec::new());
        Replica { index, late: VecDeque::new() }
    }

    fn tell(&mut self, late: &Late) {
        self.replicas.iter_mut().for_each(|replica| replica.late.push_back(late.clone()));
    }

    fn next_version(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    fn put_service(&mut self, mut object: ServiceObject) -> ServiceObject {
        object.service.resource_version = self.next_version();
        if object.service.is_deleting && object.service.finalizers.is_empty() {
            self.services.remove(&object.key());
            self.tell(&Late::NoService(object.key(), self.version));
        } else {
            self.services.insert(object.key(), object.clone());
            self.tell(&Late::Service(Box::new(object.clone())));
        }
        object
    }

    fn put_claim(&mut self, mut claim: Claim) -> Claim {
        claim.resource_version = self.next_version();
        self.claims.insert(claim.name.clone(), claim.clone());
        self.tell(&Late::Claim(Box::new(claim.clone())));
        claim
    }

    fn put_pool(&mut self, mut object: PoolObject) -> PoolObject {
        object.resource_version = self.next_version();
        self.pools.insert(object.name.clone(), object.clone());
        self.tell(&Late::Pool(Box::new(object.clone())));
        object
    }

    /// Lets some of a replica's events arrive.
    fn deliver(&mut self, replica: usize, count: usize) {
        let replica = &mut self.replicas[replica];
        for _ in 0..count {
            let gone = |version: u64| version.to_string();
            match replica.late.pop_front() {
                Some(Late::Service(object)) => replica.index.services.applied(*object),
                Some(Late::NoService(key, at)) => {
                    replica.index.services.removed(&Gone { key, resource_version: gone(at) });
                }
                Some(Late::Claim(claim)) => replica.index.claims.applied(*claim),
                Some(Late::NoClaim(key, at)) => {
                    replica.index.claims.removed(&Gone { key, resource_version: gone(at) });
                }
                Some(Late::Pool(object)) => replica.index.pools.applied(*object),
                None => return,
            }
        }
    }

    fn plan(&self, replica: usize) -> Plan {
        let index = &self.replicas[replica].index;
        plan(index, &desired(index, &Settings::default(), self.now), self.now)
    }

    /// One turn of a replica, whose `stop`th write is its last: then it dies, or its lease ends.
    fn turn(&mut self, replica: usize, mut stop: usize) -> usize {
        let plan = self.plan(replica);
        let mut done = 0;
        for task in plan.tasks {
            for step in task.steps {
                if stop == 0 {
                    return done;
                }
                stop -= 1;
                if !self.step(replica, &step) {
                    break;
                }
                done += usize::from(!matches!(step, Step::Report(_)));
                self.check();
            }
        }
        done
    }

    /// One write; gives whether the server took it. The replica learns from the answer either way.
    fn step(&mut self, replica: usize, step: &Step) -> bool {
        let version = |version: Option<&str>, wanted: &str| version == Some(wanted);
        match step {
            Step::CreateClaim { address, tenure } => {
                let name = claim_name(*address);
                let is_new = !self.claims.contains_key(&name);
                if is_new {
                    self.put_claim(Claim {
                        name: name.clone(),
                        uid: String::new(),
                        resource_version: String::new(),
                        address: *address,
                        tenure: tenure.clone(),
                        is_quarantined: false,
                        is_deleting: false,
                    });
                }
                self.learn_claim(replica, &name);
                self.writes += usize::from(is_new);
                is_new
            }
            Step::WriteClaim { name, resource_version, tenure, .. } => {
                let found = self.claims.get(name).cloned();
                let is_newest = version(found.as_ref().map(|claim| claim.resource_version.as_str()), resource_version);
                if let Some(claim) = found.filter(|_| is_newest) {
                    self.put_claim(Claim { tenure: tenure.clone(), ..claim });
                }
                self.learn_claim(replica, name);
                self.writes += usize::from(is_newest);
                is_newest
            }
            Step::DeleteClaim { name, resource_version } => {
                let found = self.claims.get(name).map(|claim| claim.resource_version.as_str());
                let is_newest = version(found, resource_version);
                if is_newest {
                    self.claims.remove(name);
                    self.next_version();
                    self.tell(&Late::NoClaim(name.clone(), self.version));
                }
                self.learn_claim(replica, name);
                self.writes += usize::from(is_newest);
                is_newest
            }
            Step::WriteConditions(write) => {
                let found = self.services.get(&write.key).cloned();
                let newest = found.as_ref().map(|object| object.service.resource_version.as_str());
                let is_newest = version(newest, &write.resource_version);
                if let Some(mut object) = found.filter(|_| is_newest) {
                    object.conditions.clone_from(&write.conditions);
                    self.put_service(object);
                }
                let index = &mut self.replicas[replica].index;
                match self.services.get(&write.key) {
                    Some(object) => index.services.answered(object.clone()),
                    None => index.services.forget(&write.key),
                }
                self.writes += usize::from(is_newest);
                is_newest
            }
            Step::WriteService(write) => {
                let found = self.services.get(&write.key).cloned();
                let newest = found.as_ref().map(|object| object.service.resource_version.as_str());
                let is_newest = version(newest, &write.resource_version);
                if let Some(mut object) = found.filter(|_| is_newest) {
                    object.service.ingress =
                        write.addresses.iter().map(|ip| Ingress { address: *ip, is_proxied: false }).collect();
                    object.service.annotations.allocated_from_pool.clone_from(&write.pools);
                    object.service.finalizers.clone_from(&write.finalizers);
                    object.conditions.clone_from(&write.conditions);
                    object.decided_on.clone_from(&write.decided_on);
                    self.put_service(object);
                }
                let index = &mut self.replicas[replica].index;
                match self.services.get(&write.key) {
                    Some(object) => index.services.answered(object.clone()),
                    None => index.services.forget(&write.key),
                }
                self.writes += usize::from(is_newest);
                is_newest
            }
            Step::WritePool(write) => {
                let found = self.pools.get(&write.name).cloned();
                let newest = found.as_ref().map(|object| object.resource_version.as_str());
                let is_newest = version(newest, &write.resource_version);
                if let Some(object) = found.filter(|_| is_newest) {
                    self.put_pool(PoolObject { status: write.status.clone(), ..object });
                }
                let index = &mut self.replicas[replica].index;
                match self.pools.get(&write.name) {
                    Some(object) => index.pools.answered(object.clone()),
                    None => index.pools.forget(&write.name),
                }
                is_newest
            }
            Step::ConfirmGone(key) => {
                let found = self.services.get(key).cloned();
                let index = &mut self.replicas[replica].index;
                match &found {
                    Some(object) => index.services.answered(object.clone()),
                    None => index.services.forget(key),
                }
                found.is_none()
            }
            Step::ConfirmNotHeld { claim, service } => {
                self.learn_claim(replica, claim);
                !self.claims.get(claim).is_some_and(|claim| claim.is_held_by(service))
            }
            Step::Report(_) => true,
        }
    }

    fn learn_claim(&mut self, replica: usize, name: &ClaimName) {
        let index = &mut self.replicas[replica].index;
        match self.claims.get(name) {
            Some(claim) => index.claims.answered(claim.clone()),
            None => index.claims.forget(name),
        }
    }

    /// What must hold after every single write: an address has one holder, and a Service shows only what it holds.
    fn check(&self) {
        for claim in self.claims.values() {
            assert!(claim.tenure.holders.len() <= 1, "{} has several holders", claim.address);
        }
        let is_ours = |object: &&ServiceObject| {
            let service = &object.service;
            service.service_type == ServiceType::LoadBalancer && service.annotations.allocated_from_pool.is_some()
        };
        for object in self.services.values().filter(is_ours) {
            for ingress in &object.service.ingress {
                let claim = self.claims.get(&claim_name(ingress.address));
                assert!(
                    claim.is_some_and(|claim| claim.is_held_by(&object.key())),
                    "{} shows {} and does not hold it",
                    object.key(),
                    ingress.address
                );
            }
        }
    }

    /// Lets everything arrive and the replica work until it has nothing to do.
    fn settle(&mut self, replica: usize) {
        for _ in 0..100 {
            self.deliver(replica, usize::MAX);
            if self.turn(replica, usize::MAX) == 0 {
                self.deliver(replica, usize::MAX);
                assert_eq!(self.plan(replica), Plan::default(), "settled, and yet there is something to do");
                return;
            }
        }
        panic!("does not settle: {:?}", self.plan(replica));
    }

    fn shown(&self, name: &str) -> Vec<String> {
        let object = &self.services[&ServiceKey::new("default", name)];
        object.service.ingress.iter().map(|ingress| ingress.address.to_string()).collect()
    }

    fn reason(&self, name: &str) -> String {
        let object = &self.services[&ServiceKey::new("default", name)];
        let condition = object.conditions.iter().find(|condition| condition.type_ == conditions::ADDRESS_ASSIGNED);
        condition.map(|condition| condition.reason.clone()).unwrap_or_default()
    }

    fn delete_service(&mut self, name: &str) {
        if let Some(mut object) = self.services.get(&ServiceKey::new("default", name)).cloned() {
            object.service.is_deleting = true;
            self.put_service(object);
        }
    }
}

const LB: &str = "{type: LoadBalancer, clusterIPs: [10.0.0.1]}";
const CLUSTER_IP: &str = "{type: ClusterIP, clusterIPs: [10.0.0.1]}";

/// A changed Service keeps everything but what its user changes.
fn change(world: &mut World, name: &str, spec: &str, annotations: &str) {
    let new = service(name, 5, spec, annotations);
    let object = match world.services.get(&new.key()).cloned() {
        Some(mut old) => {
            let pools = old.service.annotations.allocated_from_pool.take();
            old.service.annotations = new.service.annotations;
            old.service.annotations.allocated_from_pool = pools;
            old.service.service_type = new.service.service_type;
            old
        }
        None => new,
    };
    world.put_service(object);
}

#[test]
fn services_get_addresses_by_age_and_give_them_back() {
    let mut world = World::new(1);
    world.put_pool(pool("a", 1, "{addresses: [1.0.0.0/31], cooldown: 60s}"));
    world.put_service(service("young", 9, LB, "{}"));
    world.put_service(service("old", 3, LB, "{}"));
    world.put_service(service("late", 10, LB, "{}"));
    world.settle(0);
    assert_eq!((world.shown("old"), world.shown("young")), (vec!["1.0.0.0".into()], vec!["1.0.0.1".into()]));
    assert_eq!((world.shown("late"), world.reason("late")), (vec![], "PoolsExhausted".into()));
    let status = &world.pools[&"a".into()].status;
    assert_eq!((status.assigned, status.available, status.assigned_ipv4), (2, 0, 2));

    world.delete_service("old");
    world.settle(0);
    assert!(!world.services.contains_key(&ServiceKey::new("default", "old")));
    assert_eq!(world.shown("late"), Vec::<String>::new());
    world.now = world.now.checked_add(std::time::Duration::from_secs(60)).unwrap();
    world.settle(0);
    assert_eq!(world.shown("late"), ["1.0.0.0"]);
}

#[test]
fn who_comes_back_gets_the_old_address_at_once() {
    let mut world = World::new(1);
    world.put_pool(pool("a", 1, "addresses: [1.0.0.0/24]"));
    world.put_service(service("x", 3, LB, "{}"));
    world.put_service(service("y", 4, LB, "{}"));
    world.settle(0);
    world.delete_service("x");
    change(&mut world, "y", CLUSTER_IP, "{}");
    world.settle(0);
    assert_eq!(world.shown("y"), Vec::<String>::new());
    assert!(world.services[&ServiceKey::new("default", "y")].service.finalizers.is_empty());
    world.put_service(service("new", 6, LB, "{}"));
    world.put_service(service("x", 7, LB, "{}"));
    change(&mut world, "y", LB, "{}");
    world.settle(0);
    assert_eq!([world.shown("x"), world.shown("y"), world.shown("new")].concat(), ["1.0.0.0", "1.0.0.1", "1.0.0.2"]);
}

#[test]
fn a_refused_request_leaves_the_address_and_says_so() {
    let mut world = World::new(1);
    world.put_pool(pool("a", 1, "addresses: [1.0.0.0/24]"));
    world.put_service(service("x", 3, LB, "{}"));
    world.put_service(service("y", 4, LB, "{}"));
    world.settle(0);
    change(&mut world, "y", LB, "{steelyard.dev/loadBalancerIPs: 1.0.0.0}");
    world.settle(0);
    assert_eq!((world.shown("y"), world.reason("y")), (vec!["1.0.0.1".into()], "RequestRefused".into()));
    change(&mut world, "y", LB, "{steelyard.dev/loadBalancerIPs: 1.0.0.7}");
    world.settle(0);
    assert_eq!((world.shown("y"), world.reason("y")), (vec!["1.0.0.7".into()], "Assigned".into()));
    assert!(world.claims[&claim_name("1.0.0.1".parse().unwrap())].tenure.released_at.is_some());
}

#[test]
fn what_belongs_to_others_is_never_touched() {
    let mut world = World::new(1);
    world.put_pool(pool("a", 1, "addresses: [1.0.0.0/24]"));
    let foreign = |name: &str, spec: &str, address: &str| {
        let mut object = service(name, 3, spec, "{}");
        object.service.finalizers = vec![crate::api::SERVICE_FINALIZER.to_owned()];
        object.service.ingress = vec![Ingress { address: address.parse().unwrap(), is_proxied: false }];
        object
    };
    let class = "{type: LoadBalancer, loadBalancerClass: other/lb, clusterIPs: [10.0.0.1]}";
    world.put_service(foreign("classed", class, "1.0.0.9"));
    world.put_service(foreign("elsewhere", LB, "9.9.9.9"));
    world.put_service(foreign("internal", CLUSTER_IP, "1.0.0.9"));
    let mut named = service("named", 3, LB, "{}");
    named.has_hostname = true;
    world.put_service(named);
    world.put_service(service("ours", 3, &class.replace("other/lb", LOAD_BALANCER_CLASS), "{}"));
    world.put_service(foreign("migrated", LB, "1.0.0.8"));
    let before = world.services.clone();
    world.settle(0);
    for (key, object) in &before {
        let is_same = world.services[key] == *object;
        let is_others = !["ours", "migrated"].contains(&&*key.name);
        assert_eq!(is_same, is_others, "{key}");
    }
    assert_eq!((world.shown("ours"), world.shown("migrated")), (vec!["1.0.0.0".into()], vec!["1.0.0.8".into()]));
}

#[test]
fn a_stale_read_with_an_empty_status_moves_nothing() {
    let mut world = World::new(1);
    world.put_pool(pool("a", 1, "addresses: [1.0.0.0/24]"));
    world.put_service(service("first", 1, LB, "{}"));
    world.put_service(service("x", 3, LB, "{}"));
    world.settle(0);
    // A lower address comes free, and a replica restarts on a list from before the status was written.
    world.delete_service("first");
    world.settle(0);
    world.now = world.now.checked_add(std::time::Duration::from_secs(61)).unwrap();
    world.settle(0);
    let mut stale = world.services[&ServiceKey::new("default", "x")].clone();
    stale.service.ingress.clear();
    stale.service.annotations.allocated_from_pool = None;
    stale.conditions.clear();
    stale.service.resource_version = "1".into();
    world.replicas[0].index.services.replaced(vec![stale]);
    world.turn(0, usize::MAX);
    world.settle(0);
    assert_eq!(world.shown("x"), ["1.0.0.1"]);
    assert_eq!(world.claims.len(), 1);
}

#[test]
fn conditions_tell_who_announces() {
    let mut world = World::new(1);
    world.put_pool(pool("a", 1, "addresses: [1.0.0.0/24]"));
    world.put_service(service("x", 3, LB, "{}"));
    let since = |second| vec![("1.0.0.0".parse().unwrap(), "eth0".into(), Timestamp::from_second(second).unwrap())];
    let node = |name: &str, announcements| super::super::index::NodeObject {
        node: name.into(),
        resource_version: "1".into(),
        announcements,
        troubles: BTreeSet::new(),
    };
    world.replicas[0].index.nodes.replaced(vec![node("n1", since(0)), node("n2", Vec::new())]);
    world.settle(0);
    let message = |world: &World| {
        let object = &world.services[&ServiceKey::new("default", "x")];
        let condition = object.conditions.iter().find(|condition| condition.type_ == conditions::ANNOUNCED).unwrap();
        (condition.status.clone(), condition.message.clone())
    };
    let expected = "1.0.0.0 is announced by node n1 on eth0 since 1970-01-01T00:00:00Z";
    assert_eq!(message(&world), ("True".into(), expected.into()));
    // The first node dies and says nothing any more; another takes over.
    world.replicas[0].index.nodes.replaced(vec![node("n1", since(0)), node("n2", since(9))]);
    world.settle(0);
    assert_eq!(message(&world).1, "1.0.0.0 is announced by node n2 on eth0 since 1970-01-01T00:00:09Z");
    world.replicas[0].index.nodes.replaced(vec![node("n2", Vec::new())]);
    world.settle(0);
    assert_eq!(message(&world), ("False".into(), "1.0.0.0 is announced by no node".into()));
}

/// What a replica's plan reports, as words of the events.
fn events(world: &World) -> Vec<(&'static str, String)> {
    let steps = world.plan(0).tasks.into_iter().flat_map(|task| task.steps);
    let reports = steps.filter_map(|step| if let Step::Report(report) = step { Some(report) } else { None });
    reports.map(|report| (report.reason, report.message)).collect()
}

#[test]
fn what_nodes_cannot_program_is_one_condition_and_one_event_on_any_service() {
    let mut world = World::new(1);
    world.put_pool(pool("a", 1, "addresses: [1.0.0.0/24]"));
    world.put_service(service("balanced", 3, LB, "{}"));
    world.put_service(service(
        "internal",
        4,
        "{type: ClusterIP, clusterIP: 172.30.0.7, clusterIPs: [172.30.0.7]}",
        "{}",
    ));
    let node = |name: &str, troubled: &[&str]| super::super::index::NodeObject {
        node: name.into(),
        resource_version: "1".into(),
        announcements: Vec::new(),
        troubles: troubled
            .iter()
            .map(|service| super::super::index::Trouble {
                service: ServiceKey::new("default", *service),
                reason: "RefusedByKernel".into(),
                message: "no".into(),
            })
            .collect(),
    };
    let told = |world: &World, name: &str| {
        let conditions = &world.services[&ServiceKey::new("default", name)].conditions;
        let condition = conditions.iter().find(|condition| condition.type_ == conditions::PROGRAMMED);
        condition.map(|condition| (condition.status.clone(), condition.reason.clone(), condition.message.clone()))
    };
    world.replicas[0].index.nodes.replaced(vec![node("n1", &[])]);
    world.settle(0);
    assert_eq!((told(&world, "balanced"), told(&world, "internal")), (None, None));

    let both = ["balanced", "internal", "gone"];
    world.replicas[0].index.nodes.replaced(vec![node("n1", &both)]);
    let expected = ("NotProgrammed", "RefusedByKernel: on n1: no".to_owned());
    assert_eq!(events(&world), [expected.clone(), expected]);
    world.settle(0);
    let on_one = Some(("False".to_owned(), "RefusedByKernel".to_owned(), "on n1: no".to_owned()));
    assert_eq!((told(&world, "balanced"), told(&world, "internal")), (on_one.clone(), on_one));

    // Another node is another message, and no event.
    world.replicas[0].index.nodes.replaced(vec![node("n1", &both), node("n2", &both)]);
    assert_eq!(events(&world), []);
    world.settle(0);
    assert_eq!(told(&world, "internal").unwrap().2, "on n1, n2: no");

    world.replicas[0].index.nodes.replaced(vec![node("n1", &[]), node("n2", &[])]);
    assert_eq!(events(&world).iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), ["Programmed", "Programmed"]);
    world.settle(0);
    assert_eq!((told(&world, "balanced"), told(&world, "internal")), (None, None));
    assert_eq!(world.shown("balanced"), ["1.0.0.0"]);
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Op {
    /// A user writes a Service: automatic, an address, a pool, or another type.
    Write(usize, usize),
    Delete(usize),
    /// A user writes a pool.
    Pool(usize, usize),
    /// Some events arrive at a replica.
    Deliver(usize, usize),
    /// A replica works, and is stopped after some writes.
    Turn(usize, usize),
    /// A replica restarts.
    Restart(usize),
    /// Time passes, in seconds.
    Wait(u64),
}

const NAMES: [&str; 4] = ["w", "x", "y", "z"];
const REQUESTS: [(&str, &str); 6] = [
    (LB, "{}"),
    (LB, "{}"),
    (LB, "{steelyard.dev/loadBalancerIPs: 1.0.0.2}"),
    (LB, "{steelyard.dev/address-pool: b}"),
    (LB, "{steelyard.dev/loadBalancerIPs: 7.7.7.7}"),
    (CLUSTER_IP, "{}"),
];
const POOLS: [(&str, &str); 5] = [
    ("a", "{addresses: [1.0.0.0/30], cooldown: 10s}"),
    ("a", "{addresses: [1.0.0.0/29], cooldown: 10s}"),
    ("a", "{addresses: [1.0.0.2/31], cooldown: 10s}"),
    ("b", "{addresses: [1.0.0.4/30], cooldown: 10s, autoAssign: false}"),
    ("b", "{addresses: [2.0.0.0/30], cooldown: 0s}"),
];

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..NAMES.len(), 0..REQUESTS.len()).prop_map(|(name, request)| Op::Write(name, request)),
        1 => (0..NAMES.len()).prop_map(Op::Delete),
        1 => (0..POOLS.len(), 0..2usize).prop_map(|(spec, age)| Op::Pool(spec, age)),
        3 => (0..2usize, 1..6usize).prop_map(|(replica, count)| Op::Deliver(replica, count)),
        6 => (0..2usize, 0..8usize).prop_map(|(replica, stop)| Op::Turn(replica, stop)),
        1 => (0..2usize).prop_map(Op::Restart),
        1 => (1..30u64).prop_map(Op::Wait),
    ]
}

fn run(world: &mut World, op: &Op) {
    match *op {
        Op::Write(name, request) => change(world, NAMES[name], REQUESTS[request].0, REQUESTS[request].1),
        Op::Delete(name) => world.delete_service(NAMES[name]),
        Op::Pool(spec, age) => {
            let (name, spec) = POOLS[spec];
            let mut object = pool(name, i64::try_from(age).unwrap(), spec);
            if let Some(old) = world.pools.get(&PoolName::from(name)) {
                object = PoolObject { spec: object.spec, generation: old.generation + 1, ..old.clone() };
            }
            world.put_pool(object);
        }
        Op::Deliver(replica, count) => world.deliver(replica, count),
        Op::Turn(replica, stop) => {
            world.turn(replica, stop);
        }
        Op::Restart(replica) => world.replicas[replica] = world.listed(),
        Op::Wait(seconds) => world.now = world.now.checked_add(std::time::Duration::from_secs(seconds)).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Two replicas that both believe to lead, late events, restarts and deaths between two writes: an address never has
    /// two holders, and no Service ever shows what it does not hold (checked after every write). Once it is quiet, either
    /// replica finds nothing to do, and every Service has an address or a reason.
    #[test]
    fn no_history_gives_an_address_to_two(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new(2);
        run(&mut world, &Op::Pool(0, 0));
        for op in &ops {
            run(&mut world, op);
        }
        world.settle(0);
        world.settle(1);
        world.settle(0);
        for (key, object) in &world.services {
            let is_served = object.service.service_type == ServiceType::LoadBalancer;
            prop_assert!(!is_served || !object.service.ingress.is_empty() || !world.reason(&key.name).is_empty());
            prop_assert!(is_served || object.service.ingress.is_empty());
        }
        let held = world.claims.values().filter(|claim| !claim.tenure.holders.is_empty()).count();
        let shown: usize = world.services.values().map(|object| object.service.ingress.len()).sum();
        prop_assert_eq!(held, shown);
    }

    /// Whatever happens to others, to pools that still have its address, and to replicas: who asks for nothing new keeps
    /// its address.
    #[test]
    fn who_asks_for_nothing_new_keeps_its_address(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new(2);
        run(&mut world, &Op::Pool(2, 0));
        world.put_service(service("still", 7, LB, "{}"));
        world.settle(0);
        prop_assert_eq!(world.shown("still"), ["1.0.0.2"]);
        for op in &ops {
            run(&mut world, op);
            prop_assert_eq!(world.shown("still"), ["1.0.0.2"], "after {:?}", op);
        }
        world.settle(1);
        prop_assert_eq!(world.shown("still"), ["1.0.0.2"]);
    }

    /// The order in which a replica hears of things does not matter, as long as it has heard of all.
    #[test]
    fn the_order_of_events_does_not_matter(
        requests in prop::collection::vec(0..REQUESTS.len(), NAMES.len()),
        order in Just((0..NAMES.len() + 2).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let outcome = |order: &[usize]| {
            let mut world = World::new(1);
            for position in order {
                match NAMES.get(*position) {
                    Some(name) => {
                        let (spec, annotations) = REQUESTS[requests[*position]];
                        world.put_service(service(name, 3, spec, annotations));
                    }
                    None => run(&mut world, &Op::Pool(if *position == NAMES.len() { 0 } else { 3 }, 0)),
                }
            }
            world.settle(0);
            NAMES.map(|name| (world.shown(name), world.reason(name)))
        };
        let sorted: Vec<usize> = (0..NAMES.len() + 2).collect();
        prop_assert_eq!(outcome(&order), outcome(&sorted));
    }
}
