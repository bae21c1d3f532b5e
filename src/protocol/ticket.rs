//! Tickets: the one recovery path.
//!
//! Every batch owns a ticket for its range of positions. Whoever gets the store's answer settles
//! it. A ticket that is dropped unsettled — an actor was killed with the batch in its mailbox, a
//! future was cancelled, the store refused the write — reports its source, which is then opened
//! again and read from the store's `next_pos`. Nothing else brings lost work back, so this path
//! is always exercised.

use super::source::{Position, SourceName, Token};
use tokio::sync::mpsc::UnboundedSender;

/// A range of positions that was dropped before the store acknowledged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abandoned {
    /// Whose positions.
    pub source: SourceName,
    /// The token under which they were read.
    pub token: Token,
    /// The first position of the range.
    pub from: Position,
}

/// The duty to settle the positions `[from, to)` of a source.
#[derive(Debug)]
pub struct Ticket {
    source: SourceName,
    token: Token,
    from: Position,
    to: Position,
    abandoned: Option<UnboundedSender<Abandoned>>,
}

impl Ticket {
    /// A ticket that reports to `abandoned` when it is dropped unsettled.
    #[must_use]
    pub fn new(
        source: SourceName,
        token: Token,
        from: Position,
        to: Position,
        abandoned: UnboundedSender<Abandoned>,
    ) -> Self {
        Self { source, token, from, to, abandoned: Some(abandoned) }
    }

    /// The range `[from, to)`.
    #[must_use]
    pub fn range(&self) -> (Position, Position) {
        (self.from, self.to)
    }

    /// Joins a ticket for the positions that follow. Gives `next` back when it does not follow:
    /// another source, another token, or a hole between the ranges.
    ///
    /// # Errors
    /// The ticket that could not be joined.
    pub fn join(&mut self, mut next: Self) -> Result<(), Self> {
        if next.source != self.source || next.token != self.token || next.from != self.to {
            return Err(next);
        }
        self.to = next.to;
        next.abandoned = None;
        Ok(())
    }

    /// The store acknowledged the range.
    pub fn settle(mut self) {
        self.abandoned = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(abandoned) = self.abandoned.take() {
            // The receiver is gone only when the node stops: then nobody reads on either.
            let _ = abandoned.send(Abandoned {
                source: self.source.clone(),
                token: self.token,
                from: self.from,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    fn only_an_unsettled_ticket_reports() {
        let (tx, mut rx) = unbounded_channel();
        let source = SourceName::kafka("s", "t", 0);
        let token = Token::after(0);
        let ticket = |from, to| Ticket::new(source.clone(), token, from, to, tx.clone());
        ticket(0, 5).settle();
        assert!(rx.try_recv().is_err());
        drop(ticket(5, 7));
        assert_eq!(rx.try_recv().unwrap().from, 5);
    }

    #[test]
    fn joined_tickets_report_once_and_only_neighbours_join() {
        let (tx, mut rx) = unbounded_channel();
        let source = SourceName::kafka("s", "t", 0);
        let token = Token::after(0);
        let ticket = |from, to| Ticket::new(source.clone(), token, from, to, tx.clone());
        let mut first = ticket(0, 5);
        first.join(ticket(5, 9)).unwrap();
        let stranger = first.join(ticket(10, 11)).unwrap_err();
        stranger.settle();
        assert_eq!(first.range(), (0, 9));
        drop(first);
        assert_eq!(rx.try_recv().unwrap().from, 0);
        assert!(rx.try_recv().is_err());
    }
}
