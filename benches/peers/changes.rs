//! One change at a time, from the request to the API server until the kernel has committed what follows from it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use steelyard_lab::api::Api as Lab;

use crate::figures::{at, median, times};
use crate::kernel::Commits;
use crate::objects::{scale_service, scale_slice};
use crate::proxies::{Proxy, Who};
use crate::say;
use crate::world::World;

const LIMIT: Duration = Duration::from_secs(120);
/// Between two changes, after the last of the proxy's transactions.
const REST: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    EndpointReplaced,
    ServiceAdded,
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            Self::EndpointReplaced => "one endpoint replaced",
            Self::ServiceAdded => "one Service added",
        }
    }
}

/// Milliseconds.
#[derive(Default)]
struct Delays {
    from_request: Vec<f64>,
    from_answer: Vec<f64>,
    cpu: Vec<f64>,
}

#[derive(Default)]
pub struct Changes(BTreeMap<(u32, What, Who), Delays>);

impl Changes {
    /// Some of both kinds with a proxy that is at rest.
    pub fn measure(&mut self, proxy: &mut Proxy, world: &World, api: &Lab, size: u32, round: u32) {
        let count = match proxy.who {
            Who::Steelyard | Who::Earlier => 40,
            Who::KubeProxy if size < 10_000 => 5,
            Who::KubeProxy => 1,
        };
        // Numbers of a round's own, so that every change changes something.
        let first = (round * 2 + u32::from(proxy.who != Who::Steelyard)) * 40;
        let number = |turn: u32| first + turn;
        for turn in 0..count {
            let client = api.client();
            let name = format!("scale-{}-slice", number(turn) % size);
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 200, 0, 0)) + number(turn)).to_string();
            let change = async move {
                let slices: Api<EndpointSlice> = Api::namespaced(client, "default");
                let mut slice = slices.get(&name).await?;
                slice.endpoints[0].addresses = vec![address];
                let requested = Instant::now();
                slices.replace(&name, &PostParams::default(), &slice).await?;
                Ok((requested, Instant::now()))
            };
            self.one(proxy, world, api, (size, What::EndpointReplaced), change);
        }
        for turn in 0..count {
            let number = 50_000 + number(turn);
            let (client, slice) = (api.client(), serde_json::from_value(scale_slice(number)).unwrap());
            let made = api.block_on(async move {
                Api::<EndpointSlice>::namespaced(client, "default").create(&PostParams::default(), &slice).await
            });
            made.unwrap().unwrap();
            // Endpoints of nothing yet.
            rest(proxy, world);
            let (client, service) = (api.client(), serde_json::from_value(scale_service(number)).unwrap());
            let change = async move {
                let services: Api<Service> = Api::namespaced(client, "default");
                let requested = Instant::now();
                services.create(&PostParams::default(), &service).await?;
                Ok((requested, Instant::now()))
            };
            self.one(proxy, world, api, (size, What::ServiceAdded), change);
        }
        for turn in 0..count {
            let name = format!("scale-{}", 50_000 + number(turn));
            let client = api.client();
            let deleted = api.block_on(async move {
                let any = DeleteParams::default();
                Api::<Service>::namespaced(client.clone(), "default").delete(&name, &any).await?;
                Api::<EndpointSlice>::namespaced(client, "default").delete(&format!("{name}-slice"), &any).await?;
                Ok::<_, kube::Error>(())
            });
            deleted.unwrap().unwrap();
        }
        proxy.wait_until_idle(world);
    }

    fn one(
        &mut self,
        proxy: &mut Proxy,
        world: &World,
        api: &Lab,
        (size, what): (u32, What),
        change: impl Future<Output = Result<(Instant, Instant), kube::Error>> + Send + 'static,
    ) {
        let commits = Commits::of(world);
        let before = proxy.cpu();
        let running = api.spawn(change).unwrap();
        let Some(committed) = commits.next(LIMIT) else { proxy.give_up("has not followed a change") };
        let (requested, answered) = api.block_on(running).unwrap().unwrap().unwrap();
        let delays = self.0.entry((size, what, proxy.who)).or_default();
        delays.from_request.push(committed.duration_since(requested).as_secs_f64() * 1000.0);
        // The watch may be quicker than the answer.
        delays.from_answer.push(committed.saturating_duration_since(answered).as_secs_f64() * 1000.0);
        rest(proxy, world);
        delays.cpu.push((proxy.cpu() - before) * 1000.0);
        // A run that is cut short has said something.
        let last = |delays: &[f64]| delays.last().copied().unwrap_or_default();
        let (request, answer) = (last(&delays.from_request), last(&delays.from_answer));
        say(&format!(
            "{}, {}: {request:.2} ms after the request, {answer:.2} ms after the answer",
            proxy.who.name(),
            what.name()
        ));
    }

    pub fn print(&self, size: u32) {
        if self.0.keys().all(|(of, ..)| *of != size) {
            return;
        }
        println!(
            "\n| {size} Services × 5, one change | changes | request → commit, p50 | p99 | answer → commit, p50 | p99 | CPU, mean |\n\
             |---|---|---|---|---|---|---|"
        );
        for what in [What::EndpointReplaced, What::ServiceAdded] {
            let of = |who| self.0.get(&(size, what, who));
            for who in [Who::Steelyard, Who::Earlier, Who::KubeProxy] {
                let Some(delays) = of(who) else { continue };
                println!(
                    "| {}, {} | {} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms | {:.1} ms |",
                    who.name(),
                    what.name(),
                    delays.from_request.len(),
                    median(&delays.from_request),
                    at(&delays.from_request, 99),
                    median(&delays.from_answer),
                    at(&delays.from_answer, 99),
                    delays.cpu.iter().sum::<f64>() / delays.cpu.len() as f64,
                );
            }
            if let (Some(ours), Some(theirs)) = (of(Who::Steelyard), of(Who::KubeProxy)) {
                let ratio = |share: usize, of: fn(&Delays) -> &Vec<f64>| {
                    let (ours, theirs) = (at(of(ours), share), at(of(theirs), share));
                    if ours < 0.01 { "-".to_owned() } else { times(theirs / ours) }
                };
                println!(
                    "| kube-proxy takes | | {} | {} | {} | {} | |",
                    ratio(50, |delays| &delays.from_request),
                    ratio(99, |delays| &delays.from_request),
                    ratio(50, |delays| &delays.from_answer),
                    ratio(99, |delays| &delays.from_answer),
                );
            }
        }
    }
}

/// Until the proxy has done what follows: kube-proxy works on long after a commit.
fn rest(proxy: &mut Proxy, world: &World) {
    match proxy.who {
        Who::Steelyard | Who::Earlier => {
            let commits = Commits::of(world);
            while commits.next(REST).is_some() {}
        }
        Who::KubeProxy => proxy.wait_until_idle(world),
    }
}
