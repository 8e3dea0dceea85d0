//! The bytes of batches.

use super::*;

const TABLE: Table = Table { family: Family::V4, name: "steelyard" };

/// Splits a datagram into messages as (type, flags, sequence, length).
fn messages(mut bytes: &[u8]) -> Vec<(u16, u16, u32, usize)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_ne_bytes(bytes[0..4].try_into().unwrap()) as usize;
        found.push((
            u16::from_ne_bytes(bytes[4..6].try_into().unwrap()),
            u16::from_ne_bytes(bytes[6..8].try_into().unwrap()),
            u32::from_ne_bytes(bytes[8..12].try_into().unwrap()),
            length,
        ));
        bytes = &bytes[length..];
    }
    found
}

#[test]
fn a_table_is_written_as_nft_writes_it() {
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    // What `nft --debug=mnl` shows for `add table ip steelyard`, between begin and end.
    let expected = [
        &44u32.to_ne_bytes()[..],
        &0x0a00u16.to_ne_bytes(),
        &0x0401u16.to_ne_bytes(),
        &1u32.to_ne_bytes(),
        &[0; 4],
        &[2, 0, 0, 0],
        &[14, 0, 1, 0],
        b"steelyard\0\0\0",
        &[8, 0, 2, 0, 0, 0, 0, 0],
    ]
    .concat();
    assert_eq!(&batch.bytes[20..], &expected[..]);
}

#[test]
fn the_last_message_alone_asks_for_an_answer() {
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.delete_table(TABLE);
    let sent = messages(&batch.finish(false));
    let acknowledged: Vec<u32> =
        sent.iter().filter(|message| message.1 & ACKNOWLEDGE != 0).map(|message| message.2).collect();
    assert_eq!(acknowledged, [2]);
    assert_eq!(sent.iter().map(|message| message.2).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!((sent[0].0, sent[3].0), (BATCH_BEGIN, BATCH_END));
    assert_eq!(messages(&batch.finish(true)).len(), 3, "a check has no end");
}

#[test]
fn long_lists_of_elements_are_cut() {
    let mut batch = Batch::new();
    batch.add_elements(TABLE, "services", 0..10_000u32, |number, element| {
        element.write(|element| {
            element.key(&number.to_ne_bytes());
            element.value(&number.to_ne_bytes());
        });
    });
    let sent = messages(&batch.finish(false));
    assert_eq!(sent.len(), 2 + 5);
    assert!(sent.iter().all(|message| message.3 < usize::from(u16::MAX)));
}

#[test]
fn messages_have_names() {
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    let chain = Chain { name: "frontend".into(), hook: None };
    batch.add_chain(TABLE, &chain);
    batch.add_rule(TABLE, &chain.name, &[]);
    batch.add_rule(TABLE, &chain.name, &[]);
    assert_eq!(batch.label(4).unwrap().to_string(), "add rule 2 of chain ip steelyard frontend");
    assert_eq!(batch.label(1).unwrap().to_string(), "add table ip steelyard");
    assert_eq!(batch.label(0), None);
    assert_eq!(batch.label(5), None);
}
