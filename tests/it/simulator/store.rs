//! The store's database and its transactions, as `src/store/writer.rs` and the writer thread carry
//! them: durable is what was committed, and nothing else.

use super::{
    defects::Defect,
    messages::{Effect, Entry, OnlineValue, Request, Row, Said, Verdict, newest, place},
    serving::{Decided, Stage},
    trace::say,
    world::{Count, PARTITIONS, World},
};
use millstream::protocol::{
    apply::{Decision, SourceState, Watermarks},
    source::{OpenReply, OpenRequest, SourceAttributes, Token, halt_reason},
    window::PartRange,
};
use std::{collections::VecDeque, rc::Rc};

/// A row of `sources`.
#[derive(Debug, Clone, Copy)]
pub struct SourceRow {
    /// The only token that may write.
    pub token: Token,
    /// The first position whose effect is not here.
    pub next_pos: i64,
    /// Where the source began.
    pub start_pos: i64,
}

/// A ledger line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Counts batches.
    pub batch_seq: i64,
    /// Partition.
    pub p: usize,
    /// Range.
    pub from: i64,
    /// Range.
    pub to: i64,
    /// Counts: in, kept, dead, filtered, rows.
    pub counts: [i64; 5],
    /// Script version.
    pub script: u8,
}

/// What is durable.
#[derive(Debug, Clone, Default)]
pub struct Db {
    /// By partition.
    pub sources: [Option<SourceRow>; PARTITIONS],
    /// In the order of their commits.
    pub ledger: Vec<Line>,
    /// With batch, partition and token's number.
    pub rows: Vec<(i64, usize, u32, Row)>,
    /// Batch, partition, position.
    pub dead: Vec<(i64, usize, i64)>,
    /// Made anew whenever the store finds that it was restored.
    pub lineage: u64,
}

impl Db {
    /// The last batch, 0 for none.
    pub fn last_batch_seq(&self) -> i64 {
        self.ledger.last().map_or(0, |line| line.batch_seq)
    }

    /// Adds the effect of a part under the next ledger line.
    fn add(&mut self, effect: &Effect, script: u8, next_pos: i64) {
        let Effect { p, range, n_in, n_kept, n_filtered, rows, dead } = effect;
        let batch_seq = self.last_batch_seq() + 1;
        let counts = [*n_in, *n_kept, dead.len() as i64, *n_filtered, rows.len() as i64];
        let (from, to) = (range.from, range.to);
        self.ledger.push(Line { batch_seq, p: *p, from, to, counts, script });
        let token_no = range.token.number;
        self.rows.extend(rows.iter().map(|row| (batch_seq, *p, token_no, row.clone())));
        self.dead.extend(dead.iter().map(|pos| (batch_seq, *p, *pos)));
        if let Some(row) = &mut self.sources[*p] {
            row.next_pos = next_pos;
        }
    }

    /// The newest critical values of batches after one.
    pub fn newest_after(&self, batch_seq: i64) -> Vec<OnlineValue> {
        newest(self.rows.iter().filter(|r| r.0 > batch_seq).map(|r| (&r.3, r.2)))
    }
}

/// A group of writes on its way into one transaction.
pub struct Group {
    /// The entries, in order.
    pub entries: Vec<Entry>,
    trial: Watermarks,
    verdicts: Vec<Vec<Verdict>>,
    after: Db,
    written: bool,
    repeat: Option<Vec<OnlineValue>>,
}

/// See the module.
#[derive(Default)]
pub struct Store {
    /// Whether it runs.
    pub up: bool,
    /// When it starts again.
    pub down_until: u64,
    /// What is durable.
    pub db: Db,
    /// A backup.
    pub backup: Option<Db>,
    /// Watermarks as committed.
    pub marks: Watermarks,
    /// The run of Redis that it is connected to.
    pub connected: Option<u64>,
    /// Whether it looked at Redis since it connected, and did what was to be done.
    pub looked: bool,
    /// Values that are to be put online again before anything else: what is left of them.
    pub replay: Option<Vec<OnlineValue>>,
    /// The generation that it made or found.
    pub generation: Rc<str>,
    /// Read and not yet decided.
    pub in_hand: VecDeque<Entry>,
    /// Writes that are to be tried alone.
    pub alone: VecDeque<Entry>,
    /// Own pending entries are read after this one; `None`: new ones.
    pub cursor: Option<u64>,
    /// What it is at.
    pub stage: Stage,
}

impl World {
    /// Kills the store.
    pub fn kill_store(&mut self) {
        if self.store.up {
            self.count(Count::StoreCrash);
            say!(self, "store", "killed");
        }
        let down = 20 + self.pick(400) as u64;
        let db = std::mem::take(&mut self.store.db);
        let backup = self.store.backup.take();
        self.store = Store { db, backup, down_until: self.now + down, ..Store::default() };
    }

    /// Opens the database and believes its watermarks.
    pub fn start_store(&mut self) {
        self.store.up = true;
        self.store.cursor = Some(0);
        self.reload();
        say!(self, "store", "opened at {:?}", self.store.db.sources.map(|s| s.map(|s| s.next_pos)));
    }

    fn reload(&mut self) {
        let mut marks = Watermarks::default();
        for (p, row) in self.store.db.sources.iter().enumerate() {
            if let Some(row) = row {
                let state = SourceState {
                    source_no: p as i32 + 1,
                    token: row.token,
                    next_pos: row.next_pos,
                };
                marks.insert(self.sources[p].clone(), state);
            }
        }
        self.store.marks = marks;
    }

    /// A COMMIT of unknown outcome: everything in memory goes, the file tells. Redis is looked at
    /// again: what is durable now will be answered as a duplicate, which repeats nothing online.
    fn reopen(&mut self) {
        self.reload();
        self.store.looked = self.has(Defect::ReopenedWithoutLook);
        self.store.in_hand.clear();
        self.store.alone.clear();
        self.store.cursor = Some(0);
        self.store.stage = Stage::Idle;
    }

    /// Takes an open, or a group of writes, from what is in hand.
    pub fn begin(&mut self) {
        if let Some(entry) = self.store.alone.pop_front() {
            return self.begin_group(vec![entry]);
        }
        let Some(first) = self.store.in_hand.pop_front() else { return };
        if let Request::Open(p, request) = &first.request {
            let (p, request) = (*p, request.clone());
            return self.open_source(first, p, &request);
        }
        let mut entries = vec![first];
        let most = 1 + self.pick(4);
        while entries.len() < most
            && matches!(self.store.in_hand.front().map(|e| &e.request), Some(Request::Write(_)))
        {
            entries.extend(self.store.in_hand.pop_front());
        }
        self.begin_group(entries);
    }

    fn open_source(&mut self, entry: Entry, p: usize, request: &OpenRequest) {
        let known = self.store.marks.get(&self.sources[p]).cloned();
        let (number, next_pos) = match &known {
            Some(state) => {
                let attributes = SourceAttributes::default();
                if let Some(reason) = halt_reason(&attributes, state.next_pos, request) {
                    let said = Said::Opened(p, OpenReply::Halted { reason });
                    return self.decided(vec![Decided { entry, said }], Vec::new());
                }
                (state.token.number, state.next_pos)
            }
            None => (0, request.start),
        };
        let token = self.fresh_token(number);
        let rate = self.rates.store;
        let unknown = self.goes_wrong(rate);
        if !unknown || self.pick(2) == 0 {
            let start_pos = self.store.db.sources[p].map_or(next_pos, |s| s.start_pos);
            self.store.db.sources[p] = Some(SourceRow { token, next_pos, start_pos });
        }
        if unknown {
            self.count(Count::CommitUnknown);
            say!(self, "store", "the COMMIT of an open has an unknown outcome");
            return self.reopen();
        }
        let source_no = p as i32 + 1;
        self.store
            .marks
            .insert(self.sources[p].clone(), SourceState { source_no, token, next_pos });
        say!(self, "store", "opened {p}/{next_pos} with token {}", token.number);
        let reply = OpenReply::Opened { token, source_no, next_pos, promised: None };
        self.decided(vec![Decided { entry, said: Said::Opened(p, reply) }], Vec::new());
    }

    /// Whether a part's rows came as a file, and it is not there. The dice are the part's own: those
    /// of the world fall as they would without files.
    fn chunk_is_gone(&self, range: &PartRange) -> bool {
        let dice = range.token.id.as_u128() ^ range.from.unsigned_abs() as u128;
        self.faults && dice.is_multiple_of(101)
    }

    fn offer(&mut self, trial: &mut Watermarks, range: &PartRange) -> Decision {
        let PartRange { source, token, from, to } = range;
        if self.chunk_is_gone(range) && trial.decide(source, *token, *from, *to) == Decision::Apply
        {
            self.count(Count::ChunkGone);
            return Decision::Gap;
        }
        let decision = trial.offer(&range.source, range.token, range.from, range.to);
        let Some(mut state) = trial.get(&range.source).cloned() else { return decision };
        let taken = match decision {
            Decision::Fenced if self.has(Defect::NoTokenCheck) => {
                return trial.offer(&range.source, state.token, range.from, range.to);
            }
            Decision::Gap => self.has(Defect::GapsAreTaken),
            _ => false,
        };
        if taken {
            state.next_pos = range.to;
            trial.insert(range.source.clone(), state);
            return Decision::Apply;
        }
        decision
    }

    fn begin_group(&mut self, entries: Vec<Entry>) {
        let mut trial = self.store.marks.clone();
        let mut after = self.store.db.clone();
        let mut verdicts = Vec::with_capacity(entries.len());
        for entry in &entries {
            let Request::Write(write) = &entry.request else { continue };
            let mut its = Vec::with_capacity(write.effects.len());
            for effect in &write.effects {
                let range = &effect.range;
                let decision = self.offer(&mut trial, range);
                let next_pos = trial.get(&range.source).map_or(0, |s| s.next_pos);
                let name = decision.name();
                say!(self, "store", "{} token {}: {name}", place(range), range.token.number);
                if decision == Decision::Apply {
                    after.add(effect, write.script, next_pos);
                }
                its.push(Verdict { p: effect.p, range: range.clone(), decision, next_pos });
                self.count(match decision {
                    Decision::Apply => Count::Apply,
                    Decision::Duplicate => Count::Duplicate,
                    Decision::Gap => Count::Gap,
                    Decision::Overlap => Count::Overlap,
                    Decision::Fenced => Count::Fenced,
                });
            }
            verdicts.push(its);
        }
        let mut group = Group { entries, trial, verdicts, after, written: false, repeat: None };
        if self.has(Defect::ComparedBeforeCommit) {
            group.repeat = Some(self.left_behind(&group));
        }
        if self.has(Defect::AnswerBeforeCommit) && self.pick(2) == 0 {
            self.early_answer(&group);
        }
        self.store.stage = Stage::Group(Box::new(group));
    }

    fn early_answer(&mut self, group: &Group) {
        for (entry, verdicts) in group.entries.iter().zip(&group.verdicts) {
            let said = Said::Written(verdicts.clone());
            self.push_answer(&Decided { entry: entry.clone(), said });
        }
    }

    /// One step of a transaction: its statements, then its COMMIT.
    pub fn group_step(&mut self, mut group: Box<Group>) {
        let rate = self.rates.store;
        if !group.written {
            if self.goes_wrong(rate) {
                return self.rolled_back(*group);
            }
            group.written = true;
            self.store.stage = Stage::Group(group);
            return;
        }
        let unknown = self.goes_wrong(rate);
        if !unknown || self.pick(2) == 0 {
            let mut after = std::mem::take(&mut group.after);
            // Opens have closed the group first: tokens are as they were.
            after.lineage = self.store.db.lineage;
            if self.has(Defect::WatermarkInSecondTransaction) {
                after.sources = self.store.db.sources;
            }
            self.store.db = after;
        }
        if unknown {
            self.count(Count::CommitUnknown);
            say!(self, "store", "a COMMIT has an unknown outcome");
            return self.reopen();
        }
        self.store.marks = std::mem::take(&mut group.trial);
        say!(self, "store", "committed up to batch {}", self.store.db.last_batch_seq());
        let repeat = match group.repeat.take() {
            Some(early) => early,
            None => self.left_behind(&group),
        };
        let decided = group.entries.into_iter().zip(group.verdicts);
        let decided = decided.map(|(entry, v)| Decided { entry, said: Said::Written(v) }).collect();
        self.decided(decided, repeat);
        if self.has(Defect::WatermarkInSecondTransaction) {
            self.store.stage = Stage::Watermark(Box::new(std::mem::take(&mut self.store.stage)));
        }
    }

    /// What of a group that is committed was put online under another generation than the present
    /// one, or perhaps lost. Asked only after COMMIT: a new generation that comes later replays
    /// these batches with all others, one that came before did not know them.
    fn left_behind(&mut self, group: &Group) -> Vec<OnlineValue> {
        let mut repeat = Vec::new();
        for (entry, verdicts) in group.entries.iter().zip(&group.verdicts) {
            let Request::Write(write) = &entry.request else { continue };
            if !entry.again && write.generation == self.store.generation {
                continue;
            }
            for (effect, verdict) in write.effects.iter().zip(verdicts) {
                if verdict.decision == Decision::Apply {
                    repeat.extend(effect.online());
                }
            }
        }
        if !repeat.is_empty() {
            self.count(Count::Repeated);
        }
        repeat
    }

    /// The planted second transaction.
    pub fn commit_watermark(&mut self) {
        for (p, row) in self.store.db.sources.iter_mut().enumerate() {
            if let (Some(row), Some(state)) = (row, self.store.marks.get(&self.sources[p])) {
                row.next_pos = state.next_pos;
            }
        }
    }

    /// A statement failed: the writes are tried one by one; one that fails alone is refused.
    fn rolled_back(&mut self, group: Group) {
        self.count(Count::StatementError);
        say!(self, "store", "rolled back {} writes", group.entries.len());
        self.store.stage = Stage::Idle;
        if group.entries.len() > 1 {
            self.store.alone.extend(group.entries);
            return;
        }
        self.count(Count::Refused);
        let refused = |entry| Decided { entry, said: Said::Refused };
        self.decided(group.entries.into_iter().map(refused).collect(), Vec::new());
    }
}
