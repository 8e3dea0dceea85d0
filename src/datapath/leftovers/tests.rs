//! Against the real kernel, in network namespaces of their own.

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

/// As the CNI plugin `portmap` writes them, told to mark by kube-proxy's chain.
const PORTMAP: &str = "
        table ip nat {
            chain CNI-DN-CCCC { ip saddr 10.9.0.0/16 tcp dport 8080 counter jump KUBE-MARK-MASQ;
                tcp dport 8080 counter dnat to 10.9.0.7:80; }
            chain CNI-HOSTPORT-DNAT { tcp dport 8080 counter jump CNI-DN-CCCC; }
            chain PREROUTING { type nat hook prerouting priority dstnat; policy accept;
                fib daddr type local counter jump CNI-HOSTPORT-DNAT; }
        }";

#[test]
fn what_rules_of_others_lead_to_stays() {
    in_new_namespace(|| {
        nft(&["-f", "-"], IPTABLES);
        nft(&["-f", "-"], PORTMAP);
        let mut connection = Connection::open().unwrap();
        let found = Leftovers::find(&mut connection).unwrap();
        assert!(found.can_forward());
        found.remove(&mut connection).unwrap();
        let after = nft(&["list", "table", "ip", "nat"], "");
        for gone in ["KUBE-SERVICES", "KUBE-SVC", "KUBE-SEP", "KUBE-PROXY"] {
            assert!(!after.contains(gone), "{gone} is left:\n{after}");
        }
        for stays in [
            "chain KUBE-MARK-MASQ",
            "set mark or 0x4000",
            "jump KUBE-MARK-MASQ",
            "dnat to 10.9.0.7:80",
            "jump CNI-HOSTPORT-DNAT",
            "chain KUBE-POSTROUTING",
            "masquerade fully-random",
            "jump KUBE-POSTROUTING",
        ] {
            let is_there = after.contains(stays) || (stays.contains("0x4000") && after.contains("0x00004000"));
            assert!(is_there, "{stays} is gone:\n{after}");
        }
        let left = Leftovers::find(&mut connection).unwrap();
        assert!(left.is_empty() && !left.can_forward(), "{left}");
        // Once nobody leads there any more, it goes too.
        nft(&["flush", "chain", "ip", "nat", "CNI-DN-CCCC"], "");
        let left = Leftovers::find(&mut connection).unwrap();
        assert_eq!(left.to_string(), "2 chains KUBE-… of table ip nat");
        left.remove(&mut connection).unwrap();
        assert!(!nft(&["list", "ruleset"], "").contains("KUBE-POSTROUTING"));
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
