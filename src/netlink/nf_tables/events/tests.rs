//! Against the real kernel, in network namespaces of their own.

use std::time::Instant;

use super::*;
use crate::model::Family;
use crate::netlink::nf_tables::test::{in_new_namespace, nft};
use crate::netlink::nf_tables::{Batch, Chain, Connection, Expression, Field, Set, Table, Verdict};

const TABLE: Table = Table { family: Family::V4, name: "steelyard" };
const SOON: Duration = Duration::from_secs(5);
/// So long nothing must be heard. A notice is there when the change is done, so this only bounds our own wake-up.
const SILENCE: Duration = Duration::from_millis(50);

/// A connection with our table, and a listener that has heard nothing yet.
fn with_listener(test: impl AsyncFnOnce(Connection, Listener) + Send) {
    in_new_namespace(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut connection = Connection::open().unwrap();
            let mut batch = Batch::new();
            batch.add_table(TABLE, None);
            batch.add_chain(TABLE, &Chain { name: "frontend".into(), hook: None });
            batch.add_rule(TABLE, "frontend", &[Expression::Verdict(Verdict::Drop)]);
            batch.add_set(TABLE, &Set::map("services", vec![Field::Priority], vec![Field::Priority]));
            connection.commit(&batch).unwrap();
            let listener = Listener::open(TABLE.name, &[connection.port()]).unwrap();
            test(connection, listener).await;
        });
    });
}

fn elements(count: u32) -> Batch {
    let mut batch = Batch::new();
    batch.add_elements(TABLE, "services", 0..count, |number, element| {
        element.write(|element| {
            element.key(&number.to_ne_bytes());
            element.value(&number.to_ne_bytes());
        });
    });
    batch
}

#[test]
fn every_foreign_change_is_heard_with_the_name_of_who_made_it() {
    with_listener(async |mut connection, mut listener| {
        connection.commit(&elements(3)).unwrap();
        for change in [
            "add element ip steelyard services { 0:77 : 0:77 }",
            "delete element ip steelyard services { 0:77 }",
            "flush map ip steelyard services",
            "flush chain ip steelyard frontend",
            "add rule ip steelyard frontend drop",
            "flush table ip steelyard",
            "add chain ip steelyard another",
            "delete chain ip steelyard another",
            "add set ip steelyard more { type ipv4_addr; }",
            "add table ip6 steelyard",
            "delete table ip steelyard",
            "flush ruleset",
        ] {
            nft(&["-f", "-"], change);
            let foreign = timeout(SOON, listener.changed()).await.expect(change).unwrap();
            assert_eq!(foreign.process.unwrap().name, "nft", "{change}");
        }
    });
}

#[test]
fn our_own_changes_and_those_of_other_tables_are_not_heard() {
    with_listener(async |mut connection, mut listener| {
        connection.commit(&elements(3)).unwrap();
        nft(&["-f", "-"], "table ip other { set s { type ipv4_addr; elements = { 1.2.3.4 }; }; }");
        nft(&["-f", "-"], "table inet steelyard { chain steelyard { }; }");
        assert!(timeout(SILENCE, listener.changed()).await.is_err());
        // In one transaction with others, ours is seen.
        nft(&["-f", "-"], "add table ip third\ndelete table ip steelyard\nadd table ip fourth");
        timeout(SOON, listener.changed()).await.unwrap().unwrap();
    });
}

#[test]
fn what_was_lost_counts_as_a_change() {
    with_listener(async |_, mut listener| {
        let socket = Arc::clone(&listener.shared);
        setsockopt(socket.socket.lock().unwrap().socket_ref(), sockopt::RcvBufForce, &2048).unwrap();
        for number in 0..50 {
            nft(&["add", "table", "ip", &format!("other{number}")], "");
        }
        assert_eq!(timeout(SOON, listener.changed()).await.unwrap().unwrap(), Foreign::default());
    });
}

#[test]
fn a_large_transaction_of_ours_is_silent_and_hides_nobody() {
    with_listener(async |mut connection, mut listener| {
        connection.silence(listener.silencer());
        connection.commit(&elements(50_000)).unwrap();
        assert!(timeout(SILENCE, listener.changed()).await.is_err());
        nft(&["flush", "map", "ip", "steelyard", "services"], "");
        timeout(SOON, listener.changed()).await.unwrap().unwrap();
        // As if somebody had come between.
        let silencer = listener.silencer();
        silencer.leave();
        nft(&["add", "rule", "ip", "steelyard", "frontend", "accept"], "");
        silencer.join();
        assert!(timeout(SILENCE, listener.changed()).await.is_err());
        silencer.missed();
        assert_eq!(timeout(SOON, listener.changed()).await.unwrap().unwrap(), Foreign::default());
    });
}

#[test]
fn a_listener_is_told_of_the_rival_between_large_transactions() {
    with_listener(async |mut connection, mut listener| {
        let time = |connection: &mut Connection| {
            let start = Instant::now();
            connection.commit(&elements(50_000)).unwrap();
            let took = start.elapsed();
            nft(&["flush", "map", "ip", "steelyard", "services"], "");
            took
        };
        let loud: Vec<Duration> = (0..3).map(|_| time(&mut connection)).collect();
        connection.silence(listener.silencer());
        let silent: Vec<Duration> = (0..3).map(|_| time(&mut connection)).collect();
        eprintln!("50,000 elements: heard by a listener {loud:?}, silently {silent:?}");
        // A filter drops our own only after they were written.
        assert!(timeout(SILENCE, listener.changed()).await.is_ok(), "the rival was not heard");
    });
}
