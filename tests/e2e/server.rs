//! The test server: agnhost as a Deployment, which tells its name, its client and more over HTTP on port 8080, and over UDP
//! on port 8081.

use steelyard_lab::images::AGNHOST;

/// What differs from one to another.
pub(crate) struct Server {
    pub(crate) namespace: &'static str,
    /// Of the Deployment, and what its pods have as label `app`.
    pub(crate) name: &'static str,
    pub(crate) replicas: u8,
    /// What becomes of a pod that would be one too many on its node.
    pub(crate) when_crowded: &'static str,
    /// Whether a pod stays for some seconds after it was told to end, until everybody knows, and goes only when its
    /// successor is ready.
    pub(crate) is_gentle: bool,
}

impl Server {
    /// The object.
    pub(crate) fn yaml(&self) -> String {
        let Self { namespace, name, replicas, when_crowded, is_gentle } = self;
        let (grace, delay, strategy) =
            if *is_gentle { (20, 8, "{maxUnavailable: 0, maxSurge: 1}") } else { (1, 0, "{}") };
        format!(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  strategy: {{rollingUpdate: {strategy}}}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: {grace}
      topologySpreadConstraints:
        - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: {when_crowded}, labelSelector: {{matchLabels: {{app: {name}}}}}}}
      containers:
        - name: web
          image: {AGNHOST}
          args: [netexec, --http-port=8080, --udp-port=8081, --delay-shutdown={delay}]
          readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
"
        )
    }
}
