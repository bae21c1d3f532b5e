//! TransformDeployer: which version of its script a stream runs, and how that changes.
//!
//! Takes saved files, wishes of operators and the verdicts of the PythonWorkerSupervisor; gives the
//! [`ScriptBoard`](crate::actors::python_worker_supervisor::ScriptBoard), by which that one goes.
//! Promises:
//!
//! * a version takes over only after it has passed its trial and the store has its text; the first
//!   version of a stream has nothing that it could be held against;
//! * a version that is refused changes nothing; its reason is in the log, the history, the status,
//!   the metric and the answer to whoever deployed it;
//! * what a stream runs survives restarts of all nodes, and is the same on all of them: the store
//!   decides the order of events, the nodes follow;
//! * a version at fault is rolled back, whatever becomes of this actor in between.
//!
//! | file | holds |
//! |---|---|
//! | `desk` | where wishes come in; outlives the actor |
//! | `deploying` | what is done about them, and about versions at fault |
//! | `saved` | what is done about saved files |
//! | `noting` | what is written down, and going by it |
//! | `files` | which saved files are new versions |
//! | `watch` | when to look at the files |
//! | `history` | what the store knows |

mod deploying;
mod desk;
mod files;
pub mod history;
mod noting;
mod saved;
mod watch;

pub use desk::{Decided, DeployDesk, Wish, WishError};

use crate::{actors::python_worker_supervisor::PythonParts, config::Config, queue::RedisLink};
use actix::{Actor, AsyncContext, Context, WrapFuture};
use deploying::Deploying;
use std::sync::Arc;

/// What outlives an instance.
#[derive(Clone)]
pub struct DeployParts {
    /// Redis.
    pub redis: RedisLink,
    /// Workers, permits and texts.
    pub python: PythonParts,
    /// Where wishes come in.
    pub desk: Arc<DeployDesk>,
}

/// See the module.
pub struct TransformDeployer {
    config: Arc<Config>,
    parts: DeployParts,
}

impl TransformDeployer {
    /// An instance that goes on with what the store knows.
    #[must_use]
    pub fn new(config: Arc<Config>, parts: DeployParts) -> Self {
        Self { config, parts }
    }
}

impl Actor for TransformDeployer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let deploying = Deploying::new(self.config.clone(), self.parts.clone());
        ctx.spawn(async move { deploying.run().await }.into_actor(self));
    }
}
