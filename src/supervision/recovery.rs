//! How long an actor was away: from the end of one instance to the moment that the next one is linked.

use std::{collections::VecDeque, time::Duration};

/// Recoveries of an actor that are kept.
const KEPT: usize = 1_000;

/// The newest recoveries of one actor.
#[derive(Debug, Default)]
pub(super) struct Recoveries(VecDeque<Duration>);

/// What the last recoveries took, a thousand at most; in milliseconds, null when there was none.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Recovery {
    /// Over how many of them the numbers are.
    pub count: usize,
    /// The median.
    pub p50_ms: Option<f64>,
    /// The 99th percentile.
    pub p99_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
    /// The newest one.
    pub last_ms: Option<f64>,
}

impl Recoveries {
    /// The next instance is linked.
    pub(super) fn add(&mut self, took: Duration) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    pub(super) fn summary(&self) -> Recovery {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let ms = |took: &Duration| took.as_secs_f64() * 1e3;
        // The nearest rank: a time that was measured, never one between two.
        let at = |percent: usize| {
            sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).map(ms)
        };
        Recovery {
            count: sorted.len(),
            p50_ms: at(50),
            p99_ms: at(99),
            max_ms: at(100),
            last_ms: self.0.back().map(ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let mut recoveries = Recoveries::default();
        let none = recoveries.summary();
        assert_eq!((none.count, none.p50_ms, none.max_ms, none.last_ms), (0, None, None, None));
        for ms in [3, 1, 2] {
            recoveries.add(Duration::from_millis(ms));
        }
        let three = recoveries.summary();
        assert_eq!((three.count, three.p50_ms, three.p99_ms), (3, Some(2.0), Some(3.0)));
        assert_eq!((three.max_ms, three.last_ms), (Some(3.0), Some(2.0)));
    }

    #[test]
    fn only_the_newest_are_kept() {
        let mut recoveries = Recoveries::default();
        recoveries.add(Duration::from_secs(60));
        for ms in 1..=KEPT as u64 {
            recoveries.add(Duration::from_millis(ms));
        }
        let kept = recoveries.summary();
        assert_eq!((kept.count, kept.p50_ms), (KEPT, Some(500.0)));
        assert_eq!((kept.p99_ms, kept.max_ms), (Some(990.0), Some(1_000.0)));
    }
}
