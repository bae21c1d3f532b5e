//! Chaos: load, faults, and a judge.

pub mod judge;
