//! Labs for tests: one that all tests of a process share, and a guardian that takes it down when the process ends,
//! however it ends.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::unistd::setsid;

use crate::lab::{Datapath, Lab, Options};
use crate::layout::{LabName, Layout};
use crate::{Progress, lab, machine};

/// Waits in a process of its own until this value is gone, then takes the lab down.
#[derive(Debug)]
pub(crate) struct Guardian {
    process: Child,
    layout: Layout,
}

impl Guardian {
    /// Watch over the lab `name`.
    pub(crate) fn appoint(name: &LabName) -> Result<Self> {
        let layout = Layout::from_env(name.clone())?;
        let mut command = Command::new(machine::binary()?);
        command.args(["--name", name.as_str(), "guardian"]);
        // Its standard input ends when this process does.
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Ok(Self { process: command.spawn().context("failed to start the lab's guardian")?, layout })
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // The lab's machines are children of this process, so it is this one that should collect them. What fails here
        // is tried again by the guardian, which says so: `wait` lets go of its standard input.
        lab::down(&self.layout).ok();
        self.process.wait().ok();
    }
}

/// Be the guardian: wait for the end of standard input, then take the lab down and forget it.
pub fn guard(layout: &Layout) -> Result<()> {
    // Whatever stops the test (^C, say) must not stop this.
    setsid().ok();
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    lab::purge(layout)
}

/// The lab that this process shares.
static SHARED: Mutex<Option<&'static Lab>> = Mutex::new(None);

impl Lab {
    /// The lab that all tests of this process share: the running one that `STEELYARD_LAB` names, else one of three
    /// nodes that is started now and goes down when the process ends.
    ///
    /// # Errors
    /// If the lab of that name is not up, or cannot be started.
    pub fn shared(datapath: Datapath) -> Result<&'static Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lab) = *shared {
            return Ok(lab);
        }
        let lab = match LabName::named_by_env()? {
            Some(name) => Self::attach(name)?,
            None => {
                let name: LabName = format!("test-{}", std::process::id()).parse()?;
                Self::start_guarded(&Options { name, nodes: 3, datapath }, &Progress::new())?
            }
        };
        Ok(shared.insert(Box::leak(Box::new(lab))))
    }

    /// A lab of a test's own: it goes down when the value is dropped or the process ends.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn start_guarded(options: &Options, progress: &Progress) -> Result<Self> {
        let guardian = Guardian::appoint(&options.name)?;
        let mut lab = Self::start(options, progress)?;
        lab.set_guardian(guardian);
        Ok(lab)
    }
}
