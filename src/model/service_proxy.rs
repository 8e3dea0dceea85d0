//! Another service proxy on this node: whether it runs, and whether it can be trusted to forward. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Where kube-proxy, and whatever stands in for it, answers load balancers' health checks.
pub const HEALTH_PORT: u16 = 10256;
/// Where kube-proxy serves its metrics.
pub const METRICS_PORT: u16 = 10249;

/// How long a proxy that was healthy may be unhealthy, or gone, before this node attracts no more traffic: kube-proxy is
/// replaced within that time in an upgrade, and its rules forward meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What one look at the node has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The ports on which somebody else in this network namespace listens, of those that only a service proxy has.
    pub listening: Vec<u16>,
    /// What the health port answered; nothing if nobody did.
    pub health: Option<Health>,
    /// Rules of a proxy, as words for people; they may be left-overs.
    pub rules: Option<String>,
}

/// The answer of a health port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It forwards.
    Healthy,
    /// It says that it does not.
    Unhealthy(u16),
}

impl Look {
    /// Whether a proxy runs, and what shows it. Rules alone do not: they outlive it.
    pub fn running(&self) -> Option<String> {
        let ports: Vec<String> = self.listening.iter().map(ToString::to_string).collect();
        (!ports.is_empty())
            .then(|| format!("another process listens on port {} of a service proxy", ports.join(" and ")))
    }
}

/// Whether another proxy forwards, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether this node may attract traffic.
    pub forwards: bool,
    /// Why, for people.
    pub why: String,
}

/// What is remembered between looks.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    healthy_at: Option<Instant>,
}

impl Memory {
    /// Takes a look in.
    pub fn judge(&mut self, look: &Look, port: u16, now: Instant) -> Verdict {
        let says = match &look.health {
            Some(Health::Healthy) => {
                self.healthy_at = Some(now);
                return Verdict { forwards: true, why: format!("another service proxy is healthy on port {port}") };
            }
            Some(Health::Unhealthy(code)) => format!("answers {code} on port {port}"),
            None => format!("does not answer on port {port}"),
        };
        match (self.healthy_at, &look.health, &look.rules) {
            (Some(at), ..) if now.duration_since(at) <= PATIENCE => {
                Verdict { forwards: true, why: format!("another service proxy was healthy until just now, and {says}") }
            }
            (Some(_), ..) => {
                let why =
                    format!("another service proxy was healthy, and for more than {} s {says}", PATIENCE.as_secs());
                Verdict { forwards: false, why }
            }
            (None, Some(_), _) => Verdict { forwards: false, why: format!("another service proxy {says}") },
            // Its health port may be off: what it wrote is all there is to see.
            (None, None, Some(rules)) => {
                Verdict { forwards: true, why: format!("nobody answers on port {port}; trusting {rules}") }
            }
            (None, None, None) => Verdict {
                forwards: false,
                why: format!("nobody answers on port {port}, and no service proxy has rules here"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(health: Option<Health>, rules: bool) -> Look {
        Look { listening: Vec::new(), health, rules: rules.then(|| "table ip kube-proxy".to_owned()) }
    }

    #[test]
    fn health_decides_once_it_was_seen_and_rules_before() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut memory = Memory::default();
        let mut forwards = |health, rules, seconds| memory.judge(&look(health, rules), 10256, after(seconds)).forwards;
        assert!(!forwards(None, false, 0), "nothing is known");
        assert!(forwards(None, true, 1), "rules, and nobody to ask");
        assert!(!forwards(Some(Health::Unhealthy(503)), true, 2), "it says itself that it is not ready");
        assert!(forwards(Some(Health::Healthy), true, 3));
        assert!(forwards(None, true, 13), "it may be in an upgrade");
        assert!(!forwards(None, true, 14), "rules alone are left-overs");
        assert!(!forwards(Some(Health::Unhealthy(503)), true, 20));
        assert!(forwards(Some(Health::Healthy), false, 21), "at once");
    }

    #[test]
    fn left_over_rules_are_no_running_proxy() {
        assert_eq!(look(None, true).running(), None);
        let running = Look { listening: vec![10249, 10256], ..Look::default() }.running().unwrap();
        assert_eq!(running, "another process listens on port 10249 and 10256 of a service proxy");
    }
}
