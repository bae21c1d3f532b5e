//! WorkerSemaphore: at most N Python workers alive, over all nodes.
//!
//! Takes [`AcquirePermit`]s from the PythonWorkerSupervisor, gives [`Permit`]s. The cap is kept in
//! Redis as a sorted set of leases by expiry, granted by a script on Redis' own clock. Promises:
//!
//! * never more than N leases are live;
//! * a Redis that lost everything grants nothing for one lease time, after which no worker is left
//!   that it does not know of;
//! * a permit comes back when its holder drops it, at the latest one lease time after its node
//!   fell silent;
//! * whoever waited longest on this node is served first;
//! * between nodes, one that has fewer workers comes first; one that has too many is told;
//! * a node that is refused knows that it must get by with what it has.
//!
//! Leases bound resources; they never guard data.

use crate::{
    config::Config,
    failpoint,
    messages::{AcquirePermit, Permit, ReleasePermit},
    planted,
    protocol::lease::{self, Debt, Operation, WANT_MS},
    queue::{Keys, RedisLink},
    telemetry::{StageMeter, catalogue as m},
};
use actix::{Actor, ActorFutureExt, AsyncContext, AtomicResponse, Context, Handler, WrapFuture};
use redis::{Script, aio::ConnectionManager};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

const METER: StageMeter = StageMeter::new("worker_semaphore");

/// While somebody waits, Redis is asked so often: another node's release is not announced.
const RETRY: Duration = Duration::from_millis(50);

/// Leases are renewed at least so often: the answer tells what other nodes want.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The clock of [`RULE`]. Tests bring one of their own.
const CLOCK: &str = r"
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)";

/// Grants, renews or gives back leases: [`crate::protocol::lease`] as a script.
/// KEYS: leases, the moment from which they are granted, the server's run as the store knows it (a
/// server that was started since may have forgotten leases, and nothing is granted before the store
/// has seen that), nodes that want a lease. ARGV: operation, cap, lease time in ms, node, how long it
/// counts as wanting in ms, lease names. Answers how long nothing is granted yet, in ms; the leases
/// of the poorest other node that wants one, or -1; then 1 for each lease for which it was done, else
/// 0.
const RULE: &str = r"
local from = redis.call('GET', KEYS[2])
if not from then
  from = now + ARGV[3]
  redis.call('SET', KEYS[2], string.format('%d', from))
end
local wait = math.max(tonumber(from) - now, 0)
local known = redis.call('GET', KEYS[3])
if known and known ~= string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') then
  wait = math.max(wait, 1)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
local me, has = ARGV[4], {}
for _, lease in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local node = string.match(lease, '^[^/]*')
  has[node] = (has[node] or 0) + 1
end
local poorest = -1
for _, node in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  local n = has[node] or 0
  if node ~= me and (poorest < 0 or n < poorest) then poorest = n end
end
local done = { wait, poorest }
for i = 6, #ARGV do
  local did = 0
  if ARGV[1] == 'acquire' then
    if wait == 0 then
      local fair = poorest < 0 or (has[me] or 0) <= poorest
      if fair and redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[2]) then
        redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[i])
        redis.call('ZREM', KEYS[4], me)
        has[me] = (has[me] or 0) + 1
        did = 1
      else
        redis.call('ZADD', KEYS[4], now + ARGV[5], me)
      end
    end
  elseif ARGV[1] == 'renew' then
    if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
      redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[i])
      did = 1
    end
  else
    did = redis.call('ZREM', KEYS[1], ARGV[i])
  end
  done[i - 3] = did
end
return done";

static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    if planted!("lease_without_quarantine") {
        return Script::new(&[CLOCK, &unquarantined()].concat());
    }
    Script::new(&[CLOCK, RULE].concat())
});

/// The rule that never waits, for a planted defect.
fn unquarantined() -> String {
    let wait = "local done = { wait, poorest }";
    failpoint::altered(RULE, &[(wait, &format!("wait = 0\n{wait}"))])
}

/// The leases that this node holds, with the moment from which each counts. Survives the actor,
/// so that a new instance goes on renewing what lives. A lease that is gone from Redis is gone here.
#[derive(Debug, Default)]
pub struct HeldLeases {
    leases: Mutex<HashMap<Arc<str>, Instant>>,
    /// The leases of the poorest other node that wants one, and when that was said.
    poorest: Mutex<Option<(usize, Instant)>>,
    /// Somebody here waits, and the last question was refused.
    refused: AtomicBool,
}

impl HeldLeases {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        // The map is never left half-changed.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node owes to others that want leases and have fewer.
    #[must_use]
    pub fn debt(&self) -> Debt {
        let told = *self.poorest.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Duration::from_millis(WANT_MS.unsigned_abs());
        let poorest = told.filter(|(_, at)| at.elapsed() < fresh).map(|(poorest, _)| poorest);
        lease::owes(self.lock().len(), poorest)
    }

    /// Permits that this node can have at present, of `cap`: those that it holds, when it was refused
    /// a further one.
    #[must_use]
    pub fn within_reach(&self, cap: usize) -> usize {
        if self.refused.load(Ordering::Relaxed) { self.lock().len() } else { cap }
    }

    fn told(&self, poorest: Option<usize>) {
        let told = poorest.map(|poorest| (poorest, Instant::now()));
        *self.poorest.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    /// The moment from which a lease counts: just before its last renewal was asked for. `None`:
    /// there is no such lease any more.
    #[must_use]
    pub fn renewed_at(&self, lease: &str) -> Option<Instant> {
        self.lock().get(lease).copied()
    }

    /// A lease was granted or renewed, asked for at `at`.
    pub(super) fn renewed(&self, lease: Arc<str>, at: Instant) {
        self.lock().insert(lease, at);
    }

    /// A lease is gone, or was given back. Whether it was held.
    pub(super) fn lost(&self, lease: &str) -> bool {
        self.lock().remove(lease).is_some()
    }
}

/// What outlives an instance.
#[derive(Debug, Clone)]
pub struct SemaphoreSlot {
    /// See [`HeldLeases`].
    pub held: Arc<HeldLeases>,
    /// Stands before the names of this node's leases; new with every start of the node.
    node: Arc<str>,
    released: mpsc::UnboundedSender<Arc<str>>,
    releases: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Arc<str>>>>,
}

impl Default for SemaphoreSlot {
    fn default() -> Self {
        let (released, releases) = mpsc::unbounded_channel();
        Self {
            held: Arc::default(),
            node: Uuid::now_v7().simple().to_string().into(),
            released,
            releases: Arc::new(tokio::sync::Mutex::new(releases)),
        }
    }
}

/// See the module.
pub struct WorkerSemaphore {
    cap: u32,
    lease_time: Duration,
    keys: [String; 4],
    redis: RedisLink,
    connection: Option<ConnectionManager>,
    slot: SemaphoreSlot,
    waiting: VecDeque<(oneshot::Sender<Permit>, Instant)>,
    asking: bool,
    /// It was said why nothing is granted for now.
    told_to_wait: bool,
}

/// What the script answered.
struct Answer {
    connection: ConnectionManager,
    wait_ms: i64,
    done: Vec<i64>,
}

impl WorkerSemaphore {
    /// An instance that adopts the leases in `slot`.
    #[must_use]
    pub fn new(config: &Config, redis: RedisLink, slot: SemaphoreSlot) -> Self {
        metrics::gauge!(m::PERMITS).set(f64::from(config.python.max_workers));
        let keys = Keys::new(&config.node.namespace);
        Self {
            cap: config.python.max_workers,
            lease_time: Duration::from_secs_f64(config.python.lease_s),
            keys: [keys.permits(), keys.permits_from(), keys.run_id(), keys.permits_wanted()],
            redis,
            connection: None,
            slot,
            waiting: VecDeque::new(),
            asking: false,
            told_to_wait: false,
        }
    }

    fn call(
        &self,
        operation: Operation,
        leases: &[Arc<str>],
    ) -> impl Future<Output = redis::RedisResult<Answer>> + 'static {
        let (redis, connection, keys) =
            (self.redis.clone(), self.connection.clone(), self.keys.clone());
        let (cap, lease_ms) = (self.cap, self.lease_time.as_millis() as u64);
        let (node, held) = (self.slot.node.clone(), self.slot.held.clone());
        let leases: Vec<String> = leases.iter().map(ToString::to_string).collect();
        async move {
            let mut connection = match connection {
                Some(connection) => connection,
                None => redis.manager().await?,
            };
            let [leased, from, run, wanted] = keys;
            let mut call = SCRIPT.key(leased);
            call.key(from).key(run).key(wanted).arg(operation.name()).arg(cap).arg(lease_ms);
            call.arg(&*node).arg(WANT_MS).arg(leases);
            let mut done: Vec<i64> = call.invoke_async(&mut connection).await?;
            // The script always answers at least these two.
            let rest = done.split_off(2);
            held.told(usize::try_from(done[1]).ok());
            Ok(Answer { connection, wait_ms: done[0], done: rest })
        }
    }

    /// Asks for a lease for whoever waits longest.
    fn serve(&mut self, ctx: &mut Context<Self>) {
        self.waiting.retain(|(reply, _)| !reply.is_closed());
        METER.waiting(self.waiting.len(), self.waiting.front().map(|(_, since)| *since));
        if self.waiting.is_empty() {
            self.slot.held.refused.store(false, Ordering::Relaxed);
        }
        if self.asking || self.waiting.is_empty() {
            return;
        }
        self.asking = true;
        let lease: Arc<str> = format!("{}/{}", self.slot.node, Uuid::now_v7().simple()).into();
        let asked_at = Instant::now();
        let asking = self.call(Operation::Acquire, std::slice::from_ref(&lease)).into_actor(self);
        ctx.spawn(asking.map(move |answer, actor, ctx| {
            actor.asking = false;
            match answer {
                Ok(Answer { connection, wait_ms, done }) => {
                    actor.connection = Some(connection);
                    actor.tell_to_wait(wait_ms);
                    let granted = done == [1];
                    // While nothing is granted to anybody, leaving helps nobody.
                    let refused = !granted && wait_ms == 0;
                    actor.slot.held.refused.store(refused, Ordering::Relaxed);
                    if granted {
                        actor.grant(lease, asked_at);
                        return actor.serve(ctx);
                    }
                }
                Err(error) => {
                    METER.error("redis");
                    actor.slot.held.refused.store(false, Ordering::Relaxed);
                    tracing::warn!(%error, "no permit: Redis does not answer");
                }
            }
            ctx.run_later(RETRY, Self::serve);
        }));
    }

    /// Says once why nothing is granted for now.
    fn tell_to_wait(&mut self, wait_ms: i64) {
        let waits = wait_ms > 0;
        if waits && !self.told_to_wait {
            tracing::info!(
                wait_ms,
                "this Redis is new or lost its data, so it cannot know which Python workers live: no \
                 permits until none is left that it does not know of"
            );
        }
        self.told_to_wait = waits;
    }

    fn grant(&mut self, lease: Arc<str>, asked_at: Instant) {
        self.slot.held.renewed(lease.clone(), asked_at);
        let permit = Permit::new(lease, self.lease_time, self.slot.released.clone());
        self.show();
        match self.waiting.pop_front() {
            Some((reply, since)) => {
                metrics::histogram!(m::PERMIT_WAIT).record(since.elapsed());
                METER.sent(1);
                // A receiver that is gone drops the permit, which gives it back.
                let _ = reply.send(permit);
            }
            None => drop(permit),
        }
    }

    fn show(&self) {
        metrics::gauge!(m::PERMITS_IN_USE).set(self.slot.held.lock().len() as f64);
    }

    /// Renews every lease that is held; those that are gone from Redis are put back by no one.
    fn renew(&mut self, ctx: &mut Context<Self>) {
        let leases: Vec<Arc<str>> = self.slot.held.lock().keys().cloned().collect();
        if leases.is_empty() {
            return;
        }
        let asked_at = Instant::now();
        let renewing = self.call(Operation::Renew, &leases).into_actor(self);
        ctx.spawn(renewing.map(move |answer, actor, _| match answer {
            Ok(Answer { connection, done, .. }) => {
                actor.connection = Some(connection);
                let held = &actor.slot.held;
                for (lease, renewed) in leases.into_iter().zip(done) {
                    // It may have been given back meanwhile.
                    if renewed == 1 && held.renewed_at(&lease).is_some() {
                        held.renewed(lease, asked_at);
                    } else if renewed == 0 && held.lost(&lease) {
                        // Its worker hears no more of it, and leaves before the lease would end.
                        tracing::warn!(%lease, "a lease is gone from Redis");
                    }
                }
                actor.show();
            }
            Err(error) => {
                METER.error("redis");
                tracing::warn!(%error, "leases were not renewed");
            }
        }));
    }
}

impl Actor for WorkerSemaphore {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        METER.waiting(0, None);
        ctx.run_interval((self.lease_time / 5).min(LOOK_EVERY), Self::renew);
        let (releases, own) = (self.slot.releases.clone(), ctx.address());
        let listening = async move {
            let mut releases = releases.lock().await;
            while let Some(lease) = releases.recv().await {
                if own.try_send(ReleasePermit { lease: lease.clone() }).is_err() {
                    tracing::warn!(%lease, "a permit comes back when its lease ends");
                }
            }
        };
        ctx.spawn(listening.into_actor(self));
    }
}

impl Handler<AcquirePermit> for WorkerSemaphore {
    type Result = ();

    fn handle(&mut self, AcquirePermit { reply }: AcquirePermit, ctx: &mut Self::Context) {
        METER.received(1);
        self.waiting.push_back((reply, Instant::now()));
        self.serve(ctx);
    }
}

impl Handler<ReleasePermit> for WorkerSemaphore {
    type Result = AtomicResponse<Self, ()>;

    fn handle(
        &mut self,
        ReleasePermit { lease }: ReleasePermit,
        _: &mut Self::Context,
    ) -> Self::Result {
        self.slot.held.lost(&lease);
        self.show();
        let releasing = self.call(Operation::Release, &[lease]).into_actor(self);
        AtomicResponse::new(Box::pin(releasing.map(|answer, actor, ctx| {
            match answer {
                Ok(Answer { connection, .. }) => actor.connection = Some(connection),
                // It ends by itself then.
                Err(error) => tracing::warn!(%error, "a lease was not given back"),
            }
            actor.serve(ctx);
        })))
    }
}

#[cfg(test)]
mod tests;
