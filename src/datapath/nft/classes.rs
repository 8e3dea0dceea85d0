//! Which chain has which class: one for each number of endpoints, and those that remember clients.
//!
//! A class stays while the table does: when none is left, a new table has only those in use.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::ids::{Class, Exhausted};

/// How clients are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recall {
    /// For how many seconds after their last new connection.
    pub seconds: u32,
    /// In IPv6 only those whose endpoint has this port, since a memory of addresses with ports would not fit into the
    /// registers that nft lays out when it loads such a rule. `None` remembers the port too.
    pub port: Option<u16>,
}

impl Recall {
    /// The span as one.
    pub fn timeout(self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

/// How clients are remembered, and the class by which those are known that are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory {
    /// The class.
    pub class: Class,
    /// How.
    pub recall: Recall,
}

/// What a class is for: each has a chain in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Remembers where a client went. Before the others, which name its class.
    Learn(Memory),
    /// Picks one of so many slots; with a memory only for clients that are not in it.
    Slots {
        /// How many.
        slots: u32,
        /// Who is remembered.
        memory: Option<Memory>,
    },
}

impl Purpose {
    /// The name of the chain.
    pub fn chain_name(&self) -> Cow<'static, str> {
        let recall = |recall: &Recall| match recall.port {
            None => recall.seconds.to_string(),
            Some(port) => format!("{}_{port}", recall.seconds),
        };
        match self {
            Self::Slots { slots, memory: None } => format!("slots{slots}"),
            Self::Slots { slots, memory: Some(memory) } => format!("sticky{slots}_{}", recall(&memory.recall)),
            Self::Learn(memory) => format!("learn{}", recall(&memory.recall)),
        }
        .into()
    }

    /// What a chain of this name and class is for. Who is remembered is told by a chain of its own, read before.
    pub fn of_chain(name: &str, class: Class, memories: &[Memory]) -> Option<Self> {
        let recall = |text: &str| -> Option<Recall> {
            Some(match text.split_once('_') {
                None => Recall { seconds: text.parse().ok()?, port: None },
                Some((seconds, port)) => Recall { seconds: seconds.parse().ok()?, port: Some(port.parse().ok()?) },
            })
        };
        let slots = |text: &str| text.parse().ok().filter(|slots| *slots > 0);
        if let Some(text) = name.strip_prefix("learn") {
            return Some(Self::Learn(Memory { class, recall: recall(text)? }));
        }
        if let Some(text) = name.strip_prefix("sticky") {
            let (text, rest) = text.split_once('_')?;
            let recall = recall(rest)?;
            let memory = memories.iter().find(|memory| memory.recall == recall)?;
            return Some(Self::Slots { slots: slots(text)?, memory: Some(*memory) });
        }
        Some(Self::Slots { slots: slots(name.strip_prefix("slots")?)?, memory: None })
    }
}

/// Who has which class.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    slots: BTreeMap<(u32, Option<Memory>), Class>,
    memories: BTreeMap<Recall, Class>,
    new: Vec<(Purpose, Class)>,
}

impl Classes {
    /// The class of a number of slots, a new one if it has none.
    ///
    /// # Errors
    ///
    /// When all are taken.
    pub fn take(&mut self, slots: u32, memory: Option<Memory>) -> Result<Class, Exhausted> {
        if let Some(class) = self.slots.get(&(slots, memory)) {
            return Ok(*class);
        }
        let class = Class::next(self.slots.values().max().copied(), Class::FIRST_OF_SLOTS)
            .filter(|class| *class <= Class::LAST_OF_SLOTS)
            .ok_or(Exhausted::Classes)?;
        self.slots.insert((slots, memory), class);
        self.new.push((Purpose::Slots { slots, memory }, class));
        Ok(class)
    }

    /// The class of a way to remember, a new one if it has none.
    ///
    /// # Errors
    ///
    /// When all are taken.
    pub fn take_memory(&mut self, recall: Recall) -> Result<Memory, Exhausted> {
        if let Some(class) = self.memories.get(&recall) {
            return Ok(Memory { class: *class, recall });
        }
        let class =
            Class::next(self.memories.values().max().copied(), Class::FIRST_MEMORY).ok_or(Exhausted::Classes)?;
        let memory = Memory { class, recall };
        self.memories.insert(recall, class);
        self.new.push((Purpose::Learn(memory), class));
        Ok(memory)
    }

    /// Whether clients may be remembered to have gone there.
    pub fn remembers(&self, memory: Class, to: SocketAddr) -> bool {
        let recall = self.memories.iter().find(|(_, class)| **class == memory).map(|(recall, _)| recall);
        recall.is_some_and(|recall| recall.port.is_none_or(|port| port == to.port()))
    }

    /// Takes over those that have their chains in the kernel already.
    pub fn adopt(found: &[(Purpose, Class)]) -> Self {
        let mut classes = Self::default();
        for (purpose, class) in found {
            match *purpose {
                Purpose::Slots { slots, memory } => drop(classes.slots.insert((slots, memory), *class)),
                Purpose::Learn(memory) => drop(classes.memories.insert(memory.recall, *class)),
            }
        }
        classes
    }

    /// Whether there are more than these.
    pub fn are_more_than(&self, used: &BTreeSet<Class>) -> bool {
        self.slots.values().chain(self.memories.values()).any(|class| !used.contains(class))
    }

    /// All that were given.
    pub fn all(&self) -> impl Iterator<Item = (Purpose, Class)> {
        let learn =
            |(recall, class): (&Recall, &Class)| (Purpose::Learn(Memory { class: *class, recall: *recall }), *class);
        let pick = |(slots, class): (&(u32, Option<Memory>), &Class)| {
            (Purpose::Slots { slots: slots.0, memory: slots.1 }, *class)
        };
        self.memories.iter().map(learn).chain(self.slots.iter().map(pick))
    }

    /// Those given since the last time, which need their chains.
    pub fn drain_new(&mut self) -> Vec<(Purpose, Class)> {
        std::mem::take(&mut self.new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE_HOURS: Recall = Recall { seconds: 10_800, port: None };

    fn class(number: u32) -> Class {
        Class::next(None, Class::FIRST_OF_SLOTS + number).unwrap()
    }

    #[test]
    fn classes_are_remembered_and_end() {
        let mut classes = Classes::default();
        assert_eq!(classes.take(5, None), Ok(class(0)));
        assert_eq!(classes.take(7, None), Ok(class(1)));
        assert_eq!(classes.take(5, None), Ok(class(0)));
        let of = |slots| Purpose::Slots { slots, memory: None };
        assert_eq!(classes.drain_new(), [(of(5), class(0)), (of(7), class(1))]);
        assert_eq!(classes.drain_new(), []);
        let mut given = 2;
        while classes.take(100 + given, None).is_ok() {
            given += 1;
        }
        assert_eq!(given, 765);
        assert_eq!(classes.take(90_000, None), Err(Exhausted::Classes));
        assert!(classes.take_memory(THREE_HOURS).is_ok(), "these have a range of their own");
        let mut memories = 1;
        while classes.take_memory(Recall { seconds: memories, port: None }).is_ok() {
            memories += 1;
        }
        assert_eq!(memories, 256);
    }

    #[test]
    fn chains_with_and_without_memory_are_told_apart() {
        let mut classes = Classes::default();
        let memory = classes.take_memory(THREE_HOURS).unwrap();
        let shorter = classes.take_memory(Recall { seconds: 60, port: Some(80) }).unwrap();
        assert_ne!(memory.class, shorter.class);
        let taken = [None, Some(memory), Some(shorter)].map(|memory| classes.take(3, memory).unwrap());
        assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 3);
        let memories = [memory, shorter];
        for (purpose, class) in classes.drain_new() {
            assert_eq!(Purpose::of_chain(&purpose.chain_name(), class, &memories), Some(purpose));
        }
        for foreign in ["slots0", "slots", "sticky3_", "sticky3_5", "learn", "frontend"] {
            assert_eq!(Purpose::of_chain(foreign, memory.class, &memories), None, "{foreign}");
        }
    }
}
