//! What faults are done with: parts that bring a network, a disk, a clock or a process into
//! trouble, and take it out again when they are dropped.
//!
//! | module | what |
//! |---|---|
//! | [`proxy`] | a TCP proxy with weather: slow, cut, refusing, resetting |
//! | [`clock`] | a wall clock that is wrong, for child processes |
//! | [`disk`] | a disk that is full, one that cannot flush |
//! | [`processes`] | signals, processes that stand still, the Python workers counted |

pub mod clock;
pub mod disk;
pub mod processes;
pub mod proxy;
