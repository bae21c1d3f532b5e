//! What a stage does with its time: it works, or something waits in it that it cannot go on with, or
//! it has nothing to do.
//!
//! | works on | waits | counts as |
//! |---|---|---|
//! | something | | busy |
//! | nothing | something | blocked: the next stage, or a permit, has no room |
//! | nothing | nothing | idle |
//!
//! A stage whose batches lie elsewhere, until they are answered, is blocked while somebody else has them in
//! hand, and works while they are under way: which share of such time is which the answers say
//! ([`StageMeter::answered`]).
//!
//! Blocked and idle are seconds of the clock. Busy adds up the work on all batches that are worked on
//! at once, so a stage with three workers may do three seconds of it in one. A stage that does not work
//! on batches one by one says itself how it spent its time.

use super::catalogue::{self as m, STAGES};
use metrics::{counter, gauge, histogram};
use std::{
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Counts what goes through one stage. Called once a batch, never once an event.
#[derive(Debug, Clone, Copy)]
pub struct StageMeter(&'static str);

/// One stage's clock.
#[derive(Debug)]
struct Clock {
    working: usize,
    waiting: usize,
    /// When what waits longest began to; told by the stage.
    oldest: Option<Instant>,
    /// Up to when the times below count.
    since: Instant,
    blocked: Duration,
    idle: Duration,
    /// The stage says itself how it spent its time.
    told: bool,
    /// Of the time in which it only waited: how much of it others had what it waits for in hand.
    elsewhere: Share,
}

/// A share of time, by what was seen last.
#[derive(Debug, Default)]
struct Share {
    part: f64,
    whole: f64,
}

impl Share {
    /// What the last such time weighs beside those before it.
    const MEMORY: f64 = 0.8;

    fn saw(&mut self, part: Duration, whole: Duration) {
        let (part, whole) = (part.min(whole).as_secs_f64(), whole.as_secs_f64());
        self.part = self.part * Self::MEMORY + part;
        self.whole = self.whole * Self::MEMORY + whole;
    }

    /// All of it, as long as nothing was seen.
    fn get(&self) -> f64 {
        if self.whole > 0.0 { (self.part / self.whole).clamp(0.0, 1.0) } else { 1.0 }
    }
}

impl Clock {
    fn new(now: Instant) -> Self {
        let none = Duration::ZERO;
        Self {
            working: 0,
            waiting: 0,
            oldest: None,
            since: now,
            blocked: none,
            idle: none,
            told: false,
            elsewhere: Share::default(),
        }
    }

    /// Counts the time that has passed for what the stage did in it.
    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        self.since = now.max(self.since);
        if self.told {
            return;
        }
        match (self.working, self.waiting) {
            (0, 0) => self.idle += passed,
            (0, _) => self.blocked += passed.mul_f64(self.elsewhere.get()),
            _ => {}
        }
    }
}

static CLOCKS: LazyLock<[Mutex<Clock>; STAGES.len()]> = LazyLock::new(|| {
    let now = Instant::now();
    std::array::from_fn(|_| Mutex::new(Clock::new(now)))
});

/// A holder that panics leaves the clock whole.
fn lock(clock: &Mutex<Clock>) -> MutexGuard<'_, Clock> {
    clock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the exporter what the clocks show; called before every answer to a scrape.
pub(super) fn show() {
    let now = Instant::now();
    for (stage, clock) in STAGES.into_iter().zip(CLOCKS.iter()) {
        let mut clock = lock(clock);
        clock.advance(now);
        gauge!(m::BLOCKED, "stage" => stage).set(clock.blocked.as_secs_f64());
        gauge!(m::IDLE, "stage" => stage).set(clock.idle.as_secs_f64());
        let oldest = clock.oldest.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        gauge!(m::QUEUE_OLDEST, "stage" => stage).set(oldest.as_secs_f64());
    }
}

impl StageMeter {
    /// The meter of a stage in [`STAGES`].
    #[must_use]
    pub const fn new(stage: &'static str) -> Self {
        Self(stage)
    }

    fn clock(self) -> Option<MutexGuard<'static, Clock>> {
        let i = STAGES.iter().position(|stage| *stage == self.0)?;
        let mut clock = lock(&CLOCKS[i]);
        clock.advance(Instant::now());
        Some(clock)
    }

    /// Events came in.
    pub fn received(self, events: usize) {
        counter!(m::RECEIVED, "stage" => self.0).increment(events as u64);
    }

    /// Events were handed on.
    pub fn sent(self, events: usize) {
        counter!(m::SENT, "stage" => self.0).increment(events as u64);
    }

    /// Something went wrong; the type is from a closed list.
    pub fn error(self, error_type: &'static str) {
        counter!(m::ERRORS, "stage" => self.0, "error_type" => error_type).increment(1);
    }

    /// The stage begins to work on a batch.
    #[must_use]
    pub fn begin(self) -> Work {
        if let Some(mut clock) = self.clock() {
            clock.working += 1;
        }
        Work { meter: self, since: Instant::now() }
    }

    fn worked_for(self, took: Duration) {
        // The exporter's counters are integers; a gauge that only grows keeps the fractions.
        gauge!(m::BUSY, "stage" => self.0).increment(took.as_secs_f64());
    }

    /// For a stage that does not work on batches one by one: of the time that has `passed` it worked for
    /// so long, and was blocked for the rest, or idle.
    pub fn spent(self, passed: Duration, worked: Duration, is_blocked: bool) {
        let rest = passed.saturating_sub(worked);
        if let Some(mut clock) = self.clock() {
            clock.told = true;
            if is_blocked {
                clock.blocked += rest;
            } else {
                clock.idle += rest;
            }
        }
        self.worked_for(worked);
    }

    /// Something that the stage had waited for came back after so long, for a part of which somebody else
    /// had it in hand: that part of its waiting is blocked, the rest is the stage's own work.
    pub fn answered(self, held: Duration, waited: Duration) {
        if let Some(mut clock) = self.clock() {
            clock.elsewhere.saw(held, waited);
        }
    }

    /// So many are open in the stage, which is not held up by them.
    pub fn queue_depth(self, batches: usize) {
        gauge!(m::QUEUE_DEPTH, "stage" => self.0).set(batches as f64);
    }

    /// So many wait in the stage; the first of them since `oldest`.
    pub fn waiting(self, batches: usize, oldest: Option<Instant>) {
        if let Some(mut clock) = self.clock() {
            clock.waiting = batches;
            clock.oldest = oldest.filter(|_| batches > 0);
        }
        self.queue_depth(batches);
    }
}

/// A batch that a stage works on, until it is done or dropped.
#[derive(Debug)]
pub struct Work {
    meter: StageMeter,
    since: Instant,
}

impl Work {
    /// The batch got through the stage. One that is dropped instead did not: its time counts as work,
    /// but not as the duration of a batch.
    pub fn done(self) {
        histogram!(m::DURATION, "stage" => self.meter.0).record(self.since.elapsed());
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(mut clock) = self.meter.clock() {
            clock.working -= 1;
        }
        self.meter.worked_for(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut clock = Clock::new(start);
        clock.advance(at(10));
        clock.waiting = 2;
        clock.advance(at(30));
        clock.working = 1;
        clock.advance(at(70));
        clock.waiting = 0;
        clock.advance(at(75));
        clock.working = 0;
        clock.advance(at(175));
        assert_eq!(clock.blocked, Duration::from_millis(20));
        assert_eq!(clock.idle, Duration::from_millis(110), "the other 45 ms are busy");
        clock.advance(at(100));
        assert_eq!(clock.idle, Duration::from_millis(110), "it does not go back");
    }

    #[test]
    fn waiting_is_blocked_as_far_as_somebody_else_has_it_in_hand() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.waiting = 1;
        let ms = Duration::from_millis;
        clock.elsewhere.saw(ms(20), ms(200));
        clock.advance(start + ms(1_000));
        assert_eq!(clock.blocked, ms(100), "nine tenths of it are under way");
        for _ in 0..50 {
            clock.elsewhere.saw(ms(200), ms(200));
        }
        clock.advance(start + ms(2_000));
        assert!(clock.blocked > ms(1_090), "what was seen long ago weighs nothing");
        clock.elsewhere.saw(ms(500), ms(200));
        assert!(clock.elsewhere.get() <= 1.0, "clocks of two machines may differ");
        assert_eq!(clock.idle, ms(0));
    }

    #[test]
    fn a_batch_that_is_dropped_is_worked_on_no_more() {
        let meter = StageMeter::new("generator");
        let (one, two) = (meter.begin(), meter.begin());
        assert_eq!(meter.clock().unwrap().working, 2);
        one.done();
        drop(two);
        assert_eq!(meter.clock().unwrap().working, 0);
    }
}
