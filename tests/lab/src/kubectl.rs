//! `kubectl` and `helm` where the API server can be reached.

use std::process::Command;

use anyhow::Result;

use crate::lab::Lab;
use crate::layout::Member;
use crate::netns;
use crate::run::{run, run_with_input};

impl Lab {
    /// A command with the lab's programs first on its path and the administrator's kubeconfig.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.program(program));
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        command.env("PATH", format!("{}:{path}", self.record().bin.display()));
        command.env("KUBECONFIG", self.layout().kubeconfig("admin"));
        command
    }

    /// Run `kubectl`; its output.
    ///
    /// # Errors
    /// If it fails; the error holds what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run_in_control("kubectl", arguments, None)
    }

    /// Run `helm`; its output.
    ///
    /// # Errors
    /// If it fails; the error holds what it said.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.run_in_control("helm", arguments, None)
    }

    /// Create or change the objects of a YAML text.
    ///
    /// # Errors
    /// If the API server refuses one; the error holds its reason.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.run_in_control("kubectl", &["apply", "--server-side", "--force-conflicts", "-f", "-"], Some(yaml))
    }

    /// Delete the objects of a YAML text and wait until they are gone; those that do not exist are fine.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn delete(&self, yaml: &str) -> Result<String> {
        self.run_in_control("kubectl", &["delete", "--ignore-not-found", "-f", "-"], Some(yaml))
    }

    fn run_in_control(&self, program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments);
        let netns = netns::open(&self.layout().netns(Member::Control))?;
        netns::within(netns, move || match input {
            Some(input) => run_with_input(&mut command, input),
            None => run(&mut command),
        })
    }
}
