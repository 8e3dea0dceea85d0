//! Rules that the fact tables do not cover.
