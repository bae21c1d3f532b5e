//! Send windows: in which order batches go to the store, and how many at once.
//!
//! Python may finish batches out of order; their effects must not be. A batch may carry parts of
//! several sources. It is sendable when, for every part whose token is still the current one,
//!
//! | condition | else |
//! |---|---|
//! | `from` is the first position of its source that was not sent yet | it waits |
//! | fewer than [`WINDOW`] batches of the source are unanswered | it waits |
//!
//! A part under an older token never blocks: the store answers it `FENCED`. There is no sequence
//! number: positions alone give the order, so a batch that is lost holds nobody up — its tickets
//! make its sources open again, which makes their waiting parts stale.

use super::source::{Position, SourceName, Token};
use std::collections::{HashMap, VecDeque};

/// Batches of one source that may be unanswered at once.
pub const WINDOW: usize = 4;

/// The part of a batch that the window looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartRange {
    /// Whose positions.
    pub source: SourceName,
    /// Under which token they were read.
    pub token: Token,
    /// First position.
    pub from: Position,
    /// The position after the last.
    pub to: Position,
}

#[derive(Debug)]
struct Lane {
    token: Token,
    next_send: Position,
    unanswered: usize,
}

/// The windows of all sources that this node writes, and the batches that wait for their turn.
#[derive(Debug)]
pub struct SendWindows<B> {
    lanes: HashMap<SourceName, Lane>,
    waiting: VecDeque<(Vec<PartRange>, B)>,
}

impl<B> Default for SendWindows<B> {
    fn default() -> Self {
        Self { lanes: HashMap::new(), waiting: VecDeque::new() }
    }
}

impl<B> SendWindows<B> {
    /// The source was opened: what was read under older tokens no longer counts.
    pub fn opened(&mut self, source: SourceName, token: Token, next_pos: Position) {
        self.lanes.insert(source, Lane { token, next_send: next_pos, unanswered: 0 });
    }

    /// The source is not written here for now: its parts that wait block nobody, until it is opened
    /// again. Called whenever a part is lost, whoever reads the source next.
    pub fn close(&mut self, source: &SourceName) {
        self.lanes.remove(source);
    }

    /// The store did not take a part: what follows it under the same token must not wait for it. An
    /// answer to an older token says nothing of the present one.
    pub fn lost(&mut self, part: &PartRange) {
        if self.current(part).is_some() {
            self.close(&part.source);
        }
    }

    /// A batch is ready to be sent, as soon as it is its turn.
    pub fn push(&mut self, parts: Vec<PartRange>, batch: B) {
        self.waiting.push_back((parts, batch));
    }

    /// Takes the next batch whose turn it is and counts it as sent.
    pub fn next_sendable(&mut self) -> Option<B> {
        let at = self.waiting.iter().position(|(parts, _)| self.is_sendable(parts))?;
        let (parts, batch) = self.waiting.remove(at)?;
        for part in &parts {
            if let Some(lane) = self.current(part) {
                lane.next_send = part.to;
                lane.unanswered += 1;
            }
        }
        Some(batch)
    }

    /// The store answered a part.
    pub fn answered(&mut self, part: &PartRange) {
        if let Some(lane) = self.current(part) {
            lane.unanswered = lane.unanswered.saturating_sub(1);
        }
    }

    /// Batches that wait for their turn.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn is_sendable(&self, parts: &[PartRange]) -> bool {
        parts.iter().all(|part| match self.lanes.get(&part.source) {
            Some(lane) if lane.token == part.token => {
                part.from <= lane.next_send && lane.unanswered < WINDOW
            }
            _ => true,
        })
    }

    fn current(&mut self, part: &PartRange) -> Option<&mut Lane> {
        self.lanes.get_mut(&part.source).filter(|lane| lane.token == part.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(source: &SourceName, token: Token, from: i64, to: i64) -> PartRange {
        PartRange { source: source.clone(), token, from, to }
    }

    #[test]
    fn batches_leave_in_the_order_of_their_positions() {
        let (s, token) = (SourceName::kafka("s", "t", 0), Token::after(0));
        let mut windows = SendWindows::default();
        windows.opened(s.clone(), token, 0);
        windows.push(vec![part(&s, token, 5, 9)], "second");
        assert_eq!(windows.next_sendable(), None);
        windows.push(vec![part(&s, token, 0, 5)], "first");
        assert_eq!(windows.next_sendable(), Some("first"));
        assert_eq!(windows.next_sendable(), Some("second"));
    }

    #[test]
    fn at_most_a_window_is_unanswered() {
        let (s, token) = (SourceName::kafka("s", "t", 0), Token::after(0));
        let mut windows = SendWindows::default();
        windows.opened(s.clone(), token, 0);
        for i in 0..=WINDOW as i64 {
            windows.push(vec![part(&s, token, i, i + 1)], i);
        }
        let sent: Vec<_> = std::iter::from_fn(|| windows.next_sendable()).collect();
        assert_eq!(sent, [0, 1, 2, 3]);
        windows.answered(&part(&s, token, 0, 1));
        assert_eq!(windows.next_sendable(), Some(4));
    }

    #[test]
    fn a_stale_part_blocks_nobody() {
        let (a, b) = (SourceName::kafka("s", "t", 0), SourceName::kafka("s", "t", 1));
        let (old, token) = (Token::after(0), Token::after(1));
        let mut windows = SendWindows::default();
        windows.opened(a.clone(), old, 0);
        windows.opened(b.clone(), token, 0);
        windows.push(vec![part(&a, old, 7, 8), part(&b, token, 0, 4)], "both");
        assert_eq!(windows.next_sendable(), None, "positions 0 to 7 of the first are missing");
        windows.opened(a.clone(), token, 0);
        assert_eq!(windows.next_sendable(), Some("both"));
        assert_eq!(windows.waiting(), 0);
    }

    #[test]
    fn a_source_that_is_not_opened_again_holds_nobody_up() {
        let (a, b) = (SourceName::kafka("s", "t", 0), SourceName::kafka("s", "t", 1));
        let token = Token::after(0);
        let mut windows = SendWindows::default();
        windows.opened(a.clone(), token, 0);
        windows.opened(b.clone(), token, 0);
        // The batch with positions 0 to 7 of the first source was lost on its way here.
        windows.push(vec![part(&a, token, 7, 8), part(&b, token, 0, 4)], "both");
        assert_eq!(windows.next_sendable(), None);
        windows.close(&a);
        assert_eq!(windows.next_sendable(), Some("both"));
        assert_eq!(windows.waiting(), 0);
    }

    #[test]
    fn an_answer_to_an_old_token_does_not_close_the_present_one() {
        let (s, old, token) = (SourceName::kafka("s", "t", 0), Token::after(0), Token::after(1));
        let mut windows = SendWindows::default();
        windows.opened(s.clone(), token, 0);
        windows.push(vec![part(&s, token, 5, 9)], "second");
        windows.lost(&part(&s, old, 0, 5));
        assert_eq!(windows.next_sendable(), None, "positions 0 to 5 are still to come");
        windows.lost(&part(&s, token, 0, 5));
        assert_eq!(windows.next_sendable(), Some("second"));
    }

    proptest! {
        /// In whatever order Python finishes, each source's positions leave in order, and all leave.
        #[test]
        fn every_order_of_completion_gives_the_order_of_positions(
            order in Just((0..12i64).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let (s, token) = (SourceName::kafka("s", "t", 0), Token::after(0));
            let mut windows = SendWindows::default();
            windows.opened(s.clone(), token, 0);
            let mut sent = Vec::new();
            for i in order {
                windows.push(vec![part(&s, token, i, i + 1)], i);
                while let Some(batch) = windows.next_sendable() {
                    sent.push(batch);
                    windows.answered(&part(&s, token, batch, batch + 1));
                }
            }
            prop_assert_eq!(sent, (0..12).collect::<Vec<_>>());
        }
    }
}
