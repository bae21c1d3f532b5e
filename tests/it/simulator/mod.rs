//! The whole delivery protocol in a simulated world, under a scheduler that one seed drives.
//!
//! The rules are the real ones of `millstream::protocol`: accumulator, send windows, tickets,
//! watermarks, versions, the online rule, generations. What carries them is simulated, step by step
//! as the actors do it: a broker with a consumer group, process nodes, Redis, the store. The
//! scheduler picks who does the next step, and what is lost, doubled, killed, stopped, emptied or
//! restored. Then faults stop, and within a bounded number of steps everything must be quiet and
//! hold before the judge.
//!
//! | file | what |
//! |---|---|
//! | `world` | clock, dice, events, scripts, what is counted |
//! | `broker` | partitions with holes, the consumer group, committed offsets |
//! | `ingest`, `process`, `sender` | a process node, from the poll thread to RedisQueue |
//! | `redis` | the keys, atomic commands, a command log that may lose its end |
//! | `store`, `serving` | the database and its transactions; looking at Redis, answering |
//! | `scheduler`, `judge` | who is next and what goes wrong; what must hold |
//! | `defects` | what is planted to see that the judge sees it |
//!
//! Not in it: bytes on the wire, what librdkafka, Redis and DuckDB do inside, several streams, a
//! seek that lands behind the last record, rows that only DuckDB refuses, uploads.
//!
//! `MILLSTREAM_SIM_SEEDS=n` runs more seeds, `MILLSTREAM_SIM_SEED=n` one with all of its trace, and
//! `MILLSTREAM_SIM_DEFECT=Name` plants a defect in that one.

mod broker;
mod defects;
mod ingest;
mod judge;
mod messages;
mod process;
mod redis;
mod scheduler;
mod sender;
mod serving;
mod store;
mod trace;
mod world;

use defects::Defect;
use world::{COUNTED, Counts};

/// Lines of its trace that a broken seed shows.
const TAIL: usize = 80;
/// Seeds of an ordinary run.
const SEEDS: u64 = 10_000;
/// Seeds after which every fault and every decision must have happened.
const ENOUGH: u64 = 1_000;

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

fn planted_from_env() -> Option<Defect> {
    let name = std::env::var("MILLSTREAM_SIM_DEFECT").ok()?;
    let found = Defect::ALL.iter().find(|(defect, _)| format!("{defect:?}") == name);
    Some(found.unwrap_or_else(|| panic!("no defect is called {name}")).0)
}

/// Fails with the seed, what it broke, and how to see it again.
fn fail(seed: u64) -> ! {
    let run = scheduler::run(seed, None, Some(TAIL));
    let violation = run.violation.expect("a seed repeats itself");
    panic!(
        "seed {seed} breaks a promise at step {}: {}: {}\n{}\nto see all of it: \
         MILLSTREAM_SIM_SEED={seed} cargo test --release --features failpoints --test it \
         simulator::ten_thousand -- --nocapture",
        run.steps,
        violation.check,
        violation.detail,
        run.tail.join("\n"),
    )
}

fn tell(seeds: u64, steps: u64, counts: &Counts) {
    println!("{seeds} seeds, {steps} steps");
    for (name, n) in COUNTED.iter().zip(counts) {
        println!("{name:>20} {n}");
    }
}

#[test]
fn ten_thousand_seeds_hold_every_promise() {
    if let Some(seed) = from_env("MILLSTREAM_SIM_SEED") {
        let run = scheduler::run(seed, planted_from_env(), Some(usize::MAX));
        println!("{}", run.tail.join("\n"));
        assert!(run.violation.is_none(), "{:?}", run.violation);
        return;
    }
    let seeds = from_env("MILLSTREAM_SIM_SEEDS").unwrap_or(SEEDS);
    let (broken, counts, steps) = scheduler::search(0..seeds, None);
    if let Some(seed) = broken {
        fail(seed);
    }
    tell(seeds, steps, &counts);
}

/// A fault that never happens, or a decision that is never made, would not be tested at all.
#[test]
fn every_fault_and_every_decision_happens() {
    let (broken, counts, steps) = scheduler::search(0..ENOUGH, None);
    if let Some(seed) = broken {
        fail(seed);
    }
    tell(ENOUGH, steps, &counts);
    let never: Vec<_> = COUNTED.iter().zip(&counts).filter(|(_, n)| **n == 0).collect();
    assert!(never.is_empty(), "never happened: {never:?}");
}

#[test]
fn every_planted_defect_is_caught() {
    let mut unseen = Vec::new();
    for (defect, within) in Defect::ALL {
        let (broken, ..) = scheduler::search(0..within, Some(defect));
        let violation =
            broken.map(|seed| (seed, scheduler::run(seed, Some(defect), None).violation));
        match violation {
            Some((seed, Some(v))) => println!("{defect:?}: seed {seed}, {}: {}", v.check, v.detail),
            _ => unseen.push((defect, within)),
        }
    }
    assert!(unseen.is_empty(), "not seen within so many seeds: {unseen:?}");
}

#[test]
fn a_seed_repeats_itself() {
    for seed in 0..20 {
        let once = scheduler::run(seed, None, Some(usize::MAX));
        let twice = scheduler::run(seed, None, Some(usize::MAX));
        assert!(once.tail.len() > 100, "seed {seed}: {} lines", once.tail.len());
        assert_eq!(once.tail, twice.tail, "seed {seed}");
    }
}
