//! What faults are done with: parts that bring a network, a disk, a clock or a process into
//! trouble, and take it out again when they are dropped.
//!
//! | module | what |
//! |---|---|
//! | [`proxy`] | a TCP proxy with weather: slow, cut, refusing, resetting |

pub mod proxy;
