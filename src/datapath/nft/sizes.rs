//! How many elements the maps have room for.
//!
//! A map of a known size is a plain hash table for the kernel (`nft_hash`): it finds a key sooner, and takes elements two to
//! three times as fast, than one that grows (`nft_rhash`), which is always behind while a whole cluster comes. But it takes no
//! more than its size, and is never made larger. So one that is full is made anew, with room to spare.

use super::elements::Element;
use super::layout::SIZED;

/// The least room, of 16 bytes each. In tests little, so that they see maps grow.
const LEAST: u32 = if cfg!(test) { 8 } else { 64 };

/// The room in each map of [`SIZED`], in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes([u32; SIZED.len()]);

impl Default for Sizes {
    fn default() -> Self {
        Self([LEAST; SIZED.len()])
    }
}

impl Sizes {
    /// What was found; nothing where a map has no size, so that the kernel lets it grow.
    pub fn read(size: impl Fn(&str) -> Option<u32>) -> Option<Self> {
        let mut sizes = Self::default();
        for (known, map) in sizes.0.iter_mut().zip(SIZED) {
            *known = size(map)?;
        }
        Some(sizes)
    }

    /// The room in a map.
    pub fn of(&self, map: &str) -> u32 {
        place(map).and_then(|place| self.0.get(place)).copied().unwrap_or(LEAST)
    }
}

/// The room in the maps of a table, and how much of it is taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rooms {
    sizes: Sizes,
    taken: [u32; SIZED.len()],
}

impl Rooms {
    /// Of maps that were found with these elements.
    pub fn with(sizes: Sizes, elements: &[Element]) -> Self {
        let mut rooms = Self { sizes, ..Self::default() };
        rooms.follow(&[], elements);
        rooms
    }

    /// The room in each.
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Elements went and came.
    pub fn follow(&mut self, deleted: &[Element], added: &[Element]) {
        let mut count = |elements: &[Element], is_more: bool| {
            for elements in elements.chunk_by(|left, right| left.set() == right.set()) {
                let taken = elements.first().and_then(|first| self.taken.get_mut(place(first.set())?));
                let count = u32::try_from(elements.len()).unwrap_or(u32::MAX);
                if let Some(taken) = taken {
                    *taken = if is_more { taken.saturating_add(count) } else { taken.saturating_sub(count) };
                }
            }
        };
        count(deleted, false);
        count(added, true);
    }

    /// Makes room for all that is in the maps, twice as much or more where there is too little, and names the maps that
    /// have to be made anew for it.
    pub fn grow(&mut self) -> Vec<&'static str> {
        let mut grown = Vec::new();
        for ((size, taken), map) in self.sizes.0.iter_mut().zip(self.taken).zip(SIZED) {
            if taken > *size {
                *size = taken.saturating_mul(2).checked_next_power_of_two().unwrap_or(u32::MAX);
                grown.push(map);
            }
        }
        grown
    }
}

fn place(map: &str) -> Option<usize> {
    SIZED.iter().position(|known| *known == map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster_ips(count: u32) -> Vec<Element> {
        (0..count).map(|number| Element::ClusterIp(std::net::Ipv4Addr::from(number).into())).collect()
    }

    #[test]
    fn a_map_that_is_full_gets_twice_as_much_room() {
        let mut rooms = Rooms::default();
        rooms.follow(&[], &cluster_ips(LEAST));
        assert!(rooms.grow().is_empty());
        rooms.follow(&[], &cluster_ips(1));
        assert_eq!(rooms.grow(), ["cluster_ips"]);
        let size = 4 * LEAST;
        assert_eq!((rooms.sizes().of("cluster_ips"), rooms.sizes().of("frontends")), (size, LEAST));
        rooms.follow(&cluster_ips(LEAST), &cluster_ips(size - 1));
        assert!(rooms.grow().is_empty(), "{rooms:?}");
        rooms.follow(&[], &cluster_ips(1));
        assert_eq!(rooms.grow(), ["cluster_ips"]);
    }

    #[test]
    fn sizes_are_known_only_where_all_maps_have_one() {
        let sizes = Sizes::read(|map| Some(if map == "services" { 9 } else { 7 })).unwrap();
        assert_eq!((sizes.of("services"), sizes.of("endpoints")), (9, 7));
        assert_eq!(Sizes::read(|map| (map != "services").then_some(7)), None);
    }
}
