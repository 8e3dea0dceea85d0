//! What the datapath has in this node's kernel, as the speaker must know it before it attracts traffic.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// For which load-balancer addresses the kernel of this node forwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Programmed {
    /// The datapath has not finished its first turn: this node is not ready to be given addresses.
    #[default]
    Starting,
    /// Somebody else forwards (`datapath.mode: off`), and is trusted to.
    All,
    /// These, and no others.
    These(BTreeSet<IpAddr>),
}

impl Programmed {
    /// Whether packets to the address are forwarded here.
    pub fn has(&self, address: IpAddr) -> bool {
        match self {
            Self::Starting => false,
            Self::All => true,
            Self::These(addresses) => addresses.contains(&address),
        }
    }

    /// Whether there is an answer at all.
    pub fn is_settled(&self) -> bool {
        match self {
            Self::Starting => false,
            Self::All | Self::These(_) => true,
        }
    }
}
