//! The numbers that maps hand to each other in `meta priority`, and who has which.
//!
//! ```text
//!  31 30 29    24 23  20 19                       0
//! +-----+--------+------+--------------------------+
//! | 1 1 |  kind  |  0   | id                       |  a frontend: how its packets are treated, and whose it is
//! +-----+--------+------+--------------------------+
//! | 1 1 |     class     | id                       |  a service: what becomes of its packets
//! +-----+---------------+--------------------------+
//! | 1 1 |       0       | id                       |  the key of services, and with a slot of endpoints
//! +-----+---------------+--------------------------+
//! | 1 1 | 1 1 memory    | id                       |  likewise where clients keep their endpoint
//! +-----+---------------+--------------------------+
//! ```
//!
//! The two highest bits tell our numbers from an application's `SO_PRIORITY` and from the handles that `tc` gives out by
//! itself. An id is a Service port in one policy; a class is a number of slots, or what to do without any, or how
//! clients are remembered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use thiserror::Error;

use crate::datapath::entry::{EntryKey, Treatment};
use crate::model::flat::pack;
use crate::model::service::TrafficPolicy;

/// In every number of ours.
pub const MARKER: u32 = 0xc000_0000;
/// The marker and the id.
pub const ID_MASK: u32 = 0xc00f_ffff;
/// The kind.
pub const KIND_MASK: u32 = 0x3f00_0000;
/// The marker and the class.
pub const CLASS_MASK: u32 = 0xfff0_0000;
/// The bits that all classes of memories have set and no other class has.
pub const MEMORY_MARKER: u32 = 0xf000_0000;

const KIND_SHIFT: u32 = 24;
const CLASS_SHIFT: u32 = 20;
const LAST_ID: u32 = (1 << 20) - 1;
const LAST_CLASS: u32 = (1 << 10) - 1;

/// No number is left.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Exhausted {
    /// There are a million Service ports and policies.
    #[error("no id is left for another service port")]
    Ids,
    /// There are hundreds of different numbers of endpoints.
    #[error("no class is left for another number of endpoints")]
    Classes,
    /// There are hundreds of different session affinity timeouts, or of numbers of endpoints with one.
    #[error("no class is left for another session affinity timeout")]
    Affinity,
}

/// A Service port in one policy, as the kernel knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u32);

impl Id {
    /// As `meta priority`.
    pub const fn priority(self) -> u32 {
        MARKER | self.0
    }

    /// As `meta priority` of one whose clients may be remembered.
    pub const fn priority_in(self, memory: Option<Class>) -> u32 {
        match memory {
            None => self.priority(),
            Some(class) => class.priority() | self.0,
        }
    }

    /// The id in a number of ours, whatever else is in it.
    pub const fn from_priority(priority: u32) -> Option<Self> {
        if priority & MARKER == MARKER { Some(Self(priority & LAST_ID)) } else { None }
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({})", self.0)
    }
}

/// How packets to a frontend are treated, in six bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(u32);

impl Kind {
    const EXTERNAL_BIT: u32 = 1;
    const LOCAL_BIT: u32 = 2;
    const FILTERED_BIT: u32 = 4;

    /// In the numbers of all kinds that get the endpoints of this node.
    pub const LOCAL_MASK: u32 = Self::LOCAL_BIT << KIND_SHIFT;
    /// In the numbers of all kinds that are for certain sources.
    pub const FILTERED_MASK: u32 = Self::FILTERED_BIT << KIND_SHIFT;
    /// Only this of [`Self::SIDE_MASK`] have all kinds that get all endpoints from outside.
    pub const OUTSIDE: u32 = Self::EXTERNAL_BIT << KIND_SHIFT;
    /// From where a kind comes, and to whom.
    pub const SIDE_MASK: u32 = (Self::EXTERNAL_BIT | Self::LOCAL_BIT) << KIND_SHIFT;

    /// A cluster IP, in either policy.
    pub const INTERNAL: Self = Self(0);
    /// From outside, to all endpoints.
    pub const EXTERNAL: Self = Self(Self::EXTERNAL_BIT);
    /// From outside, to those of this node.
    pub const EXTERNAL_LOCAL: Self = Self(Self::EXTERNAL_BIT | Self::LOCAL_BIT);
    /// As [`Self::EXTERNAL`], for certain sources.
    pub const FILTERED: Self = Self(Self::EXTERNAL_BIT | Self::FILTERED_BIT);
    /// As [`Self::EXTERNAL_LOCAL`], for certain sources.
    pub const FILTERED_LOCAL: Self = Self(Self::EXTERNAL_BIT | Self::LOCAL_BIT | Self::FILTERED_BIT);

    const fn priority(self) -> u32 {
        MARKER | self.0 << KIND_SHIFT
    }

    const fn of(treatment: Treatment) -> Self {
        match treatment {
            Treatment::Internal(_) => Self::INTERNAL,
            Treatment::External { policy: TrafficPolicy::Cluster, is_filtered: false } => Self::EXTERNAL,
            Treatment::External { policy: TrafficPolicy::Cluster, is_filtered: true } => Self::FILTERED,
            Treatment::External { policy: TrafficPolicy::Local, is_filtered: false } => Self::EXTERNAL_LOCAL,
            Treatment::External { policy: TrafficPolicy::Local, is_filtered: true } => Self::FILTERED_LOCAL,
        }
    }
}

/// What a frontend leads to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendValue(u32);

impl FrontendValue {
    /// The kind of a treatment, and an id.
    pub const fn new(treatment: Treatment, id: Id) -> Self {
        Self(Kind::of(treatment).priority() | id.0)
    }

    /// As `meta priority`.
    pub const fn priority(self) -> u32 {
        self.0
    }

    /// The id.
    pub const fn id(self) -> Id {
        Id(self.0 & LAST_ID)
    }

    /// Whether it is that of a cluster IP.
    pub const fn is_internal(self) -> bool {
        self.0 & KIND_MASK == 0
    }

    /// As read from the kernel.
    pub const fn from_priority(priority: u32) -> Option<Self> {
        if priority & MARKER == MARKER { Some(Self(priority)) } else { None }
    }
}

impl fmt::Debug for FrontendValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// What becomes of the packets of an id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class(u32);

impl Class {
    /// Nowhere to go, and the client is told.
    pub const REJECT: Self = Self(1);
    /// Nowhere to go, silently.
    pub const DROP: Self = Self(2);
    pub(super) const FIRST_OF_SLOTS: u32 = 3;
    pub(super) const LAST_OF_SLOTS: Self = Self(Self::FIRST_MEMORY - 1);
    pub(super) const FIRST_MEMORY: u32 = 3 << 8;
    /// How many there can be.
    pub const COUNT: u32 = LAST_CLASS + 1;
    /// How many of them can be memories.
    pub const MEMORIES: u32 = Self::COUNT - Self::FIRST_MEMORY;

    /// The one after the last, or else the first.
    pub(super) fn next(last: Option<Self>, first: u32) -> Option<Self> {
        let number = last.map_or(first, |last| last.0 + 1);
        (number <= LAST_CLASS).then_some(Self(number))
    }

    /// As `meta priority` without an id.
    pub const fn priority(self) -> u32 {
        MARKER | self.0 << CLASS_SHIFT
    }

    /// The memory in the number of one whose clients may be remembered, none in others.
    pub const fn memory_in(priority: u32) -> Option<Self> {
        match Self::from_priority(priority) {
            Some(class) if class.0 >= Self::FIRST_MEMORY => Some(class),
            Some(_) | None => None,
        }
    }

    /// The class in a service's number.
    pub const fn from_priority(priority: u32) -> Option<Self> {
        if priority & MARKER == MARKER { Some(Self((priority & !MARKER) >> CLASS_SHIFT)) } else { None }
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Class({})", self.0)
    }
}

/// An id with the memory of its clients: the key of what they went to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sticky(u32);

impl Sticky {
    /// Of these two.
    pub const fn new(id: Id, memory: Class) -> Self {
        Self(id.priority_in(Some(memory)))
    }

    /// As read from the kernel; there is none without a memory.
    pub const fn from_priority(priority: u32) -> Option<Self> {
        match Class::memory_in(priority) {
            Some(_) => Some(Self(priority)),
            None => None,
        }
    }

    /// The id.
    pub const fn id(self) -> Id {
        Id(self.0 & LAST_ID)
    }
}

impl fmt::Debug for Sticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// Who has which id. An id stays with its Service port for as long as this is there.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    taken: BTreeMap<EntryKey, PolicyIds>,
    last: u32,
    /// Those given back, longest ago first: a number is not taken again at once.
    free: VecDeque<Id>,
}

/// The ids of a Service port.
#[derive(Clone, Copy, Debug, Default)]
pub struct PolicyIds {
    cluster: Option<Id>,
    local: Option<Id>,
}

impl PolicyIds {
    const fn of(&mut self, policy: TrafficPolicy) -> &mut Option<Id> {
        match policy {
            TrafficPolicy::Cluster => &mut self.cluster,
            TrafficPolicy::Local => &mut self.local,
        }
    }
}

impl Ids {
    /// The id of a Service port and policy, a new one if it has none.
    ///
    /// # Errors
    ///
    /// When all are taken.
    pub fn take(&mut self, key: &EntryKey, policy: TrafficPolicy) -> Result<Id, Exhausted> {
        if let Some(id) = self.get(key, policy) {
            return Ok(id);
        }
        let id = if self.last < LAST_ID {
            self.last += 1;
            Id(self.last)
        } else {
            self.free.pop_front().ok_or(Exhausted::Ids)?
        };
        *self.taken.entry(key.clone()).or_default().of(policy) = Some(id);
        Ok(id)
    }

    /// Gives back memory to spare.
    pub fn pack(&mut self) {
        pack(&mut self.taken);
    }

    /// Whether nobody has one, and none was ever given.
    pub const fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// Those who have one.
    pub fn keys(&self) -> impl Iterator<Item = &EntryKey> {
        self.taken.keys()
    }

    /// The id, if it has one.
    pub fn get(&self, key: &EntryKey, policy: TrafficPolicy) -> Option<Id> {
        *self.taken.get(key).copied()?.of(policy)
    }

    /// All ids that it has.
    pub fn all_of(&self, key: &EntryKey) -> PolicyIds {
        self.taken.get(key).copied().unwrap_or_default()
    }

    /// Gives these back what they had: no more, and no less.
    pub fn restore(&mut self, before: &[(EntryKey, PolicyIds)]) {
        for (key, ids) in before {
            for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
                if self.get(key, policy) != *ids.clone().of(policy) {
                    self.release(key, policy);
                }
            }
        }
        for (key, ids) in before {
            for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
                if let Some(id) = *ids.clone().of(policy)
                    && self.get(key, policy).is_none()
                {
                    self.free.retain(|free| *free != id);
                    *self.taken.entry(key.clone()).or_default().of(policy) = Some(id);
                }
            }
        }
    }

    /// Takes over an id that the kernel has for it already, unless it has one or another has this.
    pub fn adopt(&mut self, key: &EntryKey, policy: TrafficPolicy, id: Id, adopted: &mut BTreeSet<Id>) {
        if id.0 > 0 && self.get(key, policy).is_none() && adopted.insert(id) {
            *self.taken.entry(key.clone()).or_default().of(policy) = Some(id);
            self.last = self.last.max(id.0);
        }
    }

    /// After the last adoption: what lies between those adopted is free.
    pub fn free_all_but(&mut self, adopted: &BTreeSet<Id>) {
        self.free = (1..=self.last).map(Id).filter(|id| !adopted.contains(id)).collect();
    }

    /// Gives the id back.
    pub fn release(&mut self, key: &EntryKey, policy: TrafficPolicy) {
        let Some(ids) = self.taken.get_mut(key) else { return };
        self.free.extend(ids.of(policy).take());
        if ids.cluster.is_none() && ids.local.is_none() {
            self.taken.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::nft::compose::test::key;

    #[test]
    fn an_id_stays_and_is_not_given_twice() {
        let mut ids = Ids::default();
        let first = ids.take(&key("a"), TrafficPolicy::Cluster).unwrap();
        assert_ne!(ids.take(&key("a"), TrafficPolicy::Local).unwrap(), first);
        assert_ne!(ids.take(&key("b"), TrafficPolicy::Cluster).unwrap(), first);
        assert_eq!(ids.take(&key("a"), TrafficPolicy::Cluster).unwrap(), first);
    }

    #[test]
    fn a_released_id_rests_until_all_were_given() {
        let mut ids = Ids::default();
        let first = ids.take(&key("a"), TrafficPolicy::Cluster).unwrap();
        ids.release(&key("a"), TrafficPolicy::Cluster);
        assert_ne!(ids.take(&key("a"), TrafficPolicy::Cluster).unwrap(), first);
        ids.last = LAST_ID;
        assert_eq!(ids.take(&key("b"), TrafficPolicy::Cluster), Ok(first));
        assert_eq!(ids.take(&key("c"), TrafficPolicy::Cluster), Err(Exhausted::Ids));
    }

    #[test]
    fn numbers_do_not_run_into_each_other() {
        let id = Id(LAST_ID);
        let treatment = Treatment::External { policy: TrafficPolicy::Local, is_filtered: true };
        let value = FrontendValue::new(treatment, id);
        assert_eq!(value.id(), id);
        assert_eq!(value.priority() & !ID_MASK, Kind::FILTERED_LOCAL.priority() & !ID_MASK);
        assert_eq!(value.priority() & ID_MASK, id.priority());
        let service = Class(LAST_CLASS).priority() | id.priority();
        assert_eq!(service & CLASS_MASK, Class(LAST_CLASS).priority());
        assert_eq!(service & ID_MASK, id.priority());
        assert_eq!(Class::from_priority(service), Some(Class(LAST_CLASS)));
        assert_eq!(Id::from_priority(service), Some(id));
        assert_eq!(Id::from_priority(6), None);
    }
}
