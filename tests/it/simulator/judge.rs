//! The judge: what must hold at every step, and what must hold when all is quiet.

use super::{
    messages::Said,
    process::Node,
    serving::{Decided, Stage},
    world::{CAP, ENTITIES, Fate, PARTITIONS, World, run_script},
};
use millstream::protocol::{
    generation::{Action, action},
    version::Version,
};
use std::collections::HashMap;

/// Outputs of one event: event, feature, value.
type Outputs = Vec<(u32, u8, i32)>;

impl World {
    /// What must hold at every step.
    pub fn judge_step(&mut self) {
        for p in 0..PARTITIONS {
            let next_pos = self.store.db.sources[p].map_or(0, |s| s.next_pos);
            let partition = &self.broker.partitions[p];
            let committed = partition.committed.unwrap_or(0);
            if committed > next_pos.max(partition.ahead_allowed) {
                self.broken(
                    "C7 committed offset",
                    format!("partition {p}: the broker has {committed}, DuckDB {next_pos}"),
                );
            }
        }
        let live = self.orphans.len() + self.nodes.iter().map(|n| n.workers.len()).sum::<usize>();
        if live > CAP {
            self.broken("C8 workers", format!("{live} workers live"));
        }
    }

    /// Nothing is answered that is not durable.
    pub fn judge_answer(&mut self, of: &Decided) {
        self.redis.answered.push(of.entry.id);
        let Said::Written(verdicts) = &of.said else { return };
        for verdict in verdicts {
            let durable = self.store.db.sources[verdict.p].map_or(0, |s| s.next_pos);
            if verdict.decision.is_ok() && verdict.range.to > durable {
                self.broken(
                    "answered before durable",
                    format!(
                        "{}/[{}, {}) at {durable}",
                        verdict.p, verdict.range.from, verdict.range.to
                    ),
                );
            }
        }
    }

    /// No entry leaves the queue unanswered, but by a loss of Redis.
    pub fn judge_missing(&mut self, id: u64, sent_at: u64) {
        if self.redis.lost_at < sent_at && !self.redis.answered.contains(&id) {
            self.broken("an entry left the queue", format!("entry {id} was never answered"));
        }
    }

    /// Whether everything that was sent is accounted for and nobody has anything left to do.
    pub fn is_quiet(&self) -> bool {
        let store = &self.store;
        self.broker.to_send == 0
            && store.up
            && store.looked
            && matches!(store.stage, Stage::Idle)
            && store.in_hand.is_empty()
            && self.redis.keys.stream.is_empty()
            && self.nodes.iter().all(|n| n.up && n.paused_until <= self.now && n.is_quiet())
            && (0..PARTITIONS).all(|p| {
                let partition = &self.broker.partitions[p];
                let next_pos = store.db.sources[p].map_or(0, |s| s.next_pos);
                let done = self.broker.next_event(p, next_pos).is_none();
                done && partition
                    .owner
                    .is_some_and(|n| self.nodes[n].lanes.iter().any(|lane| lane.p == p))
                    && (partition.committed.unwrap_or(0) == next_pos)
            })
            && action(&self.found(), store.db.last_batch_seq(), &self.fingerprint()) == Action::Keep
    }

    /// Holds everything against what was sent.
    pub fn judge_end(&mut self) {
        let broken = self
            .fates()
            .or_else(|| self.duplicates())
            .or_else(|| self.order())
            .or_else(|| self.books())
            .or_else(|| self.online());
        if let Some((check, detail)) = broken {
            self.broken(check, detail);
        }
    }

    /// C1 and C4: each event that was sent has the fate that the script of its ledger line gives
    /// it, and nothing else is there.
    fn fates(&self) -> Option<(&'static str, String)> {
        let db = &self.store.db;
        let mut rows: HashMap<(usize, i64), Outputs> = HashMap::new();
        for (_, p, _, row) in &db.rows {
            rows.entry((*p, row.version.pos)).or_default().push((
                row.event,
                row.feature,
                row.value,
            ));
        }
        let mut accounted = 0;
        for line in &db.ledger {
            for pos in line.from..line.to {
                let slot = self.broker.partitions[line.p].log.get(pos as usize);
                let Some(Some(id)) = slot else { continue };
                accounted += 1;
                let fate = run_script(&self.broker.events[*id as usize], line.script);
                let mut found = rows.remove(&(line.p, pos)).unwrap_or_default();
                found.sort_unstable();
                let dead = db.dead.iter().filter(|(_, p, at)| (*p, *at) == (line.p, pos)).count();
                let mut expected = Vec::new();
                if let Fate::Kept(features, value) = fate {
                    let row = |(sub, f): (usize, &u8)| (*id, *f, value.wrapping_add(sub as i32));
                    expected.extend(features.iter().enumerate().map(row));
                    expected.sort_unstable();
                }
                if found != expected || dead != usize::from(fate == Fate::Dead) {
                    let detail = format!(
                        "event {id} at {}/{pos}: {fate:?}, but rows {found:?} and {dead} dead letters",
                        line.p
                    );
                    return Some(("C1 fates", detail));
                }
            }
        }
        if let Some(((p, pos), _)) = rows.iter().next() {
            return Some(("C4 never sent", format!("rows at {p}/{pos} belong to nothing")));
        }
        let sent = self.broker.events.len();
        (accounted != sent)
            .then(|| ("C1 fates", format!("{accounted} of {sent} events accounted for")))
    }

    /// C2.
    fn duplicates(&self) -> Option<(&'static str, String)> {
        let db = &self.store.db;
        let mut keys: Vec<_> =
            db.rows.iter().map(|(_, p, _, r)| (*p, r.version.pos, r.version.sub)).collect();
        keys.sort_unstable();
        let twice = keys.windows(2).find(|w| w[0] == w[1])?;
        Some(("C2 duplicates", format!("{:?} stands twice", twice[0])))
    }

    /// C3: effects of an entity in the order of its positions.
    fn order(&self) -> Option<(&'static str, String)> {
        let mut last = [(-1, -1); ENTITIES];
        for (seq, _, _, row) in &self.store.db.rows {
            let place = (row.version.pos, row.version.sub);
            let last = &mut last[usize::from(row.entity)];
            if place <= *last {
                return Some(("C3 order", format!("batch {seq}: {place:?} after {last:?}")));
            }
            *last = place;
        }
        None
    }

    /// C5: the ledger is contiguous, and its counts match the tables.
    fn books(&self) -> Option<(&'static str, String)> {
        let db = &self.store.db;
        let mut at = db.sources.map(|s| s.map_or(0, |s| s.start_pos));
        for line in &db.ledger {
            if std::mem::replace(&mut at[line.p], line.to) != line.from {
                return Some(("C5 ledger", format!("{line:?} does not follow")));
            }
            let [n_in, kept, dead, filtered, rows] = line.counts;
            let its_rows = db.rows.iter().filter(|r| r.0 == line.batch_seq).count() as i64;
            let its_dead = db.dead.iter().filter(|d| d.0 == line.batch_seq).count() as i64;
            if n_in != kept + dead + filtered || rows != its_rows || dead != its_dead {
                return Some(("C5 ledger", format!("{line:?}: {its_rows} rows, {its_dead} dead")));
            }
        }
        let ends = db.sources.map(|s| s.map_or(0, |s| s.next_pos));
        (at != ends).then(|| ("C5 ledger", format!("it ends at {at:?}, the sources at {ends:?}")))
    }

    /// C6: online is exactly the newest of what is durable.
    fn online(&self) -> Option<(&'static str, String)> {
        let mut expected: [Option<(Version, i32)>; ENTITIES] = [None; ENTITIES];
        for value in self.store.db.newest_after(0) {
            expected[value.entity] = Some((Version::unpack(&value.packed)?.0, value.value));
        }
        for (entity, expected) in expected.iter().enumerate() {
            let stored = self.redis.keys.online[entity].as_ref();
            let stored = stored.and_then(|(v, value)| Some((Version::unpack(v)?.0, *value)));
            if stored != *expected {
                let detail = format!("entity {entity}: online {stored:?}, durable {expected:?}");
                return Some(("C6 online", detail));
            }
        }
        None
    }
}

/// What is still to be done, for people.
pub fn unfinished(world: &World) -> String {
    let next: Vec<_> = world.store.db.sources.iter().map(|s| s.map_or(0, |s| s.next_pos)).collect();
    let highs: Vec<_> = (0..PARTITIONS).map(|p| world.broker.high(p)).collect();
    let committed: Vec<_> = world.broker.partitions.iter().map(|p| p.committed).collect();
    let busy: Vec<_> = world.nodes.iter().map(Node::busy_with).collect();
    format!(
        "next_pos {next:?} of {highs:?}, committed {committed:?}, nodes busy with {busy:?}, {} entries queued, \
         store looked {}, last batch {}, {:?}",
        world.redis.keys.stream.len(),
        world.store.looked,
        world.store.db.last_batch_seq(),
        world.found(),
    )
}
