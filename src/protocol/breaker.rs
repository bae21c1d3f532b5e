//! When a script version is suspected as a whole, instead of the rows that it fails on.
//!
//! A row on which a script fails is dead; but when a version fails on so many, the fault is the
//! code's, and no event must be dead-lettered for it: its stream waits, visibly, for another version
//! or for a word of the operator.
//!
//! | a version, within the last [`WINDOW_S`] seconds | answer |
//! |---|---|
//! | was given fewer than [`MIN_ROWS`] rows | trusted |
//! | failed on at most a fifth of them | trusted |
//! | failed on more | suspected |
//!
//! | a batch of at least [`MIN_ROWS`] rows that fails twice; of [`SAMPLE`] rows spread over it | answer |
//! |---|---|
//! | fewer than [`SAMPLE_FAILURES`] fail one by one | its rows are isolated |
//! | as many or more fail | suspected, before a row is dead |
//!
//! With a fifth of all rows bad, a sample has that many failures once in about 90,000 times.
//! A row that a script rejects with a reason of its own is no failure.

use std::collections::VecDeque;

/// Seconds that are looked back.
pub const WINDOW_S: u64 = 60;
/// Rows below which nothing is concluded.
pub const MIN_ROWS: u64 = 500;
/// Rows of a sample.
pub const SAMPLE: usize = 25;
/// Failures in a sample that tell that more than a fifth of the batch fails.
pub const SAMPLE_FAILURES: usize = 15;

/// The rows of one version, by second.
#[derive(Debug, Clone, Default)]
pub struct Breaker(VecDeque<(u64, u64, u64)>);

impl Breaker {
    /// At second `now_s`, `rows` went through, and the version failed on `failed` of them. Whether it
    /// is suspected.
    pub fn observe(&mut self, now_s: u64, rows: u64, failed: u64) -> bool {
        match self.0.back_mut() {
            Some((second, all, bad)) if *second == now_s => {
                *all += rows;
                *bad += failed;
            }
            _ => self.0.push_back((now_s, rows, failed)),
        }
        while self.0.front().is_some_and(|(second, ..)| second + WINDOW_S <= now_s) {
            self.0.pop_front();
        }
        let (all, bad) =
            self.0.iter().fold((0, 0), |(a, b), (_, rows, failed)| (a + rows, b + failed));
        all >= MIN_ROWS && bad * 5 > all
    }
}

/// The rows of a sample of a batch of `n`, spread over it.
pub fn sample(n: usize) -> impl Iterator<Item = usize> {
    (0..SAMPLE.min(n)).map(move |i| i * n / SAMPLE.min(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_first_table() {
        let mut few = Breaker::default();
        assert!(!few.observe(0, 499, 499));
        assert!(few.observe(0, 1, 0), "500 of which more than a fifth failed");

        let mut fifth = Breaker::default();
        assert!(!fifth.observe(0, 1_000, 200));
        assert!(fifth.observe(1, 0, 1));
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let mut breaker = Breaker::default();
        assert!(!breaker.observe(0, 499, 499));
        assert!(!breaker.observe(WINDOW_S, 1_000, 0));
        assert!(!breaker.observe(WINDOW_S, 0, 200));
        assert!(breaker.observe(WINDOW_S, 0, 1));
    }

    #[test]
    fn a_sample_is_spread_and_within_the_batch() {
        let rows: Vec<usize> = sample(500).collect();
        assert_eq!(rows.len(), SAMPLE);
        assert_eq!((rows[0], rows[1], rows[24]), (0, 20, 480));
        assert_eq!(sample(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(sample(0).count(), 0);
    }
}
