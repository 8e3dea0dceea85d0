//! Types and reasons of the conditions that we write, so that no two places spell one differently.

/// On a Service: whether it has the addresses that it asks for.
pub const ADDRESS_ASSIGNED: &str = "steelyard.dev/AddressAssigned";
/// On a Service: whether some node announces its addresses.
pub const ANNOUNCED: &str = "steelyard.dev/Announced";
/// On a Service of any type: `False` while some node cannot forward for it as it asks; absent otherwise. The reason is what
/// the nodes say.
pub const PROGRAMMED: &str = "steelyard.dev/Programmed";
/// On our own kinds: whether the object is in use as written.
pub const READY: &str = "Ready";

/// Reasons of [`ADDRESS_ASSIGNED`] that are not a refusal; those are named by the refusal itself.
pub mod assigned {
    /// The Service has what it asks for.
    pub const ASSIGNED: &str = "Assigned";
    /// `PreferDualStack`: one family of two.
    pub const ONE_FAMILY: &str = "OneFamilyOnly";
    /// A new request could not be met; the present address stays.
    pub const REQUEST_REFUSED: &str = "RequestRefused";
}

/// Reasons of [`READY`] on a pool.
pub mod pool {
    /// In use as written.
    pub const ACCEPTED: &str = "Accepted";
    /// Shares addresses with another pool.
    pub const OVERLAPS: &str = "Overlaps";
    /// A field cannot be read.
    pub const INVALID: &str = "Invalid";
    /// All addresses are held.
    pub const EXHAUSTED: &str = "Exhausted";
}

/// Reasons of [`ANNOUNCED`].
pub mod announced {
    /// Every address is announced by a node.
    pub const ANNOUNCED: &str = "Announced";
    /// No node announces any of the addresses.
    pub const NO_NODE: &str = "NoNode";
    /// Some of the addresses are announced.
    pub const PARTLY: &str = "PartlyAnnounced";
}
