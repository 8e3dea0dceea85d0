//! A test of the exposition: names, labels and buckets as dashboards know them.

use prometheus_client::encoding::text;

use super::*;

#[test]
fn dashboards_find_the_names_and_labels_that_they_know() {
    let mut registry = Registry::default();
    let metrics = KubeProxyMetrics::register(registry.sub_registry_with_prefix("kubeproxy"));
    let at = |second| Timestamp::from_second(second).unwrap();
    let mut triggers = Triggers::new(at(1000));
    triggers.see(Family::V4, Some(at(1001)), None);
    metrics.endpoints_changed(at(1003));
    metrics.service_changed(at(1003));
    metrics.service_changed(at(1003));
    metrics.failed();
    metrics.starved(&NoLocalEndpoints::default());
    let mut before = String::new();
    text::encode(&mut before, &registry).unwrap();
    metrics.synced(Scope::Changed, Duration::from_millis(3));
    metrics.settled(at(1004), &mut triggers);
    metrics.asked(Question::Healthy, 200);
    metrics.asked(Question::Live, 503);
    let mut after = String::new();
    text::encode(&mut after, &registry).unwrap();

    let pending = "kubeproxy_sync_proxy_rules_service_changes_pending";
    assert!(before.contains(&format!("\n{pending} 2\n")) && after.contains(&format!("\n{pending} 0\n")));
    for line in [
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.25\",ip_family=\"IPv4\"} 0",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"3.0\",ip_family=\"IPv4\"} 1",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\",ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv6\"} 1",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1004.0",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 1003.0",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_sync_proxy_rules_service_changes_total 2",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv6\"} 0",
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_livez_total{code=\"503\"} 1",
    ] {
        assert!(after.lines().any(|found| found == line), "no line {line} in\n{after}");
    }
    assert!(!after.contains("sync_full_proxy_rules_duration_seconds_count"), "nothing was a turn over everything");
    assert_eq!(
        after.lines().filter(|line| line.starts_with("kubeproxy_network_programming_duration_seconds_bucket")).count(),
        81
    );
}
