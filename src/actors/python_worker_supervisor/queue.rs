//! What waits for the workers of a lane, in the order in which they take it.
//!
//! | waits | taken next |
//! |---|---|
//! | only live, or only bulk | the oldest |
//! | both, fewer than [`LIVE_TURNS`] live in a row | the oldest live |
//! | both, [`LIVE_TURNS`] live in a row | the oldest bulk |

use crate::protocol::source::Urgency;
use std::collections::VecDeque;

/// Live batches that may pass one that is not: files get on, however much comes from Kafka.
const LIVE_TURNS: u32 = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Queue<T> {
    live: VecDeque<T>,
    bulk: VecDeque<T>,
    live_in_a_row: u32,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { live: VecDeque::new(), bulk: VecDeque::new(), live_in_a_row: 0 }
    }
}

impl<T> Queue<T> {
    fn of(&mut self, urgency: Urgency) -> &mut VecDeque<T> {
        match urgency {
            Urgency::Live => &mut self.live,
            Urgency::Bulk => &mut self.bulk,
        }
    }

    /// Behind its like.
    pub(super) fn push_back(&mut self, urgency: Urgency, item: T) {
        self.of(urgency).push_back(item);
    }

    /// Before its like: it was taken before and comes back.
    pub(super) fn push_front(&mut self, urgency: Urgency, item: T) {
        self.of(urgency).push_front(item);
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let passes = self.live_in_a_row < LIVE_TURNS || self.bulk.is_empty();
        if passes && let Some(item) = self.live.pop_front() {
            self.live_in_a_row = if self.bulk.is_empty() { 0 } else { self.live_in_a_row + 1 };
            return Some(item);
        }
        self.live_in_a_row = 0;
        self.bulk.pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.live.len() + self.bulk.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What has waited longest, of each urgency.
    pub(super) fn firsts(&self) -> impl Iterator<Item = &T> {
        self.live.front().into_iter().chain(self.bulk.front())
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &T> {
        self.live.iter()
    }

    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = &T> {
        self.live.iter().chain(&self.bulk)
    }

    /// Everything, the live first.
    pub(super) fn into_items(self) -> impl Iterator<Item = T> {
        self.live.into_iter().chain(self.bulk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table_of_turns() {
        let mut queue = Queue::default();
        (0..3).for_each(|i| queue.push_back(Urgency::Bulk, i));
        assert_eq!((queue.pop(), queue.len()), (Some(0), 2), "only bulk");
        (100..120).for_each(|i| queue.push_back(Urgency::Live, i));
        let taken: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
        let mut expected: Vec<i32> = (100..108).collect();
        expected.push(1);
        expected.extend(108..116);
        expected.push(2);
        expected.extend(116..120);
        assert_eq!(taken, expected, "the live first, but not for ever");
    }

    #[test]
    fn turns_count_only_while_something_is_passed() {
        let mut queue = Queue::default();
        for i in 0..20 {
            queue.push_back(Urgency::Live, i);
            assert_eq!(queue.pop(), Some(i));
        }
        queue.push_back(Urgency::Bulk, 50);
        queue.push_back(Urgency::Live, 20);
        assert_eq!((queue.pop(), queue.pop()), (Some(20), Some(50)));
    }

    #[test]
    fn what_comes_back_goes_before_its_like() {
        let mut queue = Queue::default();
        queue.push_back(Urgency::Bulk, 2);
        queue.push_front(Urgency::Bulk, 1);
        queue.push_back(Urgency::Live, 0);
        assert_eq!(queue.iter().copied().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(queue.into_items().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
