//! Python workers: processes of this same binary that run the users' scripts.
//!
//! # What it takes, what it gives
//!
//! A [`WorkerProcess`] takes one [`Script`] and then batches of events (Arrow, with the column
//! `_row`), and gives back feature rows in the one layout of [`schema`] plus the rows that the
//! script rejected. It contains no actor: whoever supervises workers owns the values.
//!
//! # What it promises
//!
//! - A script cannot hurt the node: a crash, a hang or a flood of prints stays in the worker
//!   process, and shows up here as a [`WorkerError`] that says which of them it was.
//! - The data travels on a socket of its own. What a script prints goes to the log; a fork of
//!   the worker loses the socket, so it can never speak in the worker's name.
//! - No orphan: a worker ends when its socket closes, when the node or the [`ForkServer`] that
//!   started it ends, and when heartbeats stay away for 0.7 of the lease ([`Heartbeat`]). It takes its process group
//!   with it. Only a descendant that left the group (`setsid`) can escape.
//! - [`WorkerProcess::stop`], [`WorkerProcess::kill`] and [`ExitWatch::wait`] return only once
//!   the process has ended, and is reaped unless its fork server died before it, so a permit given back afterwards never admits one worker too many.
//! - Every reply is checked again on this side: layout, order and range of `_row`.
//!
//! # The parts
//!
//! | file | holds |
//! |---|---|
//! | `wire` | frames on the socket: headers of `proto/worker.proto`, Arrow IPC in and out |
//! | `schema` | the canonical feature rows and how a script's output is brought into it |
//! | `script`, `helpers` | a script's text, its helpers', its style |
//! | `process`, `launch`, `logs` | the parent's end: requests, start and death, output lines |
//! | `forkserver` | both ends of the process of which workers are forks |
//! | `worker`, `session`, `context`, `events`, `collect`, `bootstrap.py` | the child's end |

mod collect;
mod context;
mod error;
mod events;
mod forkserver;
mod helpers;
mod launch;
mod logs;
mod process;
pub mod schema;
mod script;
mod session;
mod wire;
mod worker;

pub use error::{Exit, WorkerError};
pub use forkserver::{ForkServer, forkserver_main};
pub use helpers::HelperModule;
pub use launch::{ExitWatch, ProcessHandle, WorkerSignal, WorkerSpec};
pub use process::{Heartbeat, Loaded, TransformOutput, WorkerProcess};
pub use script::{Script, Style};
pub use wire::Rejected;
pub use worker::worker_main;
