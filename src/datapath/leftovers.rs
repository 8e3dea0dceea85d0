//! What a kube-proxy that runs no more has left in nf_tables, and its removal: its own tables in nftables mode, its chains in
//! iptables' tables (iptables-nft) otherwise. Rules of iptables-legacy are in another part of the kernel and not touched.
//!
//! Connections that it translated go on: connection tracking has their translation, and needs no rule for it.

use std::collections::BTreeSet;
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
}

/// Its part of a table of iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shared {
    table: Table,
    chains: BTreeSet<String>,
    /// Rules of others' chains that lead to its chains.
    jumps: Vec<ForeignRule>,
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
            }
            for name in SHARED_TABLES {
                let table = Table { family, name };
                let chains = connection.chains(table).map_err(LeftoversError::Look)?;
                let chains: BTreeSet<String> = chains.into_iter().filter(|chain| is_of_kube_proxy(chain)).collect();
                if !chains.is_empty() {
                    let rules = connection.rules(table).map_err(LeftoversError::Look)?;
                    found.shared.push(Shared { table, jumps: jumps(rules, &chains), chains });
                }
            }
        }
        Ok(found)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.shared.is_empty()
    }

    /// Whether it can forward: there is more than the chains by which kube-proxy notices a flush.
    pub fn can_forward(&self) -> bool {
        !self.tables.is_empty() || self.shared.iter().any(|shared| shared.chains.contains("KUBE-SERVICES"))
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

fn jumps(rules: Vec<ForeignRule>, chains: &BTreeSet<String>) -> Vec<ForeignRule> {
    let leads_there = |rule: &ForeignRule| rule.targets.iter().any(|target| chains.contains(target));
    rules.into_iter().filter(|rule| !chains.contains(&rule.chain) && leads_there(rule)).collect()
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
mod tests {
    use super::*;
    use crate::netlink::nf_tables::test::{in_new_namespace, nft};

    /// As iptables-nft writes them: with chains of the kubelet, of network policies, of a user, and of kube-proxy.
    const IPTABLES: &str = "
        table ip nat {
            chain KUBE-KUBELET-CANARY { }
            chain KUBE-PROXY-CANARY { }
            chain KUBE-MARK-MASQ { counter meta mark set mark or 0x4000; }
            chain KUBE-SEP-AAAA { ip saddr 10.0.0.5 counter jump KUBE-MARK-MASQ;
                meta l4proto tcp counter dnat to 10.0.0.5:80; }
            chain KUBE-SVC-BBBB { counter jump KUBE-SEP-AAAA; }
            chain KUBE-SERVICES { ip daddr 172.30.0.41 tcp dport 80 counter jump KUBE-SVC-BBBB; }
            chain KUBE-POSTROUTING { mark and 0x4000 != 0x4000 counter return;
                counter masquerade fully-random; }
            chain MINE { ip daddr 192.0.2.1 counter accept; }
            chain PREROUTING { type nat hook prerouting priority dstnat; policy accept;
                counter jump KUBE-SERVICES;
                counter jump MINE; }
            chain OUTPUT { type nat hook output priority -100; policy accept; counter jump KUBE-SERVICES; }
            chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept;
                ip saddr 10.9.0.0/16 counter masquerade;
                counter jump KUBE-POSTROUTING; }
        }
        table ip filter {
            chain KUBE-FIREWALL { ip saddr != 127.0.0.0/8 ip daddr 127.0.0.0/8 counter drop; }
            chain KUBE-FORWARD { ct state invalid counter drop; }
            chain KUBE-ROUTER-FORWARD { counter return; }
            chain FORWARD { type filter hook forward priority filter; policy accept;
                counter jump KUBE-FORWARD;
                counter jump KUBE-ROUTER-FORWARD; }
            chain OUTPUT { type filter hook output priority filter; policy accept; counter jump KUBE-FIREWALL; }
        }
        table ip6 mangle {
            chain KUBE-KUBELET-CANARY { }
            chain KUBE-IPTABLES-HINT { }
            chain KUBE-PROXY-CANARY { }
        }";

    #[test]
    fn chains_of_kube_proxy_go_and_all_others_stay() {
        in_new_namespace(|| {
            nft(&["-f", "-"], IPTABLES);
            let mut connection = Connection::open().unwrap();
            let found = Leftovers::find(&mut connection).unwrap();
            assert_eq!(
                found.to_string(),
                "6 chains KUBE-… of table ip nat, 1 chains KUBE-… of table ip filter, 1 chains KUBE-… of table ip6 mangle"
            );
            assert!(found.can_forward());
            let before: Vec<String> = nft(&["list", "ruleset"], "").lines().map(str::to_owned).collect();
            found.remove(&mut connection).unwrap();
            let after = nft(&["list", "ruleset"], "");
            for gone in
                ["KUBE-SERVICES", "KUBE-SVC", "KUBE-SEP", "KUBE-MARK", "KUBE-POSTROUTING", "KUBE-PROXY", "KUBE-FORWARD"]
            {
                assert!(!after.contains(gone), "{gone} is left:\n{after}");
            }
            for stays in [
                "KUBE-KUBELET-CANARY",
                "KUBE-IPTABLES-HINT",
                "jump KUBE-FIREWALL",
                "jump KUBE-ROUTER-FORWARD",
                "jump MINE",
                "10.9.0.0/16",
            ] {
                assert!(after.contains(stays), "{stays} is gone:\n{after}");
            }
            assert!(after.lines().all(|line| before.iter().any(|known| known == line)), "nothing new:\n{after}");
            assert!(Leftovers::find(&mut connection).unwrap().is_empty());
        });
    }

    #[test]
    fn the_tables_of_nftables_mode_go() {
        in_new_namespace(|| {
            nft(
                &["-f", "-"],
                "table ip kube-proxy { chain services { }; }; table ip6 kube-proxy { }; table inet mine { };",
            );
            let mut connection = Connection::open().unwrap();
            let found = Leftovers::find(&mut connection).unwrap();
            assert_eq!(found.to_string(), "table ip kube-proxy, table ip6 kube-proxy");
            found.remove(&mut connection).unwrap();
            assert_eq!(nft(&["list", "tables"], ""), "table inet mine\n");
        });
    }

    #[test]
    fn a_rule_that_somebody_added_meanwhile_leaves_all_as_it_is() {
        in_new_namespace(|| {
            nft(&["-f", "-"], IPTABLES);
            let mut connection = Connection::open().unwrap();
            let found = Leftovers::find(&mut connection).unwrap();
            nft(&["add", "rule", "ip", "nat", "MINE", "jump", "KUBE-SERVICES"], "");
            let before = nft(&["list", "ruleset"], "");
            assert!(found.remove(&mut connection).is_err());
            assert_eq!(nft(&["list", "ruleset"], ""), before);
        });
    }
}
