//! The delivery protocol as plain data and rules, without actors, clocks or networks.
//!
//! | module | rule |
//! |---|---|
//! | [`source`] | what a source is called, what a token is |
//! | [`ticket`] | a batch that is dropped unsettled makes its source open again |
//! | [`accumulator`] | when a batch closes |
//! | [`window`] | in which order, and how many at once, batches of a source go to the store |
//! | [`apply`] | what the store does with a batch: apply, duplicate, gap, overlap, fenced |
//! | [`new_partition`] | why a partition that came later waits for the older ones |
//! | [`quarantine`] | what becomes of an entry that the store died over |
//! | [`lease`] | how many Python workers may live, and when Redis knows it |
//! | [`plain_writes`] | which position an entry of the plain writes' stream has |
//! | [`script_history`] | which version of its script a stream runs |
//! | [`version`] | which of two values of a feature is the newer |
//! | [`online`] | which online writes take effect |
//! | [`generation`] | what the store does when Redis lost data |
//!
//! The statement they serve together: for every source DuckDB holds the effect of exactly the
//! records in `[start, next_pos)`, each accounted once. See ARCHITECTURE.md, "Exactly once".

pub mod accumulator;
pub mod apply;
pub mod as_of;
pub mod breaker;
pub mod generation;
pub mod lease;
pub mod new_partition;
pub mod online;
pub mod plain_writes;
pub mod quarantine;
pub mod script_history;
pub mod source;
pub mod status;
pub mod ticket;
pub mod version;
pub mod window;
