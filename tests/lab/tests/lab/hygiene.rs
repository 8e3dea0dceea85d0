//! A lab leaves nothing behind, whatever ends it, and does not disturb another.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use steelyard_lab::cgroup::Hierarchies;
use steelyard_lab::{Datapath, Lab, LabName, Layout, Member, Options, Progress, machine, netns, wait};

use crate::alone;

fn options(name: &str) -> Options {
    Options { name: name.parse().unwrap(), nodes: 1, datapath: Datapath::None }
}

fn layout(name: &str) -> Layout {
    Layout::from_env(name.parse::<LabName>().unwrap()).unwrap()
}

/// Everything of the lab that the machine knows of.
fn traces(layout: &Layout) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    found.extend(
        netns::list().unwrap().into_iter().filter(|name| layout.owns_netns(name)).map(|n| format!("netns {n}")),
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = format!("steelyard-{}-", layout.name());
    let state = layout.state().display().to_string();
    found.extend(
        mounts.lines().filter(|line| line.contains(&ours) || line.contains(&state)).map(|l| format!("mount {l}")),
    );
    if Hierarchies::detect().unwrap().exists(&layout.cgroup()) {
        found.insert(format!("cgroup {}", layout.cgroup()));
    }
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| {
            fs::read(process.path().join(file)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
        };
        if read("cmdline").contains(&state) || read("cgroup").contains(&format!("/{}/", layout.cgroup())) {
            found.insert(format!("process {} {}", process.file_name().display(), read("cmdline").replace('\0', " ")));
        }
    }
    found
}

/// Files that are new or changed where a lab that writes outside its folder would write.
fn files_outside() -> BTreeSet<String> {
    let folders = ["/etc", "/opt", "/var/lib", "/usr/libexec", "/var/run", "/etc/cni"];
    let list =
        |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path().display().to_string());
    folders.into_iter().flat_map(list).collect()
}

#[test]
fn down_leaves_nothing_but_logs() {
    let _alone = alone();
    let layout = layout("leaves-nothing");
    let before = files_outside();
    let sysctls = || {
        ["vm/overcommit_memory", "kernel/panic", "net/ipv4/ip_forward"]
            .map(|key| fs::read_to_string(format!("/proc/sys/{key}")).unwrap())
    };
    let settings = sysctls();
    let lab = Lab::start(&options("leaves-nothing"), &Progress::new()).unwrap();
    let running = traces(&layout);
    for kind in ["netns", "mount", "cgroup", "process"] {
        assert!(running.iter().any(|trace| trace.starts_with(kind)), "this test does not see the lab's {kind}");
    }
    lab.down().unwrap();
    assert_eq!(traces(&layout), BTreeSet::new());
    assert_eq!(sysctls(), settings);
    let after: BTreeSet<_> = files_outside().difference(&before).cloned().collect();
    assert_eq!(after, BTreeSet::new());
    let left: BTreeSet<_> = fs::read_dir(layout.state()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, BTreeSet::from([layout.lock(), layout.logs()]));
    steelyard_lab::purge(&layout).unwrap();
    assert!(!layout.state().exists());
}

#[test]
fn up_after_a_kill_starts_anew() {
    let _alone = alone();
    let layout = layout("killed");
    let mut up = Command::new(machine::binary().unwrap())
        .args(["--name", "killed", "up", "--nodes", "1", "--without-datapath"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait("the node to be started", Duration::from_secs(60), || Ok(machine::pid(&layout, Member::Node(1)))).unwrap();
    up.kill().unwrap();
    up.wait().unwrap();
    assert_ne!(traces(&layout), BTreeSet::new());
    let lab = Lab::start(&options("killed"), &Progress::new()).unwrap();
    let nodes = lab.kubectl(&["get", "nodes"]).unwrap();
    assert!(nodes.contains("node1"), "{nodes}");
    drop(lab);
    steelyard_lab::purge(&layout).unwrap();
    assert_eq!(traces(&layout), BTreeSet::new());
}

#[test]
fn two_labs_run_side_by_side() {
    let _alone = alone();
    let progress = Progress::new();
    let one = Lab::start_guarded(&options("side-one"), &progress).unwrap();
    let two = Lab::start_guarded(&options("side-two"), &progress).unwrap();
    assert!(Lab::start(&options("side-one"), &progress).is_err(), "a lab that is up is not started again");
    one.kubectl(&["create", "configmap", "mine"]).unwrap();
    assert!(two.kubectl(&["get", "configmap", "mine"]).is_err());
    one.down().unwrap();
    two.kubectl(&["create", "configmap", "mine"]).unwrap();
    assert_eq!(traces(&layout("side-one")), BTreeSet::new());
    // The guardian takes it down.
    drop(two);
    assert_eq!(traces(&layout("side-two")), BTreeSet::new());
    assert!(!layout("side-two").state().exists());
}

#[test]
fn the_guardian_takes_the_lab_of_a_killed_test_down() {
    let _alone = alone();
    let layout = layout("orphan");
    let program = || Command::new(machine::binary().unwrap());
    let mut guardian = program().args(["--name", "orphan", "guardian"]).stdin(Stdio::piped()).spawn().unwrap();
    let up = program().args(["--name", "orphan", "up", "--nodes", "1", "--without-datapath"]).status().unwrap();
    assert!(up.success());
    assert_ne!(traces(&layout), BTreeSet::new());
    // What the end of a test process, whatever its cause, means to its guardian. Nobody told this one that the lab came
    // up: the logs are kept for whoever wants to know why.
    drop(guardian.stdin.take());
    assert!(guardian.wait().unwrap().success());
    assert_eq!(traces(&layout), BTreeSet::new());
    let left: BTreeSet<_> = fs::read_dir(layout.state()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, BTreeSet::from([layout.lock(), layout.logs()]));
    steelyard_lab::purge(&layout).unwrap();
}

/// On a machine with v1 controllers the v2 hierarchy has none, but processes can be held, frozen and killed by it alike.
#[test]
fn processes_are_held_frozen_and_killed_by_either_kind_of_cgroup() {
    let _alone = alone();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let only = |kind: &str| {
        let lines: Vec<&str> = mounts.lines().filter(|line| line.contains(&format!(" - {kind} "))).collect();
        Hierarchies::from_mountinfo(&lines.join("\n"))
    };
    let kinds = ["cgroup", "cgroup2"].map(|kind| (kind, only(kind)));
    let present: Vec<_> = kinds.iter().filter(|(kind, _)| mounts.contains(&format!(" - {kind} "))).collect();
    assert!(!present.is_empty(), "no cgroup hierarchy is mounted");
    for (kind, hierarchies) in present {
        let (lab, machine) = (format!("steelyard-try-{kind}"), format!("steelyard-try-{kind}/machine"));
        hierarchies.create(&machine).unwrap();
        let mut sleep = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(sleep.id()).unwrap();
        hierarchies.put(&machine, pid).unwrap();
        assert_eq!(hierarchies.processes(&lab), BTreeSet::from([pid]), "{kind}");
        hierarchies.freeze(&machine).unwrap();
        assert!(hierarchies.is_frozen(&machine), "{kind}");
        // Frozen or not.
        hierarchies.remove(&lab).unwrap();
        assert!(!sleep.wait().unwrap().success(), "{kind}");
        assert!(!hierarchies.exists(&lab), "{kind}");
    }
}
