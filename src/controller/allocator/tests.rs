//! The tables of MetalLB's cases, with our differences noted, and what must hold of any pass.

use proptest::prelude::*;

use super::super::index::testing::{pool, service};
use super::super::index::{PoolObject, ServiceObject};
use super::*;

const V4: &str = "{type: LoadBalancer, clusterIPs: [10.0.0.1]}";
const V6: &str = "{type: LoadBalancer, clusterIPs: ['fd00::1']}";
const PREFER: &str = "{type: LoadBalancer, ipFamilyPolicy: PreferDualStack, clusterIPs: [10.0.0.1, 'fd00::1']}";
const REQUIRE: &str = "{type: LoadBalancer, ipFamilyPolicy: RequireDualStack, clusterIPs: [10.0.0.1, 'fd00::1']}";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A pass over pools that can be asked one Service after another, which then hold what they got.
struct Pass {
    pools: Vec<PoolObject>,
    taken: BTreeMap<IpAddr, Taken>,
    namespaces: Vec<(&'static str, Labels)>,
}

impl Pass {
    fn new(pools: &[(&str, &str)]) -> Self {
        let pools = pools.iter().zip(1..).map(|((name, spec), age)| pool(name, age, spec)).collect();
        Self { pools, taken: BTreeMap::new(), namespaces: Vec::new() }
    }

    fn ask(&mut self, object: &ServiceObject, held: &[&str]) -> Award {
        let pools = Pools::judge(&self.pools);
        let namespaces = self.namespaces.iter().map(|(name, labels)| (*name, labels));
        let mut allocator = Allocator::new(&pools, namespaces, self.taken.clone());
        let award = allocator.award(&Applicant {
            service: &object.service,
            request: Request::of(&object.service),
            held: held.iter().map(|text| ip(text)).collect(),
            returning: Vec::new(),
        });
        self.taken = allocator.taken;
        award
    }

    /// Asks for a new Service of this spec; gives its addresses, or the reason for none.
    fn get(&mut self, spec: &str, annotations: &str) -> Result<Vec<IpAddr>, &'static str> {
        let award = self.ask(&service("new", 1, spec, annotations), &[]);
        match award.refusal {
            Some(refusal) if award.grants.is_empty() => Err(refusal.reason()),
            _ => Ok(award.grants.into_values().map(|grant| grant.address).collect()),
        }
    }
}

fn ask_for(address: &str) -> String {
    format!("{{steelyard.dev/loadBalancerIPs: '{address}'}}")
}

#[test]
fn requested_addresses_are_given_or_refused_by_name_of_the_rule() {
    // MetalLB A5, A14 to A18; A15 differs: two families may come from two pools.
    let mut pass = Pass::new(&[
        ("test", "addresses: [1.2.3.4/31, '1000::4/127']"),
        ("test2", "{addresses: [1.2.4.0/24, '1000::4:0/120'], avoidBuggyIPs: true}"),
        ("test3", "{addresses: [1.2.5.0/24], serviceAllocation: {namespaces: [test-ns1]}}"),
        ("test4", "{addresses: [1.2.6.0/24], serviceAllocation: {serviceSelectors: [{matchLabels: {team: metallb}}]}}"),
        ("test5", "{addresses: [1.2.7.0/24], autoAssign: false, serviceAllocation: {namespaces: [default]}}"),
        ("test6", "{addresses: [1.2.8.0/24], reservations: [{address: 1.2.8.1, namespace: default, name: other}]}"),
    ]);
    for (spec, address, expected) in [
        (V4, "1.2.4.0", Err("AddressNotAllowed")),
        (V4, "1.2.4.255", Err("AddressNotAllowed")),
        (V4, "1.2.4.254", Ok(vec![ip("1.2.4.254")])),
        (V4, "1.2.4.254", Err("AddressInUse")),
        (V4, "9.9.9.9", Err("AddressOutsidePools")),
        (V4, "1.2.5.10", Err("AddressNotAllowed")),
        (V4, "1.2.6.10", Err("AddressNotAllowed")),
        (V4, "1.2.7.10", Ok(vec![ip("1.2.7.10")])),
        (V4, "1.2.8.1", Err("AddressNotAllowed")),
        (V4, "1000::4", Err("InvalidRequest")),
        (V6, "1000::4", Ok(vec![ip("1000::4")])),
        (REQUIRE, "1.2.3.4,1000::5", Ok(vec![ip("1.2.3.4"), ip("1000::5")])),
        (REQUIRE, "1.2.3.5,1000::4:7", Ok(vec![ip("1.2.3.5"), ip("1000::4:7")])),
        (PREFER, "1.2.4.9,1000::5", Err("AddressInUse")),
    ] {
        assert_eq!(pass.get(spec, &ask_for(address)), expected, "{address}");
    }
}

#[test]
fn a_requested_pool_is_the_only_one_asked() {
    // MetalLB B1, B5, B8.
    let mut pass =
        Pass::new(&[("a", "addresses: [1.2.3.4/31]"), ("b", "{addresses: [1.2.4.4/31], autoAssign: false}")]);
    let from = |pool: &str| format!("{{steelyard.dev/address-pool: {pool}}}");
    assert_eq!(pass.get(V4, &from("b")), Ok(vec![ip("1.2.4.4")]));
    assert_eq!(pass.get(V4, &from("b")), Ok(vec![ip("1.2.4.5")]));
    assert_eq!(pass.get(V4, &from("b")), Err("PoolsExhausted"));
    assert_eq!(pass.get(V6, &from("b")), Err("NoPoolFits"));
    assert_eq!(pass.get(V4, &from("c")), Err("UnknownPool"));
    let both = "{steelyard.dev/address-pool: a, steelyard.dev/loadBalancerIPs: 1.2.4.4}";
    assert_eq!(pass.get(V4, both), Err("InvalidRequest"));
}

#[test]
fn automatic_addresses_skip_what_is_on_request_or_buggy() {
    // MetalLB C2, C3.
    let mut pass =
        Pass::new(&[("a", "{addresses: [1.2.3.4/31], autoAssign: false}"), ("b", "addresses: [1.2.3.10/31]")]);
    assert_eq!(pass.get(V4, "{}"), Ok(vec![ip("1.2.3.10")]));
    assert_eq!(pass.get(V4, "{}"), Ok(vec![ip("1.2.3.11")]));
    assert_eq!(pass.get(V4, "{}"), Err("PoolsExhausted"));
    let mut pass = Pass::new(&[
        ("a", "addresses: [1.2.3.0/31, 1.2.3.254/31]"),
        ("b", "{addresses: [1.2.4.0/31, 1.2.4.254/31], avoidBuggyIPs: true}"),
    ]);
    let given: Vec<_> = (0..6).map(|_| pass.get(V4, "{}").unwrap()[0].to_string()).collect();
    assert_eq!(given, ["1.2.3.0", "1.2.3.1", "1.2.3.254", "1.2.3.255", "1.2.4.1", "1.2.4.254"]);
    assert_eq!(pass.get(V4, "{}"), Err("PoolsExhausted"));
}

#[test]
fn pools_are_asked_by_restriction_then_priority_then_name() {
    let mut pass = Pass::new(&[
        ("a", "addresses: [1.0.0.1-1.0.0.1]"),
        ("b", "{addresses: [2.0.0.1-2.0.0.1], serviceAllocation: {namespaces: [default]}}"),
        ("c", "{addresses: [3.0.0.1-3.0.0.1], serviceAllocation: {priority: 9, namespaces: [default]}}"),
        (
            "d",
            "{addresses: [4.0.0.1-4.0.0.1], serviceAllocation: {priority: 3, namespaceSelectors: [{matchLabels: {x: y}}]}}",
        ),
        ("e", "{addresses: [5.0.0.1-5.0.0.1], serviceAllocation: {namespaces: [elsewhere]}}"),
    ]);
    pass.namespaces = vec![("default", [("x".to_owned(), "y".to_owned())].into())];
    let given: Vec<_> = (0..4).map(|_| pass.get(V4, "{}").unwrap()[0].to_string()).collect();
    assert_eq!(given, ["4.0.0.1", "3.0.0.1", "2.0.0.1", "1.0.0.1"]);
    let refused = pass.ask(&service("last", 1, V4, "{}"), &[]).refusal.unwrap().to_string();
    assert_eq!(
        refused,
        "no pool gives an IPv4 address: pool d has no free address; pool c has no free address; pool b has no free \
         address; pool a has no free address; pool e does not admit the namespace"
    );
}

#[test]
fn two_families_come_from_one_pool_where_one_has_both() {
    let mut pass = Pass::new(&[
        ("a", "addresses: [1.0.0.1-1.0.0.2]"),
        ("b", "addresses: [2.0.0.1-2.0.0.1, '2::1-2::1']"),
        ("c", "addresses: ['3::1-3::2']"),
    ]);
    assert_eq!(pass.get(REQUIRE, "{}"), Ok(vec![ip("2.0.0.1"), ip("2::1")]));
    assert_eq!(pass.get(REQUIRE, "{}"), Ok(vec![ip("1.0.0.1"), ip("3::1")]));
    assert_eq!(pass.get(V6, "{}"), Ok(vec![ip("3::2")]));
    assert_eq!(pass.get(REQUIRE, "{}"), Err("PoolsExhausted"));
    assert_eq!(pass.get(PREFER, "{}"), Ok(vec![ip("1.0.0.2")]));
    assert_eq!(pass.get(PREFER, "{}"), Err("PoolsExhausted"));
}

#[test]
fn a_service_that_prefers_two_families_gets_the_second_when_there_is_one() {
    let mut pass = Pass::new(&[("a", "addresses: [1.0.0.0/24]"), ("b", "addresses: ['1::/120']")]);
    pass.taken.insert(ip("1.0.0.9"), Taken::Held);
    let award = pass.ask(&service("x", 1, PREFER, "{}"), &["1.0.0.9"]);
    let addresses: Vec<_> = award.grants.values().map(|grant| grant.address).collect();
    assert_eq!((addresses, award.refusal), (vec![ip("1.0.0.9"), ip("1::")], None));
}

#[test]
fn a_holder_keeps_what_it_holds_until_it_can_have_what_it_asks_for() {
    let pools = [("a", "addresses: [1.0.0.0/30]"), ("b", "{addresses: [2.0.0.0/30], autoAssign: false}")];
    for (annotations, expected, refused) in [
        ("{}", "1.0.0.2", None),
        ("{steelyard.dev/address-pool: b}", "2.0.0.0", None),
        ("{steelyard.dev/address-pool: c}", "1.0.0.2", Some("UnknownPool")),
        ("{steelyard.dev/loadBalancerIPs: 2.0.0.3}", "2.0.0.3", None),
        ("{steelyard.dev/loadBalancerIPs: 3.0.0.3}", "1.0.0.2", Some("AddressOutsidePools")),
        ("{steelyard.dev/loadBalancerIPs: 1.0.0.1}", "1.0.0.1", None),
        ("{steelyard.dev/loadBalancerIPs: 1.0.0.0}", "1.0.0.2", Some("AddressInUse")),
        ("{steelyard.dev/loadBalancerIPs: nonsense}", "1.0.0.2", Some("InvalidRequest")),
    ] {
        let mut pass = Pass::new(&pools);
        pass.taken.insert(ip("1.0.0.0"), Taken::Held);
        pass.taken.insert(ip("1.0.0.2"), Taken::Held);
        let award = pass.ask(&service("x", 1, V4, annotations), &["1.0.0.2"]);
        let addresses: Vec<_> = award.grants.values().map(|grant| grant.address).collect();
        assert_eq!(addresses, [ip(expected)], "{annotations}");
        assert_eq!(award.refusal.map(|refusal| refusal.reason()), refused, "{annotations}");
        assert_eq!(award.is_kept_against_rules, refused.is_some(), "{annotations}");
    }
}

#[test]
fn a_change_of_pools_evicts_only_whom_it_must_and_only_to_a_free_address() {
    // MetalLB D1 to D7; where MetalLB leaves a Service with nothing, it keeps its address until there is another.
    let holders = |pools: &[(&str, &str)]| {
        let mut pass = Pass::new(pools);
        pass.taken.insert(ip("1.2.3.0"), Taken::Held);
        pass.taken.insert(ip("1000::"), Taken::Held);
        let mut one = |spec, held: &str| {
            let award = pass.ask(&service("x", 1, spec, "{}"), &[held]);
            let grant = award.grants.into_values().next().unwrap();
            (grant.address.to_string(), grant.pool.map(|pool| pool.to_string()).unwrap_or_default())
        };
        let ((v4, pool4), (v6, pool6)) = (one(V4, "1.2.3.0"), one(V6, "1000::"));
        format!("{v4} {pool4} / {v6} {pool6}")
    };
    for (pools, expected) in [
        (&[("test", "addresses: [1.2.3.0/24, '1000::/120']")][..], "1.2.3.0 test / 1000:: test"),
        (&[("test", "addresses: [1.2.3.2/31, '1000::/126']")][..], "1.2.3.2 test / 1000:: test"),
        (&[("test", "addresses: [1.2.3.0/30, '1000::2/127']")][..], "1.2.3.0 test / 1000::2 test"),
        (&[("test2", "addresses: [1.2.3.0/30, '1000::/126']")][..], "1.2.3.0 test2 / 1000:: test2"),
        (
            &[("a", "addresses: [1.2.3.0/31, '1000::2/127']"), ("b", "addresses: [1.2.3.2/31, '1000::/127']")][..],
            "1.2.3.0 a / 1000:: b",
        ),
        (&[("test", "{addresses: [1.2.3.0/31, '1000::/126'], avoidBuggyIPs: true}")][..], "1.2.3.1 test / 1000:: test"),
        (&[("test", "{addresses: [1.2.3.0/30, '1000::/126'], autoAssign: false}")][..], "1.2.3.0 test / 1000:: test"),
        (&[("test", "addresses: [4.0.0.0/30]")][..], "4.0.0.0 test / 1000:: "),
        (&[][..], "1.2.3.0  / 1000:: "),
    ] {
        assert_eq!(holders(pools), expected, "{pools:?}");
    }
}

#[test]
fn what_a_status_shows_without_a_claim_is_taken_up_again() {
    let mut pass = Pass::new(&[("a", "addresses: [1.0.0.0/24]")]);
    let mut object = service("x", 1, V4, "{}");
    object.service.ingress = vec![crate::model::service::Ingress { address: ip("1.0.0.77"), is_proxied: false }];
    assert_eq!(pass.ask(&object, &[]).grants[&Family::V4].address, ip("1.0.0.77"));
    assert_eq!(pass.ask(&object, &[]).grants[&Family::V4].address, ip("1.0.0.0"));
}

#[test]
fn a_resting_address_waits_for_its_last_holder() {
    let mut pass = Pass::new(&[("a", "{addresses: [1.0.0.1-1.0.0.2], reservations: []}")]);
    let until = Timestamp::from_second(100).unwrap();
    let last_holder = Some(ServiceKey::new("default", "x"));
    pass.taken.insert(ip("1.0.0.1"), Taken::Resting { until, last_holder });
    assert_eq!(pass.get(V4, &ask_for("1.0.0.1")), Err("AddressResting"));
    assert_eq!(pass.get(V4, "{}"), Ok(vec![ip("1.0.0.2")]));
    assert_eq!(pass.get(V4, "{}"), Err("PoolsExhausted"));
    let award = pass.ask(&service("x", 1, V4, &ask_for("1.0.0.1")), &[]);
    assert_eq!(award.grants[&Family::V4].address, ip("1.0.0.1"));
}

#[test]
fn a_kept_address_goes_to_the_service_it_is_kept_for() {
    let mut pass = Pass::new(&[
        ("a", "addresses: [1.0.0.0/24]"),
        (
            "b",
            "{addresses: [2.0.0.0/24], autoAssign: false, reservations: [{address: 2.0.0.9, namespace: default, name: x}]}",
        ),
    ]);
    assert_eq!(pass.ask(&service("x", 1, V4, "{}"), &[]).grants[&Family::V4].address, ip("2.0.0.9"));
    assert_eq!(pass.ask(&service("y", 1, V4, "{}"), &[]).grants[&Family::V4].address, ip("1.0.0.0"));
}

#[test]
fn a_large_pool_costs_as_little_as_a_small_one() {
    // 20,000 Services from a /8 and a /64: with a scan from the start for each this would take minutes.
    let objects = [pool("a", 1, "addresses: [10.0.0.0/8, 'fd00::/64']")];
    let pools = Pools::judge(&objects);
    let mut allocator = Allocator::new(&pools, [], []);
    let object = service("x", 1, REQUIRE, "{}");
    let applicant = Applicant {
        service: &object.service,
        request: Request::of(&object.service),
        held: Vec::new(),
        returning: Vec::new(),
    };
    for _ in 0..20_000 {
        assert_eq!(allocator.award(&applicant).grants.len(), 2);
    }
    assert_eq!(allocator.award(&applicant).grants[&Family::V4].address, ip("10.0.78.32"));
}

proptest! {
    #[test]
    fn no_address_is_given_twice_and_none_from_outside(
        specs in prop::collection::vec((prop::sample::select(vec![V4, V6, PREFER, REQUIRE]), 0u8..12), 1..12),
        held in prop::collection::btree_set(0u8..8, 0..8),
    ) {
        let mut pass = Pass::new(&[
            ("a", "addresses: [1.0.0.0/30, '1::/127']"),
            ("b", "{addresses: [1.0.0.4/30, '1::4/126'], avoidBuggyIPs: true, exclude: [1.0.0.6]}"),
        ]);
        for last in &held {
            pass.taken.insert(ip(&format!("1.0.0.{last}")), Taken::Held);
        }
        let mut given = pass.taken.clone();
        for (spec, asks) in specs {
            let annotations = if asks < 8 && spec == V4 { ask_for(&format!("1.0.0.{asks}")) } else { "{}".to_owned() };
            let award = pass.ask(&service("x", 1, spec, &annotations), &[]);
            prop_assert!(award.refusal.is_some() || !award.grants.is_empty());
            for grant in award.grants.values() {
                prop_assert!(given.insert(grant.address, Taken::Held).is_none(), "{} given twice", grant.address);
                prop_assert_ne!(grant.address, ip("1.0.0.6"));
            }
        }
    }
}
