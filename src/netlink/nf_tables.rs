//! Writes nf_tables by netlink, one transaction at a time, without the `nft` program.
//!
//! A [`Batch`] is built as bytes by pure functions and sent whole by a [`Connection`]: the kernel takes all of it or
//! nothing. Each message carries a name, so that an error of the kernel, which knows sequence numbers only, reads like
//! `add rule 3 of chain ip steelyard frontend: ENOENT`.
//!
//! Only what our datapath needs is here, and of that only register layouts that `nft` itself would have produced from a
//! text: on others `nft list ruleset` (1.0.6) aborts, and it is the administrator's tool.
//!
//! Numbers, names and attributes are those of the kernel's `include/uapi/linux/netfilter/nf_tables.h`.

pub(super) mod attribute;
pub(super) mod batch;
pub(super) mod connection;
mod element;
mod events;
mod expression;
mod foreign;
mod label;
pub(super) mod read;
mod set;
mod structure;
#[cfg(test)]
pub(crate) mod test;

pub use batch::{Batch, Chain, Hook, Table};
pub use connection::{Connection, ConnectionError, Failure, Failures};
pub use element::{ElementKind, ElementWriter};
pub use events::{Foreign, Listener, Process, Silencer};
pub use expression::{Compared, ConntrackKey, Expression, Fib, Header, MetaKey, Register, Verdict};

pub use foreign::ForeignRule;
pub use label::{Action, Object};
pub use read::{DumpedElement, DumpedTable};
pub use set::{Data, Field, Set, SetKind};
pub use structure::{ChainShape, Structure};

use crate::model::Family;

/// `NFPROTO_*`: the family byte of a table and of every message about it.
pub(super) const fn protocol_family(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// How `nft` spells the family of a table.
const fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}
