//! Properties of the plan, against a model of the kernel that knows only sets of elements.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::datapath::entry::{Frontend, Target, Treatment};
use crate::datapath::nft::compose::test::key;
use crate::datapath::nft::elements::SharedKey;
use crate::datapath::nft::ids::FrontendValue;
use crate::datapath::nft::layout::SIZED;
use crate::model::flat::FlatMap;
use crate::model::service::TrafficPolicy;

type Entries = BTreeMap<EntryKey, ForwardingEntry>;

/// What the kernel has of the IPv4 table: fails where the kernel would.
#[derive(Default)]
struct Kernel {
    elements: BTreeSet<Element>,
    classes: BTreeMap<Class, Purpose>,
    sizes: Sizes,
    /// A client for every endpoint that one may be led to, as far as nobody has it forget that.
    memory: BTreeSet<(Sticky, SocketAddr)>,
}

impl Kernel {
    fn commit(&mut self, transaction: &Transaction) {
        for table in transaction.tables.iter().filter(|table| table.family == Family::V4) {
            if table.is_new {
                *self = Self { sizes: table.sizes, ..Self::default() };
            }
            if let Some(Growth { classes, .. }) = &table.growth {
                assert_eq!(
                    classes.iter().map(|(purpose, class)| (*class, *purpose)).collect::<BTreeMap<_, _>>(),
                    self.classes
                );
            }
            for (purpose, class) in &table.new_classes {
                assert_eq!(self.classes.insert(*class, *purpose), None);
            }
            for element in &table.deleted {
                assert!(self.elements.remove(element), "{element:?} is not there");
            }
            for element in &table.added {
                assert!(self.elements.insert(*element), "{element:?} is there already");
            }
            assert!(table.deleted.is_sorted() && table.added.is_sorted());
            for (map, elements) in table.growth.iter().flat_map(|growth| &growth.maps) {
                assert!(
                    elements.iter().eq(self.elements.iter().filter(|element| element.set() == *map)),
                    "all of {map}"
                );
                assert!(self.sizes.of(map) < table.sizes.of(map), "{map} is no larger");
            }
            if table.growth.is_some() {
                self.sizes = table.sizes;
            }
            for map in SIZED {
                assert_eq!(self.sizes.of(map), table.sizes.of(map), "{map}");
                let count = self.elements.iter().filter(|element| element.set() == map).count();
                assert!(count <= self.sizes.of(map) as usize, "no room in {map}");
            }
            if table.kept.is_less {
                let kept = &table.kept.endpoints;
                self.memory.retain(|(whose, to)| kept.get(whose).is_none_or(|kept| kept.contains(to)));
            }
        }
        self.check_memory();
        let keys: BTreeSet<_> = self.elements.iter().filter_map(Element::shared_key).collect();
        let shared = self.elements.iter().filter(|element| element.shared_key().is_some()).count();
        assert_eq!(keys.len(), shared, "two elements with one key");
    }

    /// Nothing is remembered that may not be, and the other policy's memory is of its own endpoints.
    fn check_memory(&mut self) {
        let sticky: BTreeSet<(Sticky, SocketAddr)> = self
            .elements
            .iter()
            .filter_map(|element| {
                let Element::Endpoint { id, memory, to, .. } = *element else { return None };
                Some((Sticky::new(id, memory?), to))
            })
            .collect();
        assert!(self.memory.is_subset(&sticky), "remembered and gone");
        for element in &self.elements {
            if let Element::Twin { id, memory, to, other } = *element {
                assert!(id != other && sticky.contains(&(Sticky::new(id, memory), to)), "a twin of nobody");
                assert!(sticky.contains(&(Sticky::new(other, memory), to)), "a twin that may not go there");
            }
        }
        self.memory = sticky;
    }

    /// Where a frontend leads.
    fn resolve(&self, frontend: Frontend) -> Option<Target> {
        let wanted = SharedKey::of(frontend, key("any").port.protocol);
        let found = self.elements.iter().find(|element| element.shared_key() == Some(wanted))?;
        let value = found.frontend_value()?;
        Some(self.target(value))
    }

    fn target(&self, value: FrontendValue) -> Target {
        let class = self.elements.iter().find_map(|element| {
            if let Element::Service { id, class } = *element { (id == value.id()).then_some(class) } else { None }
        });
        let slots = match class.expect("an id without a class") {
            Class::REJECT => return Target::Reject,
            Class::DROP => return Target::Drop,
            class => self.classes[&class],
        };
        let Purpose::Slots { slots, memory } = slots else { panic!("a class without slots") };
        let endpoints: BTreeMap<u32, SocketAddr> = self
            .elements
            .iter()
            .filter_map(|element| {
                if let Element::Endpoint { id, slot, to, memory: remembered } = *element {
                    assert!(id != value.id() || remembered == memory.map(|memory| memory.class));
                    (id == value.id()).then_some((slot, to))
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(endpoints.keys().copied().collect::<Vec<_>>(), (0..slots).collect::<Vec<_>>(), "slots with a gap");
        Target::Endpoints(endpoints.into_values().collect())
    }
}

/// All that is believed of the IPv4 table and matters.
fn facts(belief: &Belief) -> String {
    let TableBelief { exists, ids, classes, entries, claims, node, rooms, .. } = &belief.v4;
    let ids: Vec<_> = ids.keys().map(|key| (key, ids.all_of(key))).collect();
    format!("{exists} {ids:?} {classes:?} {entries:?} {claims:?} {node:?} {rooms:?}")
}

/// An IPv4 table without chains, as it is read back.
fn found(elements: Vec<Element>) -> Found {
    Found { family: Family::V4, classes: Vec::new(), sizes: Sizes::default(), elements }
}

fn targets() -> impl Strategy<Value = Target> {
    prop_oneof![
        1 => Just(Target::Reject),
        1 => Just(Target::Drop),
        6 => proptest::collection::btree_set((1u8..9, 80u16..82), 1..6).prop_map(|set| {
            Target::Endpoints(set.into_iter().map(|(host, port)| SocketAddr::from(([10, 0, 0, host], port))).collect())
        }),
    ]
}

fn treatments() -> impl Strategy<Value = Treatment> {
    let policies = || prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    prop_oneof![
        policies().prop_map(Treatment::Internal),
        (policies(), any::<bool>()).prop_map(|(policy, is_filtered)| Treatment::External { policy, is_filtered }),
    ]
}

/// Few addresses and ports, so that entries get into each other's way.
fn frontends() -> impl Strategy<Value = FlatMap<Frontend, Treatment>> {
    let frontend = prop_oneof![
        (0u8..6).prop_map(|host| Frontend::Address(SocketAddr::from(([192, 0, 2, host], 80)))),
        (1u16..4).prop_map(|port| Frontend::NodePort(NonZeroU16::new(port).unwrap())),
    ];
    proptest::collection::btree_map(frontend, treatments(), 0..4).prop_map(FlatMap::from_iter)
}

fn entries() -> impl Strategy<Value = ForwardingEntry> {
    let hosts = proptest::collection::btree_set(0u8..4, 0..3);
    let timeout = proptest::option::of(proptest::sample::select(vec![2u64, 10_800]));
    (frontends(), targets(), targets(), hosts, timeout).prop_map(|(frontends, cluster, local, hosts, timeout)| {
        ForwardingEntry {
            frontends,
            cluster,
            local,
            affinity: timeout.map(Duration::from_secs),
            source_ranges: vec!["203.0.113.0/24".parse().unwrap()],
            local_addresses: hosts.into_iter().map(|host| [10, 0, 0, host].into()).collect(),
        }
    })
}

proptest! {
    #[test]
    fn following_changes_leads_where_a_fresh_start_leads(
        steps in proptest::collection::vec((0u8..4, proptest::option::of(entries())), 1..12)
    ) {
        let node = NodeForwarding::default();
        let (mut belief, mut kernel, mut state) = (Belief::default(), Kernel::default(), Entries::new());
        for (name, entry) in steps {
            let key = key(&name.to_string());
            match entry {
                Some(entry) => state.insert(key.clone(), entry),
                None => state.remove(&key),
            };
            let scope = Scope::Update(Update { entries: [key].into(), ..Update::default() });
            // A turn that was taken back leaves no trace.
            let before = facts(&belief);
            belief.update(&state, &scope, &node, &BTreeSet::new());
            if belief.undo() {
                prop_assert_eq!(facts(&belief), before);
            } else {
                prop_assert!(kernel.elements.is_empty());
                belief = Belief::default();
            }
            let (transaction, refused) = belief.update(&state, &scope, &node, &BTreeSet::new());
            prop_assert!(refused.is_empty());
            kernel.commit(&transaction);
            // Of those that want a frontend the first has it.
            let mut expected: BTreeMap<Frontend, Target> = BTreeMap::new();
            for entry in state.values() {
                for (frontend, treatment) in &entry.frontends {
                    let target = match *treatment {
                        Treatment::Internal(TrafficPolicy::Cluster)
                        | Treatment::External { policy: TrafficPolicy::Cluster, .. } => &entry.cluster,
                        Treatment::Internal(TrafficPolicy::Local)
                        | Treatment::External { policy: TrafficPolicy::Local, .. } => &entry.local,
                    };
                    expected.entry(*frontend).or_insert_with(|| target.clone());
                }
            }
            for (frontend, target) in &expected {
                prop_assert_eq!(kernel.resolve(*frontend), Some(target.clone()));
            }
            let count = kernel.elements.iter().filter(|element| {
                matches!(element, Element::Frontend { .. } | Element::NodePort { .. })
            }).count();
            prop_assert_eq!(count, expected.len());
            let (again, _) = belief.update(&state, &Scope::All, &node, &BTreeSet::new());
            prop_assert!(again.is_empty(), "planning twice changes nothing: {:?}", again);
        }
        // A restart finds nothing to do.
        let mut restarted = Belief::default();
        let found = Found {
            family: Family::V4,
            classes: kernel.classes.iter().map(|(class, purpose)| (*purpose, *class)).collect(),
            sizes: kernel.sizes,
            elements: kernel.elements.iter().rev().copied().collect(),
        };
        restarted.adopt(found, &state);
        let (transaction, _) = restarted.update(&state, &Scope::All, &node, &BTreeSet::new());
        // Of an entry that has no frontend of its own left, nobody can tell whose the rest is.
        let is_contested = state.values().map(|entry| entry.frontends.len()).sum::<usize>()
            > kernel.elements.iter().filter(|element| matches!(element, Element::Frontend { .. } | Element::NodePort { .. })).count();
        if !is_contested {
            prop_assert!(transaction.tables.iter().all(|table| table.family == Family::V6), "{:?}", transaction);
        }
        // What is there, and only that, is there after a fresh start; slots and ids may differ.
        let (transaction, _) = Belief::default().update(&state, &Scope::All, &node, &BTreeSet::new());
        let mut fresh = Kernel::default();
        fresh.commit(&transaction);
        prop_assert_eq!(fresh.elements.len(), kernel.elements.len());
        let (transaction, _) = belief.update(&Entries::new(), &Scope::All, &node, &BTreeSet::new());
        kernel.commit(&transaction);
        let left: Vec<_> = kernel.elements.iter().filter(|element| !matches!(element, Element::Unmasqueraded(_))).collect();
        prop_assert!(left.is_empty(), "{:?}", left);
    }
}

#[test]
fn what_leads_to_something_is_written_after_it() {
    let state: Entries = [(
        key("a"),
        crate::datapath::nft::compose::test::entry(
            &[("192.0.2.1:80", Treatment::Internal(TrafficPolicy::Cluster))],
            "10.0.0.1:80",
        ),
    )]
    .into();
    let (transaction, _) = Belief::default().update(&state, &Scope::All, &NodeForwarding::default(), &BTreeSet::new());
    let sets: Vec<&str> = transaction.tables[0].added.iter().map(Element::set).collect();
    assert_eq!(sets, ["endpoints", "services", "unmasqueraded", "frontends"]);
}

#[test]
fn an_entry_that_is_skipped_goes_and_its_ids_with_it() {
    let state: Entries = [(
        key("a"),
        crate::datapath::nft::compose::test::entry(
            &[("192.0.2.1:80", Treatment::Internal(TrafficPolicy::Cluster))],
            "reject",
        ),
    )]
    .into();
    let node = NodeForwarding::default();
    let (mut belief, mut kernel) = (Belief::default(), Kernel::default());
    kernel.commit(&belief.update(&state, &Scope::All, &node, &BTreeSet::new()).0);
    kernel.commit(&belief.update(&state, &Scope::All, &node, &[key("a")].into()).0);
    assert_eq!(kernel.elements.iter().map(Element::set).collect::<Vec<_>>(), ["unmasqueraded"]);
}

#[test]
fn a_served_address_that_nobody_has_any_more_is_released() {
    let addresses: BTreeSet<IpAddr> = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|text| text.parse().unwrap()).into();
    let served = NodeForwarding { served: addresses.clone(), ..NodeForwarding::default() };
    let after = NodeForwarding {
        node_addresses: ["192.0.2.2".parse().unwrap()].into(),
        served_elsewhere: ["192.0.2.3".parse().unwrap()].into(),
        ..NodeForwarding::default()
    };
    let released = |transaction: &Transaction| -> Vec<Element> {
        let added = transaction.tables.iter().flat_map(|table| &table.added);
        added.filter(|element| matches!(element, Element::Released(_))).copied().collect()
    };
    let expected = [Element::Released("192.0.2.1".parse().unwrap())];
    let mut belief = Belief::default();
    let nothing = Scope::Keys(BTreeSet::new());
    let (first, _) = belief.update(&Entries::new(), &Scope::All, &served, &BTreeSet::new());
    assert_eq!(released(&first), []);
    let (second, _) = belief.update(&Entries::new(), &nothing, &after, &BTreeSet::new());
    assert_eq!(released(&second), expected);
    // An agent that was not there when it went finds it in the kernel.
    let mut restarted = Belief::default();
    let elements = first.tables.iter().filter(|table| table.family == Family::V4).flat_map(|table| &table.added);
    let found = found(elements.copied().collect());
    restarted.adopt(found, &Entries::new());
    let (third, _) = restarted.update(&Entries::new(), &Scope::All, &after, &BTreeSet::new());
    assert_eq!(released(&third), expected);
}

#[test]
fn a_released_address_that_is_somebodys_again_is_let_through() {
    const NOBODY: [IpAddr; 0] = [];
    let [here, there]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
    let node = |served: &[IpAddr], served_elsewhere: &[IpAddr]| NodeForwarding {
        served: served.iter().copied().collect(),
        served_elsewhere: served_elsewhere.iter().copied().collect(),
        ..NodeForwarding::default()
    };
    let readmitted = |belief: &mut Belief, scope: Scope, node: &NodeForwarding| -> Vec<IpAddr> {
        let (transaction, _) = belief.update(&Entries::new(), &scope, node, &BTreeSet::new());
        transaction.tables.into_iter().flat_map(|table| table.readmitted).collect()
    };
    let changed = || Scope::Update(Update { served: [here, there].into(), ..Update::default() });
    let mut belief = Belief::default();
    assert_eq!(readmitted(&mut belief, Scope::All, &node(&[here, there], &[])), NOBODY);
    assert_eq!(readmitted(&mut belief, changed(), &node(&[], &[])), NOBODY);
    assert_eq!(readmitted(&mut belief, changed(), &node(&[here], &[there])), [here, there]);
    assert!(belief.undo(), "the kernel did not take it");
    assert_eq!(readmitted(&mut belief, Scope::All, &node(&[here], &[there])), [here, there]);
    assert_eq!(readmitted(&mut belief, Scope::All, &node(&[here], &[there])), NOBODY, "once is enough");
    // An agent that was not there when they were released finds them in the kernel, and leaves what is still nobody's.
    let elements = [here, there].map(Element::Released).to_vec();
    belief.adopt(found(elements), &Entries::new());
    let (transaction, _) = belief.update(&Entries::new(), &Scope::All, &node(&[], &[there]), &BTreeSet::new());
    let change = transaction.tables.iter().find(|table| table.family == Family::V4).unwrap();
    assert_eq!((change.readmitted.as_slice(), change.deleted.as_slice()), ([there].as_slice(), [].as_slice()));
}
