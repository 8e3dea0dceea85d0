//! From the start of a proxy until all rules are in the kernel, and what it has cost by then.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::figures::{median, times};
use crate::kernel::Rules;
use crate::proxies::{Proxy, Who};
use crate::say;
use crate::world::World;

const LIMIT: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Runs {
    seconds: Vec<f64>,
    cpu: Vec<f64>,
    memory: Vec<f64>,
    most: Vec<f64>,
    child: Vec<f64>,
    at_end: Vec<f64>,
}

#[derive(Default)]
pub struct Starts(BTreeMap<(u32, Who), Runs>);

impl Starts {
    /// Measures one that has just been started.
    pub fn measure(&mut self, proxy: &mut Proxy, world: &World, size: u32) {
        let seconds = wait_until_programmed(proxy, world, size);
        proxy.wait_until_idle(world);
        let runs = self.0.entry((size, proxy.who)).or_default();
        runs.seconds.push(seconds);
        runs.cpu.push(proxy.cpu());
        runs.memory.push(proxy.memory());
        runs.most.push(proxy.most_memory());
        runs.child.push(proxy.most_of_children());
        say(&format!(
            "{size} Services, {}: {seconds:.2} s, {:.2} CPU s, {:.0} MiB, at most {:.0} MiB",
            proxy.who.name(),
            proxy.cpu(),
            proxy.memory(),
            proxy.most_memory()
        ));
    }

    /// What it holds after everything that was measured with it.
    pub fn note_memory_at_end(&mut self, proxy: &mut Proxy, size: u32) {
        self.0.entry((size, proxy.who)).or_default().at_end.push(proxy.memory());
    }

    pub fn print(&self, size: u32) {
        println!(
            "\n| {size} Services × 5, from start to all rules | median | best | worst | runs | CPU | resident | at most | at most, child | after the changes |\n\
             |---|---|---|---|---|---|---|---|---|---|"
        );
        for ((_, who), runs) in self.0.range((size, Who::Steelyard)..=(size, Who::KubeProxy)) {
            let (best, worst) =
                runs.seconds.iter().fold((f64::MAX, 0.0_f64), |(least, most), s| (least.min(*s), most.max(*s)));
            println!(
                "| {} | {:.2} s | {best:.2} s | {worst:.2} s | {} | {:.2} s | {:.0} MiB | {:.0} MiB | {:.0} MiB | {:.0} MiB |",
                who.name(),
                median(&runs.seconds),
                runs.seconds.len(),
                median(&runs.cpu),
                median(&runs.memory),
                median(&runs.most),
                median(&runs.child),
                median(&runs.at_end),
            );
        }
        if let (Some(ours), Some(theirs)) = (self.0.get(&(size, Who::Steelyard)), self.0.get(&(size, Who::KubeProxy))) {
            let ratio = |of: fn(&Runs) -> &Vec<f64>| times(median(of(theirs)) / median(of(ours)));
            println!(
                "| kube-proxy takes | {} | | | | {} | {} | {} | | {} |",
                ratio(|runs| &runs.seconds),
                ratio(|runs| &runs.cpu),
                ratio(|runs| &runs.memory),
                ratio(|runs| &runs.most),
                ratio(|runs| &runs.at_end),
            );
        }
    }
}

/// Seconds from its start to the commit after which everything was there. Asks for the kernel's generation every
/// millisecond, which costs nearly nothing, and counts only after it changed.
pub fn wait_until_programmed(proxy: &mut Proxy, world: &World, size: u32) -> f64 {
    let mut rules = Rules::of(world);
    let mut last = rules.generation();
    let mut looks = 0_u32;
    loop {
        let generation = rules.generation();
        let now = Instant::now();
        if generation != last {
            last = generation;
            if rules.hold(proxy.who, size) {
                return now.duration_since(proxy.started).as_secs_f64();
            }
        }
        if looks.is_multiple_of(50) {
            proxy.check();
            proxy.watch_children();
        }
        looks = looks.wrapping_add(1);
        if proxy.started.elapsed() > LIMIT {
            proxy.give_up("has not programmed everything");
        }
        thread::sleep(Duration::from_millis(1));
    }
}
