//! What an event is: a pure function of its stream, the seed and its id.
//!
//! Nothing is remembered from one event to the next. The producer makes an event from its id,
//! and long after, the judge asks [`EventMaker::fate`] what must have become of it, knowing no
//! more than the id, the seed and the [`Mix`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clicks::{self, Action};
use super::features;
use super::hash::Draws;
use super::id::EventId;
use super::mix::Mix;
use super::object::Defect;
use super::reasons;
use super::zipf::Zipf;

/// The streams that Millstream ships with a generator and a script.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Builtin {
    /// `{entity_id, feature_name, value, validated_at, created_at}`: ready-made features, keyed
    /// by `entity_id`, one row an event.
    Features,
    /// `{user_id, action, timestamp, page, duration_ms, amount}`: raw user events, keyed by
    /// `user_id`, from no row (scroll) to two (purchase).
    Clicks,
}

impl Builtin {
    /// Both streams.
    pub const ALL: [Self; 2] = [Self::Features, Self::Clicks];

    /// The name of the stream in the shipped configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Clicks => "clicks",
        }
    }

    /// Keeps the events of one id apart in the two streams.
    const fn salt(self) -> u64 {
        match self {
            Self::Features => 0x6665_6174_7572_6573,
            Self::Clicks => 0x636C_6963_6B73_2121,
        }
    }

    const fn defects(self) -> &'static [Defect] {
        match self {
            Self::Features => features::DEFECTS,
            Self::Clicks => clicks::DEFECTS,
        }
    }
}

/// What must have become of an event once things are quiet.
///
/// That an event is from the future is seen only by a decoder that gets it in time: within 55
/// minutes of its id's time, with the default tolerance of 5 minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is in `features_table`.
    Good {
        /// As how many rows; at least 1.
        rows: u8,
    },
    /// Its script made no row of it, and it is counted as filtered.
    Filtered,
    /// It is a dead letter.
    Dead {
        /// One of [`reasons`].
        reason: &'static str,
    },
}

/// One event, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its tracking number, for the record's header.
    pub id: EventId,
    /// The record's key: the entity as text. Malformed events have it too, so that they go to
    /// the partition of their entity.
    pub key: Option<Vec<u8>>,
    /// The record's value; `None` is a tombstone, one of the malformed kinds.
    pub payload: Option<Vec<u8>>,
    /// What must become of it.
    pub fate: Fate,
    /// Whether its event time lies long before the time of its id. Never with a dead fate.
    pub late: bool,
    /// Whether it is to be sent twice, like a producer's retry. Drawn apart from the fate.
    pub duplicate: bool,
}

/// Makes the events of one stream under one seed. Cheap to clone, free of state.
#[derive(Debug, Clone)]
pub struct EventMaker {
    stream: Builtin,
    /// Seed and stream in one.
    salt: u64,
    zipf: Zipf,
    /// A draw below the first bound is malformed, below the second from the future, below the
    /// third late, else ordinary.
    malformed_below: f64,
    future_below: f64,
    late_below: f64,
    duplicate_below: f64,
}

/// What sort of event an id stands for.
enum Class {
    Ordinary,
    Late,
    Future,
    Malformed(&'static Defect),
}

/// All that decides the fate, and the draws for the rest.
struct Plan {
    class: Class,
    duplicate: bool,
    /// Drawn, and used, for clicks only.
    action: Action,
    draws: Draws,
}

impl EventMaker {
    /// A maker for `stream`. `mix` should have passed [`Mix::validate`]; one that has not makes
    /// events all the same, of which the shares are clipped.
    pub fn new(stream: Builtin, seed: u64, mix: &Mix) -> Self {
        Self {
            stream,
            salt: super::hash::mix64(seed ^ stream.salt()),
            zipf: Zipf::new(mix.entities, mix.zipf),
            malformed_below: mix.malformed,
            future_below: mix.malformed + mix.future,
            late_below: mix.malformed + mix.future + mix.late,
            duplicate_below: mix.duplicate,
        }
    }

    /// The stream whose events this makes.
    pub const fn stream(&self) -> Builtin {
        self.stream
    }

    /// The event of `id`.
    pub fn make(&self, id: EventId) -> Event {
        let mut plan = self.plan(id);
        let fate = self.fate_of(&plan);
        let draws = &mut plan.draws;
        let rank = self.zipf.sample(draws);
        let event_us = event_time_us(id.parts().unix_ms, &plan.class, draws);
        let surgery = match plan.class {
            Class::Malformed(defect) => Some(defect.surgery),
            Class::Ordinary | Class::Late | Class::Future => None,
        };
        let mut key = Vec::with_capacity(16);
        let payload = match self.stream {
            Builtin::Features => {
                features::push_key(&mut key, rank);
                features::payload(&key, event_us, surgery, draws)
            }
            Builtin::Clicks => {
                clicks::push_key(&mut key, rank);
                clicks::payload(&key, plan.action, event_us, surgery, draws)
            }
        };
        Event {
            id,
            key: Some(key),
            payload,
            fate,
            late: matches!(plan.class, Class::Late),
            duplicate: plan.duplicate,
        }
    }

    /// What must become of the event of `id`: the same as of [`EventMaker::make`], in a
    /// tenth of the time.
    pub fn fate(&self, id: EventId) -> Fate {
        self.fate_of(&self.plan(id))
    }

    /// Whether the event of `id` is sent twice.
    pub fn duplicate(&self, id: EventId) -> bool {
        self.plan(id).duplicate
    }

    fn plan(&self, id: EventId) -> Plan {
        let mut draws = Draws::new(id.hash(self.salt));
        let draw = draws.unit();
        let class = if draw < self.malformed_below {
            Class::Malformed(draws.pick(self.stream.defects()))
        } else if draw < self.future_below {
            Class::Future
        } else if draw < self.late_below {
            Class::Late
        } else {
            Class::Ordinary
        };
        let duplicate = draws.unit() < self.duplicate_below;
        let mut action = Action::draw(&mut draws);
        // A scroll that is dead as well would leave open which of the two is found first.
        if action == Action::Scroll && matches!(class, Class::Malformed(_) | Class::Future) {
            action = Action::View;
        }
        Plan { class, duplicate, action, draws }
    }

    fn fate_of(&self, plan: &Plan) -> Fate {
        match plan.class {
            Class::Malformed(defect) => Fate::Dead { reason: defect.reason },
            Class::Future => Fate::Dead { reason: reasons::FUTURE_TIMESTAMP },
            Class::Ordinary | Class::Late => match self.stream {
                Builtin::Features => Fate::Good { rows: 1 },
                Builtin::Clicks => match plan.action.rows() {
                    0 => Fate::Filtered,
                    rows => Fate::Good { rows },
                },
            },
        }
    }
}

const MINUTE_US: u64 = 60_000_000;
const HOUR_US: u64 = 60 * MINUTE_US;
const DAY_US: u64 = 24 * HOUR_US;

/// The event time in microseconds since 1970: the id's millisecond with three more digits, moved
/// back by a minute to three days for a late event and ahead by an hour to 30 days for one from
/// the future.
fn event_time_us(unix_ms: u64, class: &Class, draws: &mut Draws) -> i64 {
    let made_us = unix_ms * 1000 + draws.below(1000);
    let event_us = match class {
        Class::Ordinary | Class::Malformed(_) => made_us,
        Class::Late => {
            // As many late by minutes as by hours and by days.
            let (least, most) =
                *draws.pick(&[(MINUTE_US, HOUR_US), (HOUR_US, DAY_US), (DAY_US, 3 * DAY_US)]);
            made_us.saturating_sub(least + draws.below(most - least))
        }
        Class::Future => made_us + HOUR_US + draws.below(30 * DAY_US - HOUR_US),
    };
    // 48 bits of milliseconds and 30 days are far below 2^63 microseconds.
    event_us as i64
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
