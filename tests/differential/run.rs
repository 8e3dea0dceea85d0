//! The run: one API server, site after site on it, and the account of what was found.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use steelyard::datapath::simulate::{Packet, Step};
use steelyard::names::ServiceKey;
use steelyard_lab::api_server::ApiServer;

use crate::arena::{Arena, Programs, Site};
use crate::cluster::{Cluster, Objects};
use crate::deliberate;
use crate::expected::Views;
use crate::flows::tally::Tally;
use crate::judge::{self, Case, Judgement};
use crate::proxies;
use crate::stage::namespace::{self, Namespace};
use crate::{random, report, tables};

/// Differences that are told in full.
const MOST_TOLD: usize = 6;
/// Flags of the API server: ports and spellings of addresses that older clusters have.
const API_FLAGS: [&str; 2] = ["--service-node-port-range=1000-32767", "--feature-gates=StrictIPCIDRValidation=false"];

/// Everything that the whole run shares.
pub struct Run {
    // Dropped in this order.
    arena: Option<Arena>,
    pub cluster: Cluster,
    control: Arc<Namespace>,
    programs: Programs,
    pub tally: Tally,
    deliberate: BTreeMap<&'static str, usize>,
    packets: usize,
    told: usize,
    started: Instant,
}

impl Run {
    pub fn start() -> Result<Self, String> {
        let started = Instant::now();
        namespace::prepare()?;
        let text = |error: steelyard_lab::Error| format!("{error:#}");
        let built = steelyard_lab::programs::ensure(&mut |line| say(line)).map_err(text)?;
        let control = Arc::new(Namespace::new("control")?);
        let server = ApiServer::start(control.name(), &built, &API_FLAGS).map_err(text)?;
        proxies::write_kubeconfig(&server)?;
        say(&format!("API server is ready after {:.1} s", started.elapsed().as_secs_f32()));
        let programs = Programs {
            kube_proxy: built.path("kube-proxy"),
            steelyard: PathBuf::from(env!("CARGO_BIN_EXE_steelyard")),
        };
        Ok(Self {
            arena: None,
            cluster: Cluster::new(server),
            control,
            programs,
            tally: Tally::default(),
            deliberate: BTreeMap::new(),
            packets: 0,
            told: 0,
            started,
        })
    }

    pub fn all(mut self) -> ExitCode {
        for title in deliberate::undocumented() {
            self.tally.fail("docs/datapath.md", format_args!("has no row for {title:?}"));
        }
        let only = std::env::var("STEELYARD_ONLY").unwrap_or_default();
        if only != "random" {
            self.tables();
        }
        if only != "tables"
            && let Err(error) = random::run(&mut self)
        {
            self.tally.fail("random objects", error);
        }
        for (title, count) in &self.deliberate {
            say(&format!("deliberate, {count} times: {title}"));
        }
        let took = self.started.elapsed().as_secs();
        say(&format!("{} connections through each of two kernels, {took} s", self.packets));
        let Self { arena, cluster, control, tally, .. } = self;
        drop(arena);
        drop(cluster);
        drop(control);
        tally.finish()
    }

    fn tables(&mut self) {
        let scenarios = match tables::scenarios() {
            Ok(scenarios) => scenarios,
            Err(error) => return self.tally.fail("fact tables", error),
        };
        for scenario in scenarios {
            let staged = self
                .enter(&scenario.site)
                .and_then(|()| self.become_these(&scenario.objects, scenario.zone.as_deref()));
            match staged {
                Ok(refused) if refused.is_empty() => {
                    let packets: Vec<Packet> = scenario.flows.iter().map(|(_, packet)| *packet).collect();
                    let names = scenario.flows.iter().map(|(name, _)| format!("{}: {name}", scenario.title)).collect();
                    if let Err(error) = self.compare(names, &packets, scenario.zone.as_deref()) {
                        self.fail_all(&scenario, &error);
                    }
                }
                Ok(refused) => {
                    for (name, _) in &scenario.flows {
                        let reason =
                            refused.first_key_value().map(|(key, why)| format!("{}: {why}", report::name_of(key)));
                        let reason = reason.unwrap_or_default();
                        self.tally.skip(
                            format_args!("{}: {name}", scenario.title),
                            format_args!("the API server refuses {reason}"),
                        );
                    }
                }
                Err(error) => {
                    // The next one begins anew.
                    self.arena = None;
                    self.fail_all(&scenario, &error);
                }
            }
        }
    }

    fn fail_all(&mut self, scenario: &tables::Staged, error: &str) {
        for (name, _) in &scenario.flows {
            self.tally.fail(format_args!("{}: {name}", scenario.title), error);
        }
    }

    /// Goes to a site; proxies start anew where it is another one.
    pub fn enter(&mut self, site: &Site) -> Result<(), String> {
        if self.arena.as_ref().is_some_and(|arena| arena.site == *site) {
            return Ok(());
        }
        self.arena = None;
        self.arena = Some(Arena::open(site.clone(), &mut self.cluster, &self.control, &self.programs)?);
        Ok(())
    }

    /// Goes to nodes as they are now, but to which nothing happened before.
    fn enter_anew(&mut self, zone: Option<&str>) -> Result<(), String> {
        let site = self.arena.take().ok_or("no nodes are there")?.site.clone();
        self.enter(&site)?;
        self.arena.as_mut().ok_or("no nodes are there")?.set_zone(&self.cluster, zone)
    }

    /// Makes the objects these; what the API server refused.
    pub fn become_these(
        &mut self,
        objects: &Objects,
        zone: Option<&str>,
    ) -> Result<BTreeMap<crate::cluster::Key, String>, String> {
        let arena = self.arena.as_mut().ok_or("no nodes are there")?;
        arena.set_zone(&self.cluster, zone)?;
        self.cluster.become_these(objects)
    }

    /// Waits until what is in the API server is programmed.
    pub fn settle(&mut self) -> Result<Views, String> {
        let arena = self.arena.as_mut().ok_or("no nodes are there")?;
        arena.settle(&mut self.cluster)
    }

    fn compare(&mut self, names: Vec<String>, packets: &[Packet], zone: Option<&str>) -> Result<(), String> {
        let mut expected = self.settle()?;
        // What the scenario before had to do with an address is no business of this one.
        let is_released = |packet: &Packet| {
            expected.ours.trace(*packet).steps.iter().any(|step| matches!(step, Step::JustReleased { .. }))
        };
        if packets.iter().any(is_released) {
            self.enter_anew(zone)?;
            expected = self.settle()?;
        }
        self.compare_with(&mut expected, names, packets)
    }

    /// Sends packets, judges, and tells of what is wrong.
    pub fn compare_with(&mut self, expected: &mut Views, names: Vec<String>, packets: &[Packet]) -> Result<(), String> {
        let arena = self.arena.as_ref().ok_or("no nodes are there")?;
        let outcomes = arena.send(expected, packets)?;
        let mut wrong = Vec::new();
        let cases: Vec<Case<'_>> =
            packets.iter().zip(&outcomes).map(|(packet, both)| Case::new(expected, *packet, both)).collect();
        for problem in judge::unsteady(&cases) {
            self.tally.fail("session affinity", problem);
        }
        for ((name, case), both) in names.into_iter().zip(cases).zip(&outcomes) {
            self.packets += both.ours.len();
            match case.judge(both) {
                Judgement::Same => self.tally.record(&name, Ok(())),
                Judgement::Deliberate(known) => {
                    *self.deliberate.entry(known.title).or_default() += 1;
                    self.tally.record(&name, Ok(()));
                }
                Judgement::Wrong(reason) => wrong.push((name, reason, case)),
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let listed = self.cluster.list()?;
        let mut alone = Vec::new();
        for (name, reason, case) in wrong {
            self.told += 1;
            if self.told <= MOST_TOLD {
                self.tally.fail(&name, report::tell(&reason, &case, arena, &listed));
                alone.push((name, case.packet, report::concerned(&case)));
            } else {
                let shown = [judge::show(&case.ours), judge::show(&case.theirs)];
                self.tally.fail(
                    &name,
                    format_args!("{reason}: simulate {}, ours {}, theirs {}", case.simulated, shown[0], shown[1]),
                );
            }
        }
        for (name, packet, services) in alone {
            let line = match self.try_alone(packet, &services) {
                Ok(line) => line,
                Err(error) => error,
            };
            say(&format!("        {name}: {line}"));
        }
        Ok(())
    }

    /// Tries a packet once more with nothing but the Services that have to do with it: what was printed of them then is
    /// all that it takes. The next round puts the others back.
    fn try_alone(&mut self, packet: Packet, services: &BTreeSet<ServiceKey>) -> Result<String, String> {
        let objects = report::only(self.cluster.written(), services);
        self.cluster.become_these(&objects)?;
        let mut expected = self.settle()?;
        let arena = self.arena.as_ref().ok_or("no nodes are there")?;
        let outcomes = arena.send(&mut expected, &[packet])?;
        let both = outcomes.first().ok_or("nothing was sent")?;
        let case = Case::new(&expected, packet, both);
        Ok(match case.judge(both) {
            Judgement::Wrong(reason) => {
                let [ours, theirs] = [&case.ours, &case.theirs].map(judge::show);
                format!("the objects above alone bring it about: {reason} (ours {ours}, theirs {theirs})")
            }
            Judgement::Same | Judgement::Deliberate(_) => {
                "the objects above alone do not bring it about: other Services or earlier changes have a part in it"
                    .to_owned()
            }
        })
    }
}

/// A line for whoever waits.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
