//! Bytes on their way in one direction of a connection: when they are due, and in what pieces.
//!
//! No clock and no network of its own, so that the rules can be tested.

use super::Weather;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// The most that is held back in one direction of a connection; then its sender is not read from.
/// Latency costs no throughput below so much divided by the latency: 160 MB/s at 100 ms.
pub const QUEUE_BYTES: usize = 16 << 20;

/// Bytes that come within such a time share a due time.
const TICK: Duration = Duration::from_millis(1);
/// How late a write may be without slowing a limited bandwidth down: timers are.
const DEBT: Duration = Duration::from_millis(20);
/// A limited bandwidth is spent in pieces of so many a second, so that it is smooth.
const PIECES_PER_S: u64 = 100;

/// So many bytes, due then.
#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    bytes: usize,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Lane {
    queue: VecDeque<u8>,
    due: VecDeque<Due>,
    /// Bytes at the front that are due.
    ready: usize,
    /// Nothing is written before, for the pauses of slices and the bandwidth.
    next_write: Instant,
    random: SmallRng,
}

impl Lane {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Self {
            queue: VecDeque::new(),
            due: VecDeque::new(),
            ready: 0,
            next_write: now,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_BYTES
    }

    /// Whether everything that came has been written; an end that came is late as well.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.due.is_empty()
    }

    /// Takes bytes that came now; none when the sender has ended.
    pub(super) fn take(&mut self, bytes: &[u8], weather: &Weather, now: Instant) {
        self.queue.extend(bytes);
        let jitter = weather.jitter.mul_f64(self.random.random::<f64>());
        let mut at = now + weather.latency + jitter;
        if let Some(last) = self.due.back_mut() {
            // Never before what came before it.
            at = at.max(last.at);
            if at - last.at < TICK {
                last.bytes += bytes.len();
                return;
            }
        }
        self.due.push_back(Due { at, bytes: bytes.len() });
    }

    /// Looks which bytes have become due.
    pub(super) fn ripen(&mut self, now: Instant) {
        while let Some(due) = self.due.front()
            && due.at <= now
        {
            self.ready += due.bytes;
            self.due.pop_front();
        }
    }

    /// What is due and may be written now, which is empty when nothing may.
    pub(super) fn writable(&self, weather: &Weather, now: Instant) -> &[u8] {
        if now < self.next_write {
            return &[];
        }
        let mut most = self.ready;
        if let Some(slice) = weather.slice {
            most = most.min(slice.max_bytes);
        }
        if let Some(rate) = weather.bytes_per_s {
            let piece = usize::try_from(rate / PIECES_PER_S).unwrap_or(usize::MAX);
            most = most.min(piece.max(1));
        }
        let front = self.queue.as_slices().0;
        &front[..most.min(front.len())]
    }

    /// So many of the bytes that might be written were.
    pub(super) fn written(&mut self, bytes: usize, weather: &Weather, now: Instant) {
        self.queue.drain(..bytes);
        self.ready -= bytes;
        if let Some(rate) = weather.bytes_per_s {
            let earliest = now.checked_sub(DEBT).unwrap_or(now);
            let took = Duration::from_secs_f64(bytes as f64 / rate as f64);
            self.next_write = self.next_write.max(earliest) + took;
        }
        if let Some(slice) = weather.slice {
            self.next_write = self.next_write.max(now + slice.pause);
        }
    }

    /// When there is something to write that must wait now.
    pub(super) fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let due = if self.ready > 0 { now } else { self.due.front()?.at };
        Some(due.max(self.next_write)).filter(|at| *at > now)
    }

    /// The weather has changed: nothing waits longer than what came now would.
    pub(super) fn turn(&mut self, weather: &Weather, now: Instant) {
        let latest = now + weather.latency + weather.jitter;
        for due in &mut self.due {
            due.at = due.at.min(latest);
        }
        self.next_write = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::proxy::Slice;

    const MS: Duration = Duration::from_millis(1);

    fn lane() -> (Lane, Instant) {
        let now = Instant::now();
        (Lane::new(1, now), now)
    }

    /// Writes what is due until there is nothing to wait for: pieces with their times.
    fn all(lane: &mut Lane, weather: &Weather, begun: Instant) -> Vec<(Duration, usize)> {
        let (mut now, mut pieces) = (begun, Vec::new());
        loop {
            lane.ripen(now);
            let bytes = lane.writable(weather, now).len();
            if bytes > 0 {
                lane.written(bytes, weather, now);
                pieces.push((now - begun, bytes));
            } else if let Some(at) = lane.wakes_at(now) {
                now = at;
            } else {
                return pieces;
            }
        }
    }

    #[test]
    fn fair_weather_holds_nothing_back() {
        let (mut lane, now) = lane();
        lane.take(&[1, 2, 3], &Weather::default(), now);
        lane.ripen(now);
        assert_eq!(lane.wakes_at(now), None);
        assert_eq!(lane.writable(&Weather::default(), now), [1, 2, 3]);
        assert!(!lane.is_empty());
        lane.written(3, &Weather::default(), now);
        assert!(lane.is_empty());
    }

    #[test]
    fn latency_delays_each_byte_and_not_the_next_ones_more() {
        let (mut lane, now) = lane();
        let weather = Weather { latency: 50 * MS, ..Weather::default() };
        for i in 0..3 {
            lane.take(&[0; 10], &weather, now + 10 * i * MS);
        }
        assert_eq!(all(&mut lane, &weather, now), [(50 * MS, 10), (60 * MS, 10), (70 * MS, 10)]);
    }

    #[test]
    fn an_end_is_as_late_as_bytes_are() {
        let (mut lane, now) = lane();
        let weather = Weather { latency: 50 * MS, ..Weather::default() };
        lane.take(&[], &weather, now);
        lane.ripen(now + 49 * MS);
        assert!(!lane.is_empty());
        assert_eq!(lane.wakes_at(now + 49 * MS), Some(now + 50 * MS));
        lane.ripen(now + 50 * MS);
        assert!(lane.is_empty());
    }

    #[test]
    fn jitter_adds_up_to_so_much_and_keeps_the_order() {
        let (mut lane, now) = lane();
        let weather = Weather { latency: 10 * MS, jitter: 40 * MS, ..Weather::default() };
        for i in 0..100 {
            lane.take(&[i], &weather, now);
        }
        let pieces = all(&mut lane, &weather, now);
        assert!(pieces.len() > 1, "not all at once: {pieces:?}");
        assert!(pieces.iter().all(|(at, _)| (10 * MS..=50 * MS).contains(at)), "{pieces:?}");
    }

    #[test]
    fn slices_are_small_and_have_pauses() {
        let (mut lane, now) = lane();
        let slice = Some(Slice { max_bytes: 4, pause: 5 * MS });
        let weather = Weather { slice, ..Weather::default() };
        lane.take(&[0; 10], &weather, now);
        assert_eq!(all(&mut lane, &weather, now), [(Duration::ZERO, 4), (5 * MS, 4), (10 * MS, 2)]);
    }

    #[test]
    fn bandwidth_is_kept_over_time() {
        let (mut lane, now) = lane();
        let weather = Weather { bytes_per_s: Some(1_000_000), ..Weather::default() };
        lane.take(&vec![0; 1_000_000], &weather, now);
        let pieces = all(&mut lane, &weather, now);
        let last = pieces.last().unwrap().0;
        assert!((950 * MS..=1_000 * MS).contains(&last), "{last:?}");
    }

    #[test]
    fn a_turn_of_the_weather_frees_what_was_held_back() {
        let (mut lane, now) = lane();
        let slow = Weather { latency: 60_000 * MS, ..Weather::default() };
        lane.take(&[7; 9], &slow, now);
        lane.ripen(now);
        assert!(lane.writable(&slow, now).is_empty());
        lane.turn(&Weather::default(), now);
        lane.ripen(now);
        assert_eq!(lane.writable(&Weather::default(), now), [7; 9]);
    }

    #[test]
    fn a_full_lane_takes_no_more() {
        let (mut lane, now) = lane();
        let slow = Weather { latency: 60_000 * MS, ..Weather::default() };
        while lane.has_room() {
            lane.take(&[0; 1 << 20], &slow, now);
        }
        assert_eq!(lane.queue.len(), QUEUE_BYTES);
    }
}
