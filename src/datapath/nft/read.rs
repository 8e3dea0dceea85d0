//! Reads back what is in the kernel: what a former process left, or others made of it.

use super::decode;
use super::layout::{AFFINITY, LEARNERS, SLOT_CHAINS, sets, table};
use super::options::Options;
use super::sizes::Sizes;
use super::write::{layout_comment, structure};
use crate::datapath::plan::Found;
use crate::model::Family;
use crate::netlink::nf_tables::{Connection, ConnectionError};

/// Our table of a family, if it is there, has the comment of the layout that we would make, and its maps hold nothing that
/// we do not understand, and its chains and rules are those that we would write.
///
/// # Errors
///
/// When the kernel does not answer, refuses, or is never done with a dump before the next change.
pub fn found(connection: &mut Connection, family: Family, options: Options) -> Result<Option<Found>, ConnectionError> {
    let Some(dumped) = connection.table(table(family))? else { return Ok(None) };
    // Flags are none of the layout's: dormant, say.
    if dumped.comment != Some(layout_comment(family, options)) || dumped.flags != 0 {
        return Ok(None);
    }
    let sizes = connection.sizes(table(family))?;
    let Some(sizes) = Sizes::read(|map| sizes.get(map).copied()) else { return Ok(None) };
    let learners = connection.elements(table(family), LEARNERS)?;
    let slots = connection.elements(table(family), SLOT_CHAINS)?;
    let Some(classes) = decode::classes(&learners, &slots) else { return Ok(None) };
    if connection.structure(table(family))? != structure(family, options, &classes) {
        return Ok(None);
    }
    let mut elements = Vec::new();
    // What packets put there is nobody's wish, and stays.
    for set in sets(family, &sizes).iter().filter(|set| ![AFFINITY, LEARNERS, SLOT_CHAINS].contains(&set.name)) {
        let dumped = connection.elements(table(family), set.name)?;
        let Some(read) = decode::elements(set.name, family, &dumped) else { return Ok(None) };
        elements.extend(read);
    }
    Ok(Some(Found { family, classes, sizes, elements }))
}
