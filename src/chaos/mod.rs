//! Chaos: load, faults, and a judge. What `millstream chaos` does.
//!
//! | module | what |
//! |---|---|
//! | [`fault`], [`plan`] | which faults there are, and which come when: a pure function of a seed |
//! | [`rig`], [`lane`] | the system under test, and who does things to its parts one after the other |
//! | [`inject`] | how each fault is done, and undone |
//! | [`proxy`], [`clock`], [`disk`], [`processes`] | what faults are done with |
//! | [`run`], [`watch`], [`offsets`] | a run, and what is looked at meanwhile |
//! | [`judge`], [`report`] | what was sent against what is stored, and the verdict |
//! | [`remote`] | the same with a node that somebody runs |
//!
//! It uses nothing that an operator could not: processes, signals, sockets, the node's interface. So
//! what it proves holds for the program as it is shipped.

pub mod clock;
pub mod disk;
pub mod fault;
pub mod http;
pub mod inject;
pub mod judge;
pub mod lane;
pub mod offsets;
pub mod plan;
pub mod processes;
pub mod proxy;
pub mod remote;
pub mod report;
pub mod rig;
pub mod run;
mod verdict;
pub mod watch;
