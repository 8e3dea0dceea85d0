//! What users write: names of annotations, labels, conditions and reasons, and the kinds of group `steelyard.dev`.
//! No behaviour beyond reading and printing.

pub mod annotations;
