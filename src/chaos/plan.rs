//! The plan of a run: which fault when, on what, for how long. A pure function of its seed and the
//! choices, so that a run can be replayed.
//!
//! Kinds are dealt from a deck in which each stands as often as its weight says, so that every kind
//! comes up about as often as it should however short the run is. Which instance a fault hits among
//! those that are there just then (the second of three workers, say) is `pick`, a number that is in
//! the plan as well. What cannot be replayed is the machine: threads, and what the network does.

use super::fault::{Choice, KINDS, Kind, Needs, find};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One fault that is to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// Milliseconds since the first fault could come.
    pub at_ms: u64,
    /// The kind's name.
    pub kind: String,
    /// Of kinds that end an actor: which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// For how long; 0: it is done at once.
    #[serde(default)]
    pub for_ms: u64,
    /// Chooses among those that are there.
    pub pick: u32,
}

/// The whole of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What it was made from.
    pub seed: u64,
    /// The faults, in the order of their times.
    pub faults: Vec<Planned>,
}

/// What a plan is made from.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The seed.
    pub seed: u64,
    /// How long faults come.
    pub duration: Duration,
    /// The mean time between two.
    pub every: Duration,
    /// The kinds.
    pub kinds: Vec<&'static Kind>,
    /// The actors that can be ended.
    pub actors: Vec<String>,
    /// Each kind once, actors' kinds once for each actor, instead of as many as there is time for.
    pub each_once: bool,
}

/// The kinds that are wanted and possible, and those that are wanted and are not, with what they miss.
#[must_use]
pub fn chosen(
    choices: &[Choice],
    missing: impl Fn(Needs) -> Option<String>,
) -> (Vec<&'static Kind>, Vec<(&'static Kind, String)>) {
    let (mut possible, mut left_out) = (Vec::new(), Vec::new());
    for kind in &KINDS {
        if !choices.is_empty() && !choices.iter().any(|choice| choice.holds(kind)) {
            continue;
        }
        match missing(kind.needs) {
            None => possible.push(kind),
            Some(why) => left_out.push((kind, why)),
        }
    }
    (possible, left_out)
}

impl Plan {
    /// Makes one. It is empty when no kind is wanted.
    #[must_use]
    pub fn make(wanted: &Wanted) -> Self {
        let mut chance = SmallRng::seed_from_u64(wanted.seed);
        let every_ms = u64::try_from(wanted.every.as_millis()).unwrap_or(u64::MAX).max(1);
        let duration_ms = u64::try_from(wanted.duration.as_millis()).unwrap_or(u64::MAX);
        let (mut faults, mut deck, mut at_ms) = (Vec::new(), Vec::new(), 0);
        if wanted.each_once {
            deck = wanted.each();
            deck.shuffle(&mut chance);
        }
        while !wanted.kinds.is_empty() {
            if deck.is_empty() {
                if wanted.each_once {
                    break;
                }
                deck = wanted.deck(&mut chance);
            }
            at_ms += chance.random_range(every_ms / 2..=every_ms + every_ms / 2);
            if !wanted.each_once && at_ms >= duration_ms {
                break;
            }
            let Some((kind, actor)) = deck.pop() else { break };
            let for_ms = chance.random_range(kind.lasts());
            let pick = chance.random();
            faults.push(Planned { at_ms, kind: kind.name.into(), actor, for_ms, pick });
        }
        Self { seed: wanted.seed, faults }
    }

    /// Whether every kind in it is known.
    ///
    /// # Errors
    /// Which is not.
    pub fn validate(&self) -> Result<(), String> {
        match self.faults.iter().find(|fault| find(&fault.kind).is_none()) {
            None => Ok(()),
            Some(fault) => {
                Err(format!("the plan has the kind `{}`, which there is not", fault.kind))
            }
        }
    }

    /// When the last fault comes.
    #[must_use]
    pub fn length(&self) -> Duration {
        Duration::from_millis(self.faults.last().map_or(0, |fault| fault.at_ms))
    }
}

type Card = (&'static Kind, Option<String>);

/// Whether a fault of the kind is one of a named actor.
fn is_of_an_actor(kind: &Kind) -> bool {
    kind.name.starts_with("actor-")
}

impl Wanted {
    fn deck(&self, chance: &mut SmallRng) -> Vec<Card> {
        let mut deck = Vec::new();
        for kind in &self.kinds {
            for _ in 0..kind.weight {
                let actor = is_of_an_actor(kind).then(|| {
                    self.actors.get(chance.random_range(0..self.actors.len().max(1))).cloned()
                });
                deck.push((*kind, actor.flatten()));
            }
        }
        deck.shuffle(chance);
        deck
    }

    /// Each kind once, and of those that end an actor one for each actor.
    fn each(&self) -> Vec<Card> {
        let of = |kind: &&'static Kind| -> Vec<Card> {
            match is_of_an_actor(kind) {
                true => self.actors.iter().map(|actor| (*kind, Some(actor.clone()))).collect(),
                false => vec![(*kind, None)],
            }
        };
        self.kinds.iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn wanted(seed: u64) -> Wanted {
        Wanted {
            seed,
            duration: Duration::from_secs(600),
            every: Duration::from_millis(500),
            kinds: KINDS.iter().collect(),
            actors: vec!["redis_queue".into(), "kafka_ingest".into()],
            each_once: false,
        }
    }

    #[test]
    fn a_seed_makes_one_plan_and_another_seed_another() {
        assert_eq!(Plan::make(&wanted(7)), Plan::make(&wanted(7)));
        assert_ne!(Plan::make(&wanted(7)), Plan::make(&wanted(8)));
    }

    #[test]
    fn every_kind_comes_as_often_as_its_weight_says() {
        let plan = Plan::make(&wanted(1));
        assert!((1_100..=1_300).contains(&plan.faults.len()), "{}", plan.faults.len());
        assert!(plan.faults.is_sorted_by_key(|fault| fault.at_ms));
        assert!(plan.length() < Duration::from_secs(600));
        let mut counts = BTreeMap::<&str, u32>::new();
        for fault in &plan.faults {
            *counts.entry(&fault.kind).or_default() += 1;
            let kind = find(&fault.kind).unwrap();
            assert!(kind.lasts().contains(&fault.for_ms));
            assert_eq!(fault.actor.is_some(), is_of_an_actor(kind));
        }
        let decks = 1_200 / KINDS.iter().map(|kind| kind.weight).sum::<u32>();
        for kind in &KINDS {
            let n = counts[kind.name];
            assert!(
                (kind.weight * (decks - 1)..=kind.weight * (decks + 2)).contains(&n),
                "{} {n}",
                kind.name
            );
        }
    }

    #[test]
    fn each_once_is_each_kind_and_each_actor_once() {
        let plan = Plan::make(&Wanted { each_once: true, ..wanted(3) });
        let all: BTreeSet<_> =
            plan.faults.iter().map(|f| (f.kind.clone(), f.actor.clone())).collect();
        assert_eq!(all.len(), plan.faults.len());
        assert_eq!(all.len(), KINDS.len() + 3);
        plan.validate().unwrap();
    }

    #[test]
    fn it_survives_being_written_down() {
        let plan = Plan::make(&wanted(5));
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        let unknown = Planned { at_ms: 0, kind: "flood".into(), actor: None, for_ms: 0, pick: 0 };
        assert!(Plan { seed: 1, faults: vec![unknown] }.validate().unwrap_err().contains("flood"));
    }

    #[test]
    fn what_is_not_possible_is_left_out_by_name() {
        let missing = |needs| (needs == Needs::Mount).then(|| "no permission".to_owned());
        let (possible, left_out) = chosen(&["disk".parse().unwrap()], missing);
        assert_eq!(possible.len(), 1);
        assert_eq!((left_out[0].0.name, &*left_out[0].1), ("disk-full", "no permission"));
        assert_eq!(chosen(&[], |_| None).0.len(), KINDS.len());
    }
}
