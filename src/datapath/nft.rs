//! The nf_tables backend: entries as elements of a constant set of maps, in one table per family.
//!
//! ```text
//!              nat prerouting, output (-100)                       nat postrouting (100)
//!  first   ┌──────────────────────────────────────┐             ┌──────────────────────────────────┐
//!  packet  │ frontends │ nodeports → kind . id    │             │ a pod that dialled a cluster IP: │
//! ───────▶ │ source_ranges, inside: drop, turn    │ ──────────▶ │ leave it; else                   │
//!          │ services → class . id: drop, reject  │             │ what was dialled → kind:         │
//!          │ slot_chains → slotsN                 │             │ masquerade or not                │
//!          │ endpoints[id . random N] → dnat      │             └──────────────────────────────────┘
//!          └──────────────────────────────────────┘
//! ```
//!
//! Where clients keep their endpoint, `stickyN_T` stands for `slotsN` and asks the map `affinity` first; what was chosen is
//! put there behind the translation (filter prerouting and output, -99), known by the memory beside the id in the priority.
//!
//! Hooks of type nat are called for the first packet of a connection alone: all others pay for the two filter chains that
//! remember, one comparison each, and where invalid packets are dropped for that question. Whatever is rejected or dropped here never becomes a connection, so the next try comes here too.
//!
//! What one lookup finds goes to the next in the packet's `meta priority`, which is nobody's to read in between. It is set
//! back to 0 in nat postrouting, for all that leave the node or go over its loopback. A packet that is delivered here, to
//! an endpoint in the node's own network, arrives with the number of its id. The packet's mark and the connection's are
//! left alone.
//!
//! Maps that grow with the cluster hold numbers, never verdicts: the kernel visits every verdict element again at each
//! commit. So a change costs what it changes, however many Services there are.

pub mod chains;
pub mod classes;
pub mod compose;
pub mod decode;
pub mod elements;
pub mod ids;
pub mod layout;
pub mod options;
pub mod read;
pub mod sizes;
pub mod write;
