//! Become another program somewhere in the lab.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use steelyard_lab::{Lab, Member, Place, netns};

/// `kubectl` or `helm`.
pub(crate) fn in_control(lab: &Lab, program: &str, arguments: &[String]) -> Result<ExitCode> {
    let mut command = lab.command(program);
    command.args(arguments);
    become_in(lab, Member::Control, command)
}

/// Any command at any place.
pub(crate) fn at(lab: &Lab, place: &Place, words: &[String]) -> Result<ExitCode> {
    let member = match place {
        Place::Pod { namespace, name } => {
            let terminal = if std::io::stdin().is_terminal() { "-it" } else { "-i" };
            let mut arguments = vec!["exec", terminal, "--namespace", namespace, name, "--"];
            arguments.extend(words.iter().map(String::as_str));
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            return in_control(lab, "kubectl", &arguments);
        }
        Place::Node(n) => Member::Node(*n),
        Place::Control => Member::Control,
        Place::Client => Member::Client,
        Place::Remote => Member::Remote,
        Place::Router => Member::Router,
    };
    let (program, arguments) = words.split_first().context("no command")?;
    if matches!(member, Member::Node(_) | Member::Control) {
        let mut command = lab.enter(member)?;
        command.args(words);
        // The lab's programs (`ctr`, `kubectl`) are at hand there too.
        command.env("PATH", path_of(&lab.command("kubectl")));
        command.env("KUBECONFIG", lab.layout().kubeconfig("admin"));
        command.env("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock").env("CONTAINERD_NAMESPACE", "k8s.io");
        return Err(command.exec()).context("failed to run nsenter (Debian package util-linux)");
    }
    let mut command = Command::new(program);
    command.args(arguments);
    become_in(lab, member, command)
}

fn become_in(lab: &Lab, member: Member, mut command: Command) -> Result<ExitCode> {
    setns(netns::open(&lab.layout().netns(member))?, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("failed to enter the network of {member} (are you root?)"))?;
    let program = command.get_program().to_string_lossy().into_owned();
    Err(command.exec()).with_context(|| format!("failed to run {program}"))
}

fn path_of(command: &Command) -> std::ffi::OsString {
    let path = command.get_envs().find(|(key, _)| *key == "PATH").and_then(|(_, value)| value);
    path.unwrap_or_default().to_owned()
}
