//! What moves between the parties.

use super::world::{CRITICAL_FEATURE, Event, Fate, run_script};
use millstream::protocol::{
    accumulator::Part,
    apply::Decision,
    source::{OpenReply, OpenRequest, Token},
    ticket::Ticket,
    version::Version,
    window::PartRange,
};
use std::rc::Rc;

/// A range as the trace names it: partition and positions.
pub fn place(range: &PartRange) -> String {
    let p = range.source.kafka_partition().map_or(-1, |(_, p)| p);
    format!("{p}/[{},{})", range.from, range.to)
}

/// Records of one source.
#[derive(Debug)]
pub struct SourcePart {
    /// Partition.
    pub p: usize,
    /// Under which token it was read, and its range.
    pub range: PartRange,
    /// The small integer of the source.
    pub source_no: i32,
    /// Offsets and events.
    pub records: Vec<(i64, u32)>,
    /// Reports the range when it is dropped.
    pub ticket: Ticket,
}

impl Part for SourcePart {
    fn rows(&self) -> usize {
        self.records.len()
    }

    fn bytes(&self) -> usize {
        10 * self.records.len()
    }

    /// Each pin has an accumulator of its own here.
    fn pin(&self) -> Option<&str> {
        None
    }

    fn merge(&mut self, mut next: Self) -> Result<(), Self> {
        if let Err(ticket) = self.ticket.join(next.ticket) {
            next.ticket = ticket;
            return Err(next);
        }
        self.range.to = next.range.to;
        self.records.append(&mut next.records);
        Ok(())
    }
}

/// A closed batch.
#[derive(Debug)]
pub struct EventBatch {
    /// The version that it must be run under; `None`: the current one.
    pub pinned: Option<u8>,
    /// Its parts.
    pub parts: Vec<SourcePart>,
}

/// One feature row.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which event.
    pub event: u32,
    /// Its entity.
    pub entity: u8,
    /// Which feature.
    pub feature: u8,
    /// Its value.
    pub value: i32,
    /// Its place in the version order; position and sub are in it.
    pub version: Version,
}

/// The newest value of an entity, for the online store.
#[derive(Debug, Clone)]
pub struct OnlineValue {
    /// Whose.
    pub entity: usize,
    /// The packed version.
    pub packed: Rc<str>,
    /// The value.
    pub value: i32,
}

/// The effect of one part.
#[derive(Debug)]
pub struct Effect {
    /// Partition.
    pub p: usize,
    /// Token and range.
    pub range: PartRange,
    /// Events.
    pub n_in: i64,
    /// Events with rows.
    pub n_kept: i64,
    /// Events without.
    pub n_filtered: i64,
    /// Rows.
    pub rows: Vec<Row>,
    /// Offsets of bad events.
    pub dead: Vec<i64>,
}

/// The newest critical value of each entity.
pub fn newest<'a>(rows: impl Iterator<Item = (&'a Row, u32)>) -> Vec<OnlineValue> {
    let mut best: Vec<(u8, (Version, u32), i32)> = Vec::new();
    for (row, token_no) in rows.filter(|(r, _)| r.feature == CRITICAL_FEATURE) {
        let version = (row.version, token_no);
        match best.iter_mut().find(|(entity, ..)| *entity == row.entity) {
            Some(known) if known.1 >= version => {}
            Some(known) => *known = (row.entity, version, row.value),
            None => best.push((row.entity, version, row.value)),
        }
    }
    let online = |(entity, (version, token_no), value): (u8, (Version, u32), i32)| OnlineValue {
        entity: usize::from(entity),
        packed: version.pack(token_no).into(),
        value,
    };
    best.into_iter().map(online).collect()
}

impl Effect {
    /// What the script makes of a part; the ticket comes back.
    pub fn of(part: SourcePart, script: u8, events: &[Event], drop_bad: bool) -> (Self, Ticket) {
        let SourcePart { p, range, source_no, records, ticket } = part;
        let mut effect = Self {
            p,
            range,
            n_in: records.len() as i64,
            n_kept: 0,
            n_filtered: 0,
            rows: Vec::new(),
            dead: Vec::new(),
        };
        for (pos, id) in records {
            let event = &events[id as usize];
            match run_script(event, script) {
                Fate::Filtered => effect.n_filtered += 1,
                Fate::Dead if drop_bad => effect.n_filtered += 1,
                Fate::Dead => effect.dead.push(pos),
                Fate::Kept(features, value) => {
                    effect.n_kept += 1;
                    for (sub, feature) in features.iter().enumerate() {
                        let version = Version {
                            event_timestamp: event.event_timestamp,
                            created_at: event.created_at,
                            source_no,
                            pos,
                            sub: sub as i32,
                        };
                        let value = value.wrapping_add(sub as i32);
                        effect.rows.push(Row {
                            event: id,
                            entity: event.entity,
                            feature: *feature,
                            value,
                            version,
                        });
                    }
                }
            }
        }
        (effect, ticket)
    }

    /// What becomes online.
    pub fn online(&self) -> Vec<OnlineValue> {
        newest(self.rows.iter().map(|row| (row, self.range.token.number)))
    }
}

/// A write as it stands on the queue.
#[derive(Debug)]
pub struct Write {
    /// The version that made it.
    pub script: u8,
    /// The generation that its online values were written under.
    pub generation: Rc<str>,
    /// A part each.
    pub effects: Vec<Effect>,
}

/// What an entry asks.
#[derive(Debug, Clone)]
pub enum Request {
    /// Open a partition.
    Open(usize, Rc<OpenRequest>),
    /// Write a batch.
    Write(Rc<Write>),
}

/// An entry of the queue.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Given by Redis.
    pub id: u64,
    /// Which life of which node waits for the answer.
    pub reply_to: u64,
    /// Echoed.
    pub round: u64,
    /// It was sent before, and was lost.
    pub again: bool,
    /// What it asks.
    pub request: Request,
}

/// The verdict on one part.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Partition.
    pub p: usize,
    /// Which part.
    pub range: PartRange,
    /// What was decided.
    pub decision: Decision,
    /// The watermark after it.
    pub next_pos: i64,
}

/// What the store says.
#[derive(Debug, Clone)]
pub enum Said {
    /// To an open.
    Opened(usize, OpenReply),
    /// To a write.
    Written(Vec<Verdict>),
    /// DuckDB does not take it.
    Refused,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// As the entry said.
    pub round: u64,
    /// What the store said.
    pub said: Said,
}

/// Where a lane is to read, and under which token.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The token.
    pub token: Token,
    /// The small integer of the source.
    pub source_no: i32,
    /// Where to read.
    pub next_pos: i64,
    /// Positions before this one under that script.
    pub promised: Option<(i64, u8)>,
}
