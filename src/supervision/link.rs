//! A link always leads to the living instance of an actor.

use actix::{Actor, Addr, Handler, Message, dev::ToEnvelope};
use arc_swap::ArcSwapOption;
use std::{fmt, sync::Arc};

/// The way to an actor that may be restarted at any moment.
pub struct Link<A: Actor>(Arc<ArcSwapOption<Addr<A>>>);

/// A message that no instance took: the actor is between two lives, or its mailbox is full.
/// Dropping it is safe for data (its tickets report); a caller that can wait tries again.
#[derive(Debug)]
pub struct Undelivered<M>(pub M);

impl<A: Actor> Default for Link<A> {
    fn default() -> Self {
        Self(Arc::new(ArcSwapOption::empty()))
    }
}

impl<A: Actor> Clone for Link<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: Actor> fmt::Debug for Link<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&std::any::type_name::<A>()).finish()
    }
}

impl<A: Actor> Link<A> {
    pub(super) fn set(&self, address: Addr<A>) {
        self.0.store(Some(Arc::new(address)));
    }

    pub(super) fn clear(&self) {
        self.0.store(None);
    }

    /// Puts a message into the living instance's mailbox.
    ///
    /// # Errors
    /// The message, when there is no living instance.
    pub fn deliver<M>(&self, message: M) -> Result<(), Undelivered<M>>
    where
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
        M: Message + Send + 'static,
        M::Result: Send,
    {
        match &*self.0.load() {
            None => Err(Undelivered(message)),
            Some(address) => address.try_send(message).map_err(|e| {
                let (actix::prelude::SendError::Full(m) | actix::prelude::SendError::Closed(m)) = e;
                Undelivered(m)
            }),
        }
    }

    /// Sends a message and waits for its result; `None` when there is no living instance, or it
    /// dies before it answers.
    pub async fn ask<M>(&self, message: M) -> Option<M::Result>
    where
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let address = self.0.load_full()?;
        address.send(message).await.ok()
    }
}
