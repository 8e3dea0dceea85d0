//! The state machine under tables and under random histories.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
}

fn nodes(count: u8) -> BTreeMap<NodeName, Vec<IpAddr>> {
    (0..count).map(|number| (name(number), vec![address(number)])).collect()
}

fn name(number: u8) -> NodeName {
    NodeName::new(format!("node{number}"))
}

fn start(count: u8) -> (Membership, Instant) {
    let now = Instant::now();
    let mut membership = Membership::new(Timing::default(), name(0), 1, now);
    membership.set_nodes(&nodes(count));
    (membership, now)
}

fn beat(number: u8, epoch: u64, sequence: u64, status: Status) -> Heartbeat {
    Heartbeat { node: name(number), epoch, sequence, status }
}

fn life(membership: &Membership, number: u8, now: Instant) -> Life {
    membership.members(now).nodes[&name(number)]
}

/// Ticks as a process that runs does: whenever it asked to.
fn run_until(membership: &mut Membership, end: Instant) {
    while membership.next_wake() <= end {
        let now = membership.next_wake();
        membership.tick(now);
    }
}

#[test]
fn a_silent_node_is_dead_after_the_timeout_and_not_before() {
    let (mut membership, start) = start(2);
    membership.receive(&beat(1, 1, 1, Status::Serving), address(1), start).unwrap();
    run_until(&mut membership, start + 349 * MS);
    assert_eq!(life(&membership, 1, start + 349 * MS), Life::Serving);
    run_until(&mut membership, start + 350 * MS);
    assert_eq!(life(&membership, 1, start + 350 * MS), Life::Dead);
    assert!(membership.members(start + 350 * MS).is_dead(&name(1)));
}

#[test]
fn nobody_is_dead_who_was_never_heard() {
    let (mut membership, start) = start(2);
    assert_eq!(life(&membership, 1, start), Life::Awaited);
    assert!(membership.members(start).is_candidate(&name(1)));
    run_until(&mut membership, start + 2000 * MS);
    assert_eq!(life(&membership, 1, start + 2000 * MS), Life::Unheard);
    assert!(!membership.members(start + 2000 * MS).is_dead(&name(1)));
    assert!(!membership.members(start + 2000 * MS).is_candidate(&name(1)));
}

#[test]
fn a_node_that_joins_later_is_no_candidate_before_it_is_heard() {
    let (mut membership, start) = start(1);
    run_until(&mut membership, start + 2000 * MS);
    membership.set_nodes(&nodes(2));
    assert_eq!(life(&membership, 1, start + 2000 * MS), Life::Unheard);
}

#[test]
fn a_process_that_was_stalled_blames_nobody() {
    let (mut membership, start) = start(2);
    membership.receive(&beat(1, 1, 1, Status::Serving), address(1), start).unwrap();
    membership.tick(start);
    let woken = start + 5000 * MS;
    membership.tick(woken);
    assert_eq!(life(&membership, 1, woken), Life::Serving);
    // From here on its silence counts again.
    run_until(&mut membership, woken + 350 * MS);
    assert_eq!(life(&membership, 1, woken + 350 * MS), Life::Dead);
}

#[test]
fn goodbye_counts_at_once_and_old_heartbeats_do_not_undo_it() {
    let (mut membership, now) = start(2);
    membership.receive(&beat(1, 5, 1, Status::Serving), address(1), now).unwrap();
    membership.receive(&beat(1, 5, 3, Status::Leaving), address(1), now).unwrap();
    assert_eq!(life(&membership, 1, now), Life::Left);
    assert!(!membership.members(now).is_dead(&name(1)), "its pods may be well");
    assert_eq!(membership.receive(&beat(1, 5, 2, Status::Serving), address(1), now), Err(Refusal::Old));
    assert_eq!(life(&membership, 1, now), Life::Left);
    // The next run of the agent, even if the clock stepped back.
    membership.receive(&beat(1, 4, 1, Status::Starting), address(1), now).unwrap();
    assert_eq!(life(&membership, 1, now), Life::Starting);
}

#[test]
fn what_proves_nothing_changes_nothing() {
    let (mut membership, now) = start(2);
    let serving = |number| beat(number, 5, 2, Status::Serving);
    assert_eq!(membership.receive(&serving(0), address(0), now), Err(Refusal::OurName));
    assert_eq!(membership.receive(&serving(9), address(9), now), Err(Refusal::UnknownNode));
    assert_eq!(membership.receive(&serving(1), address(2), now), Err(Refusal::WrongAddress));
    membership.receive(&serving(1), address(1), now).unwrap();
    assert_eq!(membership.receive(&serving(1), address(1), now), Err(Refusal::Old));
    assert_eq!(membership.receive(&beat(1, 4, 9, Status::Leaving), address(1), now), Err(Refusal::Old));
    assert_eq!(life(&membership, 1, now), Life::Serving);
}

#[test]
fn heartbeats_come_at_their_interval_and_at_once_after_a_change() {
    let (mut membership, start) = start(2);
    assert_eq!(membership.tick(start).unwrap().sequence, 1);
    assert_eq!(membership.tick(start + 99 * MS), None);
    assert_eq!(membership.tick(start + 100 * MS).unwrap().status, Status::Starting);
    membership.set_status(Status::Serving, start + 101 * MS);
    assert_eq!(membership.tick(start + 101 * MS).unwrap().status, Status::Serving);
    assert_eq!(membership.members(start).nodes[&name(0)], Life::Serving);
}

#[test]
fn a_node_that_the_api_forgets_is_forgotten() {
    let (mut membership, now) = start(3);
    membership.receive(&beat(1, 1, 1, Status::Serving), address(1), now).unwrap();
    membership.set_nodes(&nodes(1));
    assert_eq!(membership.members(now).nodes.len(), 1);
    assert_eq!(membership.targets(Family::V4).count(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Beat { node: u8, epoch: u64, sequence: u64, status: Status },
}

fn step() -> impl Strategy<Value = Step> {
    let status = prop::sample::select(vec![Status::Starting, Status::Serving, Status::Leaving]);
    prop_oneof![
        (0u64..400).prop_map(Step::Wait),
        (0u8..4, 0u64..3, 0u64..40, status).prop_map(|(node, epoch, sequence, status)| Step::Beat {
            node,
            epoch,
            sequence,
            status
        }),
    ]
}

proptest! {
    #[test]
    fn the_dead_were_heard_and_the_heard_are_dead_only_after_the_timeout(steps in prop::collection::vec(step(), 0..60)) {
        let (mut membership, start) = start(3);
        let mut now = start;
        let mut heard: BTreeMap<u8, (Instant, Status)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Wait(millis) => {
                    now += Duration::from_millis(millis);
                    run_until(&mut membership, now);
                }
                Step::Beat { node, epoch, sequence, status } => {
                    if membership.receive(&beat(node, epoch, sequence, status), address(node), now).is_ok() {
                        heard.insert(node, (now, status));
                    }
                }
            }
            for node in 1..3 {
                let expected = match heard.get(&node) {
                    None if now < start + Timing::default().grace => Life::Awaited,
                    None => Life::Unheard,
                    Some((_, Status::Leaving)) => Life::Left,
                    Some((last, _)) if now - *last >= Timing::default().timeout => Life::Dead,
                    Some((_, Status::Starting)) => Life::Starting,
                    Some((_, Status::Serving)) => Life::Serving,
                };
                prop_assert_eq!(life(&membership, node, now), expected);
            }
        }
    }
}
