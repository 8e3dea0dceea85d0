//! Carries out a plan: the only part of the speaker that touches sockets. `apply/announcement.rs` tells the API.

pub mod announcement;

use std::collections::BTreeMap;
use std::io;

use thiserror::Error;

use super::l2::interface::{Responder, Settings};
use super::plan::{Change, Stations};
use crate::model::link::InterfaceIndex;
use crate::names::InterfaceName;

/// Why part of a plan was not carried out.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The interface's sockets.
    #[error("cannot answer on interface {interface}")]
    OpenSockets {
        /// The interface.
        interface: InterfaceName,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The responders of all interfaces. Dropping it silences the node.
#[derive(Debug)]
pub struct Responders {
    settings: Settings,
    running: BTreeMap<InterfaceIndex, Responder>,
}

impl Responders {
    /// None yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, running: BTreeMap::new() }
    }

    /// What is announced at this moment. Those that ended by themselves are forgotten.
    pub fn actual(&mut self) -> Stations {
        self.running.retain(|_, responder| !responder.is_finished());
        let station = |responder: &Responder| (responder.name().clone(), (*responder.station()).clone());
        self.running.iter().map(|(index, responder)| (*index, station(responder))).collect()
    }

    /// Makes the changes, in order, and gives what failed: an interface that fails is left out, the others are done.
    pub fn apply(&mut self, changes: Vec<Change>) -> Vec<ApplyError> {
        let mut errors = Vec::new();
        for change in changes {
            match change {
                Change::Stop(index) => {
                    self.running.remove(&index);
                }
                Change::Set(index, station) => {
                    if let Some(responder) = self.running.get(&index) {
                        responder.set(station);
                    }
                }
                Change::Start(index, interface, station) => {
                    match Responder::start(index, interface.clone(), station, self.settings.clone()) {
                        Ok(responder) => {
                            self.running.insert(index, responder);
                        }
                        Err(source) => errors.push(ApplyError::OpenSockets { interface, source }),
                    }
                }
            }
        }
        errors
    }
}
