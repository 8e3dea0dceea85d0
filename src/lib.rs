//! Steelyard.
