//! `steelyard prepare`: sets what of the kernel's connection tracking only a privileged program may set. The chart runs it
//! before the agent; `steelyard node --cleanup` puts back what was there, and so does a later run that is not asked to set it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::ArgAction;
use thiserror::Error;

use crate::netlink::ctnetlink::Conntrack;
use crate::runtime::sysctls::{self, Outcome, Rule, Sysctls, SysctlsError};

const EXAMPLES: &str = "\
Examples:
  steelyard prepare
      as the chart does it: what kube-proxy sets, too
  steelyard prepare --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0
      leave the size of the table and that timeout alone
  steelyard node --cleanup
      put everything back";

/// Set the node's connection tracking, and write down what was there before.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Prepare {
    /// Connections that may be tracked, for each processor; never lowers what is set. 0 leaves it alone
    #[arg(long, default_value_t = 32_768, value_name = "NUMBER")]
    conntrack_max_per_core: u64,

    /// The least number of connections that may be tracked, however few processors there are
    #[arg(long, default_value_t = 131_072, value_name = "NUMBER")]
    conntrack_min: u64,

    /// How long an established TCP connection without a packet is remembered, in seconds. 0 leaves it alone
    #[arg(long, default_value_t = 86_400, value_name = "SECONDS")]
    conntrack_tcp_timeout_established: u64,

    /// The same after the endpoint has closed, in seconds. 0 leaves it alone
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS")]
    conntrack_tcp_timeout_close_wait: u64,

    /// Take TCP segments that are out of the window for valid
    #[arg(long, action = ArgAction::Set, default_value_t = false, default_missing_value = "true", num_args = 0..=1, value_name = "BOOL")]
    conntrack_tcp_be_liberal: bool,

    /// How long a UDP flow without an answer is remembered, in seconds. 0 leaves it alone
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    conntrack_udp_timeout: u64,

    /// The same for a UDP flow with answers, in seconds. 0 leaves it alone
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    conntrack_udp_timeout_stream: u64,

    /// Where to write down what was there before; gone after a reboot, as the settings are
    #[arg(long, default_value = sysctls::STATE_FILE, value_name = "FILE")]
    state_file: PathBuf,
}

/// Why nothing is prepared.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// What was there before cannot be written down, so that nothing was changed.
    #[error(transparent)]
    Sysctls(#[from] SysctlsError),
    /// Nobody reads what we say.
    #[error("failed to write to standard output")]
    Output(#[from] std::io::Error),
}

impl Prepare {
    /// Sets everything that can be set. What cannot be set, since `/proc/sys` is read-only or the kernel has no such
    /// setting, is said and is no failure.
    ///
    /// # Errors
    /// When what was there before cannot be written down.
    pub fn run(self) -> Result<(), PrepareError> {
        let mut sysctls = Sysctls::open(&self.state_file)?;
        if !sysctls.exists("net/netfilter/nf_conntrack_max") {
            // The settings come with the kernel module, and that with the first question to it.
            if let Err(error) = Conntrack::open().and_then(|mut conntrack| conntrack.count()) {
                tracing::warn!(%error, "connection tracking cannot be asked, its settings may be missing");
            }
        }
        let rules = self.rules();
        // What an earlier run set and this one is not asked to.
        tell_put_back(sysctls.restore_but(&rules)?);
        let mut out = std::io::stdout().lock();
        for rule in &rules {
            match sysctls.apply(rule)? {
                Outcome::Kept(value) => writeln!(out, "{} = {value}, as it was", rule.name)?,
                Outcome::Changed { before, now } => writeln!(out, "{} = {now}, was {before}", rule.name)?,
                Outcome::Refused(error) => {
                    tracing::warn!(name = rule.name, error, "cannot be set, going on without");
                }
            }
        }
        Ok(())
    }

    fn rules(&self) -> Vec<Rule> {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let mut rules = Vec::new();
        if self.conntrack_max_per_core > 0 {
            let max = self.conntrack_max_per_core.saturating_mul(processors).max(self.conntrack_min);
            // The buckets first: a table that is larger than its buckets are many is slow.
            rules.push(Rule::at_least("net/netfilter/nf_conntrack_buckets", max / 4));
            rules.push(Rule::at_least("net/netfilter/nf_conntrack_max", max));
        }
        for (name, seconds) in [
            ("net/netfilter/nf_conntrack_tcp_timeout_established", self.conntrack_tcp_timeout_established),
            ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", self.conntrack_tcp_timeout_close_wait),
            ("net/netfilter/nf_conntrack_udp_timeout", self.conntrack_udp_timeout),
            ("net/netfilter/nf_conntrack_udp_timeout_stream", self.conntrack_udp_timeout_stream),
        ] {
            if seconds > 0 {
                rules.push(Rule::exactly(name, seconds));
            }
        }
        if self.conntrack_tcp_be_liberal {
            rules.push(Rule::exactly("net/netfilter/nf_conntrack_tcp_be_liberal", 1));
        }
        rules
    }
}

/// Puts back what was there before, as far as nobody else has changed it since; says what, and what cannot be put back.
///
/// # Errors
/// When what was written down cannot be read, or not brought up to date.
pub(crate) fn put_back(state_file: &Path) -> Result<(), SysctlsError> {
    tell_put_back(Sysctls::open(state_file)?.restore()?);
    Ok(())
}

fn tell_put_back(outcomes: Vec<(String, Outcome)>) {
    for (name, outcome) in outcomes {
        match outcome {
            Outcome::Changed { before, now } => tracing::info!(name, from = before, to = now, "put back a setting"),
            Outcome::Kept(value) => {
                tracing::info!(name, value, "left a setting alone that somebody else has changed since");
            }
            Outcome::Refused(error) => tracing::warn!(name, error, "a setting cannot be put back"),
        }
    }
}
