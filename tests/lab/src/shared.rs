//! Labs for tests: one that all tests of a process share, and a guardian that takes it down when the process ends,
//! however it ends.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::unistd::setsid;

use crate::lab::{Datapath, Lab, Options};
use crate::layout::{LabName, Layout};
use crate::{Progress, down, machine};

/// Waits in a process of its own until this value is gone, then takes the lab down.
#[derive(Debug)]
pub(crate) struct Guardian {
    process: Child,
    layout: Layout,
}

/// What a guardian hears before the end of its standard input if the lab came up: then its logs have had their use.
/// Those of one that did not are what its error points to.
const CAME_UP: &str = "came up";

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

    /// Tell it that the lab came up.
    fn relieve_of_logs(&mut self) -> Result<()> {
        let stdin = self.process.stdin.as_mut().context("the guardian does not listen")?;
        Ok(stdin.write_all(CAME_UP.as_bytes())?)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // The lab's machines are children of this process, so it is this one that should collect them. What fails here
        // is tried again by the guardian, which says so: `wait` lets go of its standard input.
        down::down(&self.layout).ok();
        self.process.wait().ok();
    }
}

/// Be the guardian: wait for the end of standard input, then take the lab down, and forget it if it ever came up.
pub fn guard(layout: &Layout) -> Result<()> {
    // Whatever stops the test (^C, say) must not stop this.
    setsid().ok();
    let mut heard = Vec::new();
    std::io::stdin().lock().read_to_end(&mut heard)?;
    if heard == CAME_UP.as_bytes() { down::purge(layout) } else { down::down(layout) }
}

/// The lab that this process shares.
static SHARED: Mutex<Option<&'static Lab>> = Mutex::new(None);

impl Lab {
    /// The lab that all tests of this process share: the running one that `STEELYARD_LAB` names, else one of three
    /// nodes that is started now and goes down when the process ends.
    ///
    /// # Errors
    /// If the lab of that name is not up, has another datapath, or cannot be started.
    pub fn shared(datapath: Datapath) -> Result<&'static Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lab) = *shared {
            lab.expect_datapath(datapath)?;
            return Ok(lab);
        }
        let lab = match LabName::named_by_env()? {
            Some(name) => Self::attach(name)?,
            None => {
                let name: LabName = format!("test-{}", std::process::id()).parse()?;
                Self::start_guarded(&Options { name, nodes: 3, datapath }, &Progress::new())?
            }
        };
        lab.expect_datapath(datapath)?;
        Ok(shared.insert(Box::leak(Box::new(lab))))
    }

    /// What a test shows on a lab with another datapath is not what it says.
    fn expect_datapath(&self, wanted: Datapath) -> Result<()> {
        let (name, found) = (self.layout().name(), self.record().datapath);
        ensure!(found == wanted, "lab {name} was started with the datapath {found:?}; this needs {wanted:?}");
        Ok(())
    }

    /// A lab of a test's own: it goes down when the value is dropped or the process ends.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn start_guarded(options: &Options, progress: &Progress) -> Result<Self> {
        let mut guardian = Guardian::appoint(&options.name)?;
        let mut lab = Self::start(options, progress)?;
        guardian.relieve_of_logs()?;
        lab.set_guardian(guardian);
        Ok(lab)
    }
}
