//! On a real redis-server.

use super::*;
use crate::{
    embedded::EmbeddedRedis,
    protocol::lease::{LeaseRule, Leases},
    queue,
    supervision::{FatalSender, Link, Registry, RestartPolicy},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Redis reads its clock in whole milliseconds.
const CLOCK_STEP: Duration = Duration::from_millis(2);

struct Server {
    redis: RedisLink,
    connection: ConnectionManager,
    _server: EmbeddedRedis,
    _dir: tempfile::TempDir,
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let server = EmbeddedRedis::start(&dir.path().join("redis")).unwrap();
    let redis = RedisLink::new(server.url()).unwrap();
    let connection = redis.manager().await.unwrap();
    Server { redis, connection, _server: server, _dir: dir }
}

impl Server {
    async fn lose_everything(&mut self) {
        let () = redis::cmd("FLUSHALL").query_async(&mut self.connection).await.unwrap();
    }

    /// A semaphore of its own for one worker.
    fn semaphore(&self, lease_time: Duration) -> (Registry, Link<WorkerSemaphore>, SemaphoreSlot) {
        let mut config = Config::default();
        config.python.max_workers = 1;
        config.python.lease_s = lease_time.as_secs_f64();
        let (registry, link, slot) =
            (Registry::new(FatalSender::channel().0), Link::default(), SemaphoreSlot::default());
        let (redis, held) = (self.redis.clone(), slot.clone());
        registry.supervise("semaphore", link.clone(), RestartPolicy::default(), move || {
            WorkerSemaphore::new(&config, redis.clone(), held.clone())
        });
        (registry, link, slot)
    }
}

async fn permit(link: &Link<WorkerSemaphore>) -> Permit {
    loop {
        let (reply, permit) = oneshot::channel();
        if link.deliver(AcquirePermit { reply }).is_ok() {
            let permit = tokio::time::timeout(Duration::from_secs(30), permit).await;
            return permit.expect("in time").expect("the semaphore lives");
        }
        tokio::task::yield_now().await;
    }
}

#[actix::test]
async fn the_script_is_the_rule() {
    let mut server = server().await;
    let clock = "local now = tonumber(redis.call('GET', KEYS[5]))";
    let script = Script::new(&[clock, RULE].concat());
    for seed in 0..40 {
        let mut random = SmallRng::seed_from_u64(seed);
        server.lose_everything().await;
        let rule = LeaseRule { cap: random.random_range(1..4), lease_ms: 50 };
        let (mut model, mut now) = (Leases::default(), 1_700_000_000_000_i64);
        if random.random_bool(0.3) {
            model.permits_from_ms = Some(0);
            let set = redis::cmd("SET").arg("from").arg(0).clone();
            let () = set.query_async(&mut server.connection).await.unwrap();
        }
        for step in 0..80 {
            now += random.random_range(0..20);
            let () = redis::cmd("SET")
                .arg("now")
                .arg(now)
                .query_async(&mut server.connection)
                .await
                .unwrap();
            let ask = match random.random_range(0..10) {
                0..5 => Operation::Acquire,
                5..8 => Operation::Renew,
                _ => Operation::Release,
            };
            let node = ["a", "b", "c"][random.random_range(0..3)];
            let names: Vec<String> =
                (0..2).map(|_| format!("{node}/{}", random.random_range(0..4))).collect();
            let mut call = script.key("leases");
            call.key("from").key("run").key("wanted").key("now").arg(ask.name()).arg(rule.cap);
            call.arg(rule.lease_ms).arg(node).arg(WANT_MS).arg(&names);
            let answer: Vec<i64> = call.invoke_async(&mut server.connection).await.unwrap();
            // What the script says of others, it says of how it finds them.
            model.live.retain(|_, expiry| *expiry > now);
            let poorest = model.poorest(node, now).map_or(-1, |n| n as i64);
            let mut expected = vec![0, poorest];
            expected.extend(names.iter().map(|n| i64::from(model.apply(rule, now, ask, node, n))));
            expected[0] = (model.permits_from_ms.unwrap() - now).max(0);
            assert_eq!(answer, expected, "seed {seed}, step {step}: {ask:?} {names:?}");
            let live: Vec<(String, i64)> = redis::cmd("ZRANGE")
                .arg(&["leases", "0", "-1", "WITHSCORES"])
                .query_async(&mut server.connection)
                .await
                .unwrap();
            assert_eq!(live.into_iter().collect::<std::collections::BTreeMap<_, _>>(), model.live);
            // Redis loses everything now and then.
            if random.random_bool(0.02) {
                server.lose_everything().await;
                model = Leases::default();
            }
        }
    }
}

#[actix::test]
async fn a_redis_that_lost_everything_grants_nothing_for_one_lease_time() {
    let mut server = server().await;
    let lease_time = Duration::from_secs(1);
    let (_registry, link, slot) = server.semaphore(lease_time);
    let started = Instant::now();
    let first = permit(&link).await;
    assert!(started.elapsed() + CLOCK_STEP >= lease_time, "who used it before is not known");

    // Renewals alone keep it for longer than a lease time.
    let until = Instant::now() + lease_time * 2;
    while Instant::now() < until {
        let renewed = slot.held.renewed_at(first.lease()).expect("it is renewed");
        assert!(renewed.elapsed() < lease_time, "{:?}", renewed.elapsed());
        tokio::time::sleep(lease_time / 10).await;
    }

    let lost = Instant::now();
    server.lose_everything().await;
    let second = permit(&link).await;
    let waited = lost.elapsed();
    assert!(waited + CLOCK_STEP >= lease_time, "{waited:?}");
    assert_eq!(slot.held.renewed_at(first.lease()), None, "a lost lease is not put back");
    assert!(slot.held.renewed_at(second.lease()).is_some());

    // And then it is as before: what comes back is granted at once.
    drop(first);
    let again = Instant::now();
    drop(second);
    let _third = permit(&link).await;
    assert!(again.elapsed() < lease_time, "{:?}", again.elapsed());
}

#[actix::test]
async fn a_redis_that_is_known_to_be_new_grants_at_once() {
    let server = server().await;
    let keys = Keys::new(&Config::default().node.namespace);
    queue::permits_at_once(&server.redis, &keys).await.unwrap();
    let lease_time = Duration::from_secs(20);
    let (_registry, link, _slot) = server.semaphore(lease_time);
    let started = Instant::now();
    drop(permit(&link).await);
    assert!(started.elapsed() < lease_time);
}

#[actix::test]
async fn a_server_that_the_store_has_not_looked_at_grants_nothing() {
    let mut server = server().await;
    let keys = Keys::new(&Config::default().node.namespace);
    queue::permits_at_once(&server.redis, &keys).await.unwrap();
    let looked_at = redis::cmd("SET").arg(keys.run_id()).arg("another").clone();
    let () = looked_at.query_async(&mut server.connection).await.unwrap();
    let (_registry, link, _slot) = server.semaphore(Duration::from_secs(20));
    let mut waiting = Box::pin(permit(&link));
    tokio::select! {
        _ = &mut waiting => panic!("a server may have forgotten leases"),
        // Many times as long as a grant takes.
        () = tokio::time::sleep(Duration::from_millis(300)) => {}
    }
    let () =
        redis::cmd("DEL").arg(keys.run_id()).query_async(&mut server.connection).await.unwrap();
    drop(waiting.await);
}
