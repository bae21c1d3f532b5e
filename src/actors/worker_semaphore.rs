//! WorkerSemaphore: at most N Python workers alive, over all nodes.
//!
//! Takes [`AcquirePermit`]s from the PythonWorkerSupervisor, gives [`Permit`]s. The cap is kept in
//! Redis as a sorted set of leases by expiry, granted by a script on Redis' own clock. Promises:
//!
//! * never more than N leases are live;
//! * a permit comes back when its holder drops it, at the latest one lease time after its node
//!   fell silent;
//! * whoever waited longest on this node is served first.
//!
//! Leases bound resources; they never guard data.

use crate::{
    config::Config,
    messages::{AcquirePermit, Permit, ReleasePermit},
    queue::{Keys, RedisLink},
    telemetry::{StageMeter, catalogue as m},
};
use actix::{Actor, ActorFutureExt, AsyncContext, AtomicResponse, Context, Handler, WrapFuture};
use redis::{Script, aio::ConnectionManager};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

const METER: StageMeter = StageMeter::new("worker_semaphore");

/// While somebody waits, Redis is asked so often: another node's release is not announced.
const RETRY: Duration = Duration::from_millis(50);

/// Grants, renews or gives back leases, all on Redis' clock.
/// ARGV: operation, cap, lease time in ms, lease names. Answers 1 for each lease for which it was
/// done, else 0.
const SCRIPT: &str = r"
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local done = {}
for i = 4, #ARGV do
  done[i - 3] = 0
  if ARGV[1] == 'acquire' then
    if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[2]) then
      redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[i])
      done[i - 3] = 1
    end
  elseif ARGV[1] == 'renew' then
    if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
      redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[i])
      done[i - 3] = 1
    end
  else
    done[i - 3] = redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return done";

/// The leases that this node holds, with the moment from which each counts. Survives the actor,
/// so that a new instance goes on renewing what lives.
#[derive(Debug, Default)]
pub struct HeldLeases(Mutex<HashMap<Arc<str>, Instant>>);

impl HeldLeases {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        // The map is never left half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment from which a lease counts: just before its last renewal was asked for.
    #[must_use]
    pub fn renewed_at(&self, lease: &str) -> Option<Instant> {
        self.lock().get(lease).copied()
    }
}

/// What outlives an instance.
#[derive(Debug, Clone)]
pub struct SemaphoreSlot {
    /// See [`HeldLeases`].
    pub held: Arc<HeldLeases>,
    released: mpsc::UnboundedSender<Arc<str>>,
    releases: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Arc<str>>>>,
}

impl Default for SemaphoreSlot {
    fn default() -> Self {
        let (released, releases) = mpsc::unbounded_channel();
        Self {
            held: Arc::default(),
            released,
            releases: Arc::new(tokio::sync::Mutex::new(releases)),
        }
    }
}

/// See the module.
pub struct WorkerSemaphore {
    cap: u32,
    lease_time: Duration,
    key: String,
    redis: RedisLink,
    connection: Option<ConnectionManager>,
    slot: SemaphoreSlot,
    waiting: VecDeque<(oneshot::Sender<Permit>, Instant)>,
    asking: bool,
}

impl WorkerSemaphore {
    /// An instance that adopts the leases in `slot`.
    #[must_use]
    pub fn new(config: &Config, redis: RedisLink, slot: SemaphoreSlot) -> Self {
        metrics::gauge!(m::PERMITS).set(f64::from(config.python.max_workers));
        Self {
            cap: config.python.max_workers,
            lease_time: Duration::from_secs_f64(config.python.lease_s),
            key: Keys::new(&config.node.namespace).permits(),
            redis,
            connection: None,
            slot,
            waiting: VecDeque::new(),
            asking: false,
        }
    }

    fn call(
        &self,
        operation: &'static str,
        leases: &[Arc<str>],
    ) -> impl Future<Output = redis::RedisResult<(ConnectionManager, Vec<u8>)>> + 'static {
        let (redis, connection, key) =
            (self.redis.clone(), self.connection.clone(), self.key.clone());
        let (cap, lease_ms) = (self.cap, self.lease_time.as_millis() as u64);
        let leases: Vec<String> = leases.iter().map(ToString::to_string).collect();
        async move {
            let mut connection = match connection {
                Some(connection) => connection,
                None => redis.manager().await?,
            };
            let script = Script::new(SCRIPT);
            let mut call = script.key(key);
            call.arg(operation).arg(cap).arg(lease_ms).arg(leases);
            let done = call.invoke_async(&mut connection).await?;
            Ok((connection, done))
        }
    }

    /// Asks for a lease for whoever waits longest.
    fn serve(&mut self, ctx: &mut Context<Self>) {
        self.waiting.retain(|(reply, _)| !reply.is_closed());
        METER.queue_depth(self.waiting.len());
        if self.asking || self.waiting.is_empty() {
            return;
        }
        self.asking = true;
        let lease: Arc<str> = Uuid::now_v7().to_string().into();
        let asked_at = Instant::now();
        let asking = self.call("acquire", std::slice::from_ref(&lease)).into_actor(self);
        ctx.spawn(asking.map(move |answer, actor, ctx| {
            actor.asking = false;
            match answer {
                Ok((connection, granted)) => {
                    actor.connection = Some(connection);
                    if granted == [1] {
                        actor.grant(lease, asked_at);
                        return actor.serve(ctx);
                    }
                }
                Err(error) => {
                    METER.error("redis");
                    tracing::warn!(%error, "no permit: Redis does not answer");
                }
            }
            ctx.run_later(RETRY, Self::serve);
        }));
    }

    fn grant(&mut self, lease: Arc<str>, asked_at: Instant) {
        self.slot.held.lock().insert(lease.clone(), asked_at);
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
        let renewing = self.call("renew", &leases).into_actor(self);
        ctx.spawn(renewing.map(move |answer, actor, _| match answer {
            Ok((connection, renewed)) => {
                actor.connection = Some(connection);
                let mut held = actor.slot.held.lock();
                for (lease, renewed) in leases.iter().zip(renewed) {
                    if renewed == 1 {
                        held.entry(lease.clone()).and_modify(|at| *at = asked_at);
                    } else if held.contains_key(lease) {
                        // Its worker leaves by itself before the lease would have ended.
                        tracing::warn!(%lease, "a lease is gone from Redis");
                    }
                }
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
        ctx.run_interval(self.lease_time / 5, Self::renew);
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
        self.slot.held.lock().remove(&lease);
        self.show();
        let releasing = self.call("release", &[lease]).into_actor(self);
        AtomicResponse::new(Box::pin(releasing.map(|answer, actor, ctx| {
            match answer {
                Ok((connection, _)) => actor.connection = Some(connection),
                // It ends by itself then.
                Err(error) => tracing::warn!(%error, "a lease was not given back"),
            }
            actor.serve(ctx);
        })))
    }
}
