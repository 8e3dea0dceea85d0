//! What a kube-proxy that runs no more has left in nf_tables, and its removal: its own tables in nftables mode, its chains in
//! iptables' tables (iptables-nft) otherwise. Rules of iptables-legacy are in another part of the kernel and not touched.
//!
//! Rules of others may lead to chains of kube-proxy: those of the CNI plugin `portmap` mark what is to be masqueraded by
//! `KUBE-MARK-MASQ` where its `externalSetMarkChain` says so. These rules stay, with what they need.
//!
//! Connections that it translated go on: connection tracking has their translation, and needs no rule for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use thiserror::Error;

use crate::model::Family;
use crate::netlink::nf_tables::{Batch, Connection, ConnectionError, ForeignRule, Table};

/// The table of nftables mode, in each family.
const OWN_TABLE: &str = "kube-proxy";
/// The tables of iptables.
const SHARED_TABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// The chains that kube-proxy makes in them, in its iptables and ipvs modes. The kubelet's (`KUBE-KUBELET-CANARY`,
/// `KUBE-FIREWALL`, `KUBE-IPTABLES-HINT`) and those of network policies (`KUBE-ROUTER-…`, `KUBE-NWPLCY-…`, `KUBE-POD-FW-…`)
/// are not among them.
const CHAINS: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-NODE-PORT",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-MARK-DROP",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// Where it hooks them in: chains of iptables itself, as far as kube-proxy puts rules there.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// It never leads there but from chains of its own: who else does is somebody else, from wherever.
const MARKS: [&str; 2] = ["KUBE-MARK-MASQ", "KUBE-MARK-DROP"];
/// Who is marked by the first is masqueraded by the second.
const MASQUERADE: (&str, &str) = ("KUBE-MARK-MASQ", "KUBE-POSTROUTING");
const SERVICES: &str = "KUBE-SERVICES";
/// And those that it makes for each Service or endpoint, by how they begin.
const CHAINS_OF_SERVICES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// Why nothing is known, or nothing was removed.
#[derive(Debug, Error)]
pub enum LeftoversError {
    /// Not read.
    #[error("failed to look for rules of kube-proxy")]
    Look(#[source] ConnectionError),
    /// Not removed: all of it is still there.
    #[error("failed to remove the rules of kube-proxy")]
    Remove(#[source] ConnectionError),
}

/// What is there of kube-proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    tables: Vec<Table>,
    shared: Vec<Shared>,
    /// A packet may be led to a Service's endpoint.
    can_forward: bool,
}

/// What may go of its part of a table of iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shared {
    table: Table,
    chains: BTreeSet<String>,
    /// Its rules in chains that are not its own, which lead to these.
    jumps: Vec<ForeignRule>,
}

impl Shared {
    fn new(table: Table, mut chains: BTreeSet<String>, rules: Vec<ForeignRule>) -> Self {
        let needed = needed_by_others(&chains, &rules);
        chains.retain(|chain| !needed.contains(chain));
        let leads_there = |rule: &ForeignRule| rule.targets.iter().any(|target| chains.contains(target));
        let jumps = rules.into_iter().filter(|rule| is_entrance(rule) && leads_there(rule)).collect();
        Self { table, chains, jumps }
    }
}

impl Leftovers {
    /// Looks for it. Reads rules of a table only where it has chains of kube-proxy.
    ///
    /// # Errors
    ///
    /// [`LeftoversError::Look`].
    pub fn find(connection: &mut Connection) -> Result<Self, LeftoversError> {
        let mut found = Self::default();
        for family in Family::ALL {
            let own = Table { family, name: OWN_TABLE };
            if connection.table(own).map_err(LeftoversError::Look)?.is_some() {
                found.tables.push(own);
                found.can_forward = true;
            }
            for name in SHARED_TABLES {
                let table = Table { family, name };
                let chains = connection.chains(table).map_err(LeftoversError::Look)?;
                let chains: BTreeSet<String> = chains.into_iter().filter(|chain| is_of_kube_proxy(chain)).collect();
                if chains.is_empty() {
                    continue;
                }
                found.can_forward |= chains.contains(SERVICES);
                let rules = connection.rules(table).map_err(LeftoversError::Look)?;
                let shared = Shared::new(table, chains, rules);
                if !shared.chains.is_empty() {
                    found.shared.push(shared);
                }
            }
        }
        Ok(found)
    }

    /// Whether there is nothing that may go.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.shared.is_empty()
    }

    /// Whether it can forward: there is more than the chains by which kube-proxy notices a flush.
    pub const fn can_forward(&self) -> bool {
        self.can_forward
    }

    /// Removes it, and nothing else, in one transaction.
    ///
    /// # Errors
    ///
    /// [`LeftoversError::Remove`]: somebody changed it since it was looked for, or added a rule that leads to it.
    pub fn remove(&self, connection: &mut Connection) -> Result<(), LeftoversError> {
        connection.commit(&self.batch()).map_err(LeftoversError::Remove)
    }

    fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        for table in &self.tables {
            batch.delete_table(*table);
        }
        for Shared { table, chains, jumps } in &self.shared {
            for jump in jumps {
                batch.delete_rule(*table, &jump.chain, jump.handle);
            }
            // They lead to each other: no chain goes before all are empty.
            for chain in chains {
                batch.flush_chain(*table, chain);
            }
            for chain in chains {
                batch.delete_chain(*table, chain);
            }
        }
        batch
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.tables.iter().map(|table| format!("table {table}"));
        let chains =
            self.shared.iter().map(|shared| format!("{} chains KUBE-… of table {}", shared.chains.len(), shared.table));
        f.write_str(&tables.chain(chains).collect::<Vec<_>>().join(", "))
    }
}

fn is_of_kube_proxy(chain: &str) -> bool {
    CHAINS.contains(&chain) || CHAINS_OF_SERVICES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Whether it is a rule by which kube-proxy hooks its chains in.
fn is_entrance(rule: &ForeignRule) -> bool {
    BUILT_IN.contains(&rule.chain.as_str()) && !rule.targets.iter().any(|target| MARKS.contains(&target.as_str()))
}

/// The chains to which rules of others lead, with all that these lead to in turn, and what acts on their marks.
fn needed_by_others(chains: &BTreeSet<String>, rules: &[ForeignRule]) -> BTreeSet<String> {
    let mut leads_to: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    let mut next: Vec<&String> = Vec::new();
    for rule in rules {
        let targets = rule.targets.iter().filter(|target| chains.contains(*target));
        if chains.contains(&rule.chain) {
            leads_to.entry(&rule.chain).or_default().extend(targets);
        } else if !is_entrance(rule) {
            next.extend(targets);
        }
    }
    let mut needed = BTreeSet::new();
    while let Some(chain) = next.pop() {
        if !needed.insert(chain.clone()) {
            continue;
        }
        next.extend(leads_to.get(chain.as_str()).into_iter().flatten());
        let (mark, masquerade) = MASQUERADE;
        next.extend(chains.get(masquerade).filter(|_| chain == mark));
    }
    needed
}

/// Tables of iptables-legacy with a `nat` table, in which an older kube-proxy may have left rules. Which chains they have
/// only `iptables-legacy-save` tells.
pub fn legacy_tables() -> Vec<&'static str> {
    let has_nat = |file: &str| {
        let names: io::Result<String> = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        names.is_ok_and(|names| names.lines().any(|name| name == "nat"))
    };
    let files = [("ip_tables_names", "iptables-legacy"), ("ip6_tables_names", "ip6tables-legacy")];
    files.into_iter().filter(|(file, _)| has_nat(file)).map(|(_, program)| program).collect()
}

#[cfg(test)]
mod tests;
