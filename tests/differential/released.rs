//! Which addresses the agent's kernel drops because they were served until a moment ago: only it knows for how long.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use crate::stage::Stage;
use crate::stage::namespace::run_program;

/// The set, in the table of each family.
const SET: [[&str; 5]; 2] =
    [["--json", "list", "set", "ip", "steelyard"], ["--json", "list", "set", "ip6", "steelyard"]];

/// Those of a node that the agent has programmed.
pub fn at(node: &Stage) -> Result<BTreeSet<IpAddr>, String> {
    let mut all = BTreeSet::new();
    for arguments in SET {
        let arguments = [&arguments[..], &["released"]].concat();
        let listing = node.in_node(|| run_program("nft", &arguments, ""))?;
        all.extend(addresses(&listing)?);
    }
    Ok(all)
}

fn addresses(listing: &str) -> Result<Vec<IpAddr>, String> {
    let unreadable = || format!("nft lists this as the set of released addresses: {listing}");
    let read: Value = serde_json::from_str(listing).map_err(|_| unreadable())?;
    let set = read["nftables"].as_array().into_iter().flatten().find_map(|object| object.get("set"));
    let elements = set.ok_or_else(unreadable)?["elem"].as_array().into_iter().flatten();
    elements
        .map(|element| element["elem"]["val"].as_str().and_then(|text| text.parse().ok()).ok_or_else(unreadable))
        .collect()
}
