//! Chaos: what faults are done with, and the judge.
//!
//! | module | what |
//! |---|---|
//! | [`proxy`] | a TCP proxy with weather: slow, cut, refusing, resetting |
//! | [`clock`] | a wall clock that is wrong, for child processes |
//! | [`disk`] | a disk that is full, one that cannot flush |
//! | [`processes`] | signals, processes that stand still, the Python workers counted |
//! | [`judge`] | what was sent against what is stored |

pub mod clock;
pub mod disk;
pub mod judge;
pub mod processes;
pub mod proxy;
