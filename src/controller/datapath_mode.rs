//! Decides once for the cluster whether Steelyard forwards, where the chart says `auto`, and keeps the decision in a
//! ConfigMap that agents follow and people can read, change or delete.
//!
//! The rule is [`crate::model::datapath_mode`]'s. The ConfigMap belongs to the agents' DaemonSet and goes with it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};

use crate::api::{CONTROLLER_NAME, NodeAnnouncement};
use crate::controller::metrics::Metrics;
use crate::model::datapath_mode::{Decision, Evidence, contradiction, decide};
use crate::names::NodeName;
use crate::runtime::lease::Leadership;
use crate::runtime::pages;
use crate::runtime::telemetry::chain;

/// Between two looks while nothing is decided and agents wait.
const WAITING: Duration = Duration::from_millis(500);
/// The same where it has lasted: nobody may want the agents.
const WAITING_LONG: Duration = Duration::from_secs(5);
/// After how many looks it has.
const MANY_LOOKS: u32 = 120;
/// Between two looks at what speaks against a decision.
const DECIDED: Duration = Duration::from_secs(30);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where kube-proxy's DaemonSet is.
const KUBE_SYSTEM: &str = "kube-system";
const KUBE_PROXY: &str = "kube-proxy";

/// Where the decision is kept, and who waits for it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of both objects.
    pub namespace: String,
    /// The ConfigMap.
    pub config_map: String,
    /// The agents' DaemonSet.
    pub daemon_set: String,
}

/// Decides while this replica leads, and goes on to look for what speaks against it; for ever.
pub async fn run(client: Client, settings: Settings, identity: String, leadership: Leadership, metrics: Metrics) {
    let reporter = Reporter { controller: CONTROLLER_NAME.to_owned(), instance: Some(identity) };
    let mut arbiter = Arbiter { client, settings, reporter, metrics, first_report: None, told: None };
    let mut looks = 0u32;
    loop {
        let mut pause = WAITING;
        if leadership.is_current() {
            match tokio::time::timeout(PATIENCE, arbiter.look(&leadership)).await {
                Ok(Ok(true)) => {
                    looks = 0;
                    pause = DECIDED;
                }
                Ok(Ok(false)) => {
                    looks = looks.saturating_add(1);
                    pause = if looks < MANY_LOOKS { WAITING } else { WAITING_LONG };
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = chain(&error), "failed to decide the datapath's mode, trying again");
                    pause = WAITING_LONG;
                }
                Err(_) => tracing::warn!("no answer while deciding the datapath's mode, trying again"),
            }
        }
        tokio::time::sleep(pause).await;
    }
}

struct Arbiter {
    client: Client,
    settings: Settings,
    reporter: Reporter,
    metrics: Metrics,
    /// When an agent's report was first seen while nothing was decided.
    first_report: Option<Timestamp>,
    /// The contradiction last told.
    told: Option<String>,
}

impl Arbiter {
    /// Whether there is a decision.
    async fn look(&mut self, leadership: &Leadership) -> Result<bool, kube::Error> {
        let config_maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let found = config_maps.get_opt(&self.settings.config_map).await?;
        let daemon_sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let agents = daemon_sets.get_opt(&self.settings.daemon_set).await?;
        let evidence = self.evidence(agents.as_ref()).await?;
        if let Some(object) = &found {
            self.first_report = None;
            match object.data.as_ref().and_then(Decision::read) {
                Some(decision) => self.tell(object, contradiction(&decision, &evidence)).await,
                None => {
                    let message = "no `mode` of on or off in it: agents go on as they are, and those that start wait";
                    self.tell(object, Some(message.to_owned())).await;
                }
            }
            return Ok(true);
        }
        let now = Timestamp::now();
        if !evidence.agents.is_empty() {
            self.first_report.get_or_insert(now);
        }
        let Some(decision) = decide(&evidence, self.first_report, now) else { return Ok(false) };
        if !leadership.is_current() {
            return Ok(false);
        }
        let object = ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.settings.config_map.clone()),
                labels: agents.as_ref().map(|agents| agents.labels().clone()),
                owner_references: agents.as_ref().and_then(|agents| agents.owner_ref(&())).map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some(decision.data()),
            ..ConfigMap::default()
        };
        match config_maps.create(&PostParams::default(), &object).await {
            Ok(created) => {
                tracing::info!(mode = decision.mode.word(), reason = decision.reason, "the datapath's mode is decided");
                self.event(&created, EventType::Normal, "DatapathDecided", &decision.reason).await;
                Ok(true)
            }
            // Somebody else was first, and the first counts.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn evidence(&self, agents: Option<&DaemonSet>) -> Result<Evidence, kube::Error> {
        let report = |object: NodeAnnouncement| {
            let proxy = object.status?.service_proxy?;
            Some((NodeName::new(object.metadata.name?), proxy.detected.then_some(proxy.evidence)))
        };
        let mut reports = BTreeMap::new();
        let (client, any) = (|| self.client.clone(), ListParams::default);
        pages::each(client(), None, any(), |object| reports.extend(report(object))).await?;
        let expected = agents.and_then(|agents| usize::try_from(agents.status.as_ref()?.desired_number_scheduled).ok());
        let mut proxies = Vec::new();
        let take = |object| proxies.extend(Some(object).filter(is_kube_proxy));
        pages::each(client(), Some(KUBE_SYSTEM), any(), take).await?;
        Ok(Evidence {
            daemon_set: proxies.first().map(|daemon_set| format!("{KUBE_SYSTEM}/{}", daemon_set.name_any())),
            agents: reports,
            expected,
        })
    }

    async fn tell(&mut self, object: &ConfigMap, contradiction: Option<String>) {
        self.metrics.datapath_contradicted.set(i64::from(contradiction.is_some()));
        if let Some(message) = contradiction.as_ref().filter(|message| self.told.as_ref() != Some(*message)) {
            tracing::warn!(message, "something speaks against the datapath's mode");
            self.event(object, EventType::Warning, "DatapathContradicted", message).await;
        }
        self.told = contradiction;
    }

    /// Events are for people: one that is lost is no reason to stop.
    async fn event(&self, object: &ConfigMap, type_: EventType, reason: &str, message: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(message.chars().take(1000).collect()),
            action: "Decide".to_owned(),
            secondary: None,
        };
        let reference = ObjectReference { namespace: Some(self.settings.namespace.clone()), ..object.object_ref(&()) };
        if let Err(error) = Recorder::new(self.client.clone(), self.reporter.clone()).publish(&event, &reference).await
        {
            tracing::debug!(error = chain(&error), "event could not be written");
        }
    }
}

/// By name, or by the label that kubeadm and others give it; with pods to run. One that nobody has counted yet counts.
fn is_kube_proxy(daemon_set: &DaemonSet) -> bool {
    let has = |label: &str, value: &str| daemon_set.labels().get(label).is_some_and(|found| found == value);
    // Somebody may label our own agents so, for tools that look for kube-proxy.
    let is_ours = has("app.kubernetes.io/name", "steelyard");
    let is_named = !is_ours && (daemon_set.name_any() == KUBE_PROXY || has("k8s-app", KUBE_PROXY));
    let status = daemon_set.status.as_ref();
    let is_counted = status.and_then(|status| status.observed_generation) == daemon_set.metadata.generation;
    is_named && (!is_counted || status.is_some_and(|status| status.desired_number_scheduled > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon_set(text: &str) -> DaemonSet {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn a_kube_proxy_is_known_by_name_or_label_and_by_its_pods() {
        let status = |desired: u8| {
            format!(
                "status: {{observedGeneration: 2, desiredNumberScheduled: {desired}, currentNumberScheduled: 0, numberMisscheduled: 0, numberReady: 0}}"
            )
        };
        let named = |name: &str, desired| {
            daemon_set(&format!("metadata: {{name: {name}, generation: 2}}\n{}", status(desired)))
        };
        assert!(is_kube_proxy(&named("kube-proxy", 3)));
        assert!(!is_kube_proxy(&named("kube-proxy", 0)), "switched off by a node selector");
        assert!(!is_kube_proxy(&named("kindnet", 3)));
        let labelled = "metadata: {name: proxy-arm64, generation: 2, labels: {k8s-app: kube-proxy}}\n";
        assert!(is_kube_proxy(&daemon_set(&format!("{labelled}{}", status(1)))));
        assert!(is_kube_proxy(&daemon_set("metadata: {name: kube-proxy, generation: 1}")), "not counted yet");
        let ours = "metadata: {name: steelyard-node, labels: {k8s-app: kube-proxy, app.kubernetes.io/name: steelyard}}";
        assert!(!is_kube_proxy(&daemon_set(ours)));
    }
}
