//! Permits: the right to have one Python worker alive, over all nodes.

use actix::Message;
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc::UnboundedSender;

/// Asks for a permit; answered when there is one. Asked by the PythonWorkerSupervisor, answered by
/// the WorkerSemaphore. Dropping the receiver takes the question back.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AcquirePermit {
    /// Where the permit goes.
    pub reply: tokio::sync::oneshot::Sender<Permit>,
}

/// A permit comes back: its worker was reaped.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReleasePermit {
    /// The lease's name in Redis.
    pub lease: Arc<str>,
}

/// The right to have one worker alive, as long as it is renewed. Drop it only once the worker was
/// reaped: that gives it back.
#[derive(Debug)]
pub struct Permit {
    lease: Arc<str>,
    /// How long it lives without renewal.
    pub lease_time: Duration,
    released: UnboundedSender<Arc<str>>,
}

impl Permit {
    /// A permit that is given back through `released`.
    #[must_use]
    pub fn new(lease: Arc<str>, lease_time: Duration, released: UnboundedSender<Arc<str>>) -> Self {
        Self { lease, lease_time, released }
    }

    /// The lease's name in Redis.
    #[must_use]
    pub fn lease(&self) -> &Arc<str> {
        &self.lease
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Without a receiver the node stops; the lease then expires by itself.
        let _ = self.released.send(self.lease.clone());
    }
}
