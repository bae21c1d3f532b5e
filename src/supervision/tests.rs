use super::*;
use actix::{Handler, Message};
use std::time::Duration;

struct Fragile {
    born: u64,
}

impl Actor for Fragile {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "u64")]
struct Ask;

#[derive(Message)]
#[rtype(result = "()")]
struct Break;

impl Handler<Ask> for Fragile {
    type Result = u64;
    fn handle(&mut self, _: Ask, _: &mut Self::Context) -> u64 {
        self.born
    }
}

impl Handler<Break> for Fragile {
    type Result = ();
    fn handle(&mut self, _: Break, _: &mut Self::Context) {
        panic!("asked to break");
    }
}

struct Bench {
    registry: Registry,
    link: Link<Fragile>,
    fatal: mpsc::UnboundedReceiver<Fatal>,
}

fn bench(max_restarts: usize) -> Bench {
    bench_with(max_restarts, Duration::from_millis(1))
}

fn bench_with(max_restarts: usize, backoff: Duration) -> Bench {
    let (sender, fatal) = FatalSender::channel();
    let registry = Registry::new(sender);
    let link = Link::default();
    let policy = RestartPolicy { max_restarts, backoff, ..RestartPolicy::default() };
    let born = AtomicU64::new(0);
    registry.supervise("fragile", link.clone(), policy, move || Fragile {
        born: born.fetch_add(1, Ordering::Relaxed) + 1,
    });
    Bench { registry, link, fatal }
}

/// Waits until the instance numbered `n` or a later one answers.
async fn instance(link: &Link<Fragile>, n: u64) -> u64 {
    let wait = async {
        loop {
            match link.ask(Ask).await {
                Some(born) if born >= n => return born,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the instance did not come")
}

#[actix::test]
async fn a_panicking_actor_is_rebuilt_and_the_link_leads_to_the_new_one() {
    let bench = bench(10);
    assert_eq!(instance(&bench.link, 1).await, 1);
    assert!(bench.link.ask(Break).await.is_none());
    assert_eq!(instance(&bench.link, 2).await, 2);
    let status = &bench.registry.status()["fragile"];
    assert_eq!(status.last_cause.as_deref(), Some("panicked: asked to break"));
    assert_eq!(status.generation, 2);
}

/// How an instance is ended from outside.
type End = fn(&Registry, &str) -> bool;
const ENDS: [(&str, End); 2] = [("killed", Registry::kill), ("panicked", Registry::panic)];

#[actix::test]
async fn the_first_end_of_either_kind_brings_a_new_instance() {
    for (cause, end) in ENDS {
        let bench = bench(2);
        instance(&bench.link, 1).await;
        assert!(end(&bench.registry, "fragile"));
        instance(&bench.link, 2).await;
        let status = &bench.registry.status()["fragile"];
        assert!(status.last_cause.as_ref().is_some_and(|c| c.starts_with(cause)), "{status:?}");
        assert_eq!(status.generation, 2);
        assert!(!end(&bench.registry, "nobody"));
    }
}

#[actix::test]
async fn the_second_panic_in_a_row_waits_for_the_backoff_and_a_second_kill_does_not() {
    // Far longer than two restarts take, on a busy machine too.
    let backoff = Duration::from_secs(2);
    for (cause, end) in ENDS {
        let bench = bench_with(5, backoff);
        instance(&bench.link, 1).await;
        // Both at once: the second one strikes whoever comes after the first.
        assert!(end(&bench.registry, "fragile"));
        assert!(end(&bench.registry, "fragile"));
        let since = Instant::now();
        instance(&bench.link, 3).await;
        let waited = since.elapsed() >= backoff;
        assert_eq!(waited, cause == "panicked", "{cause}: {:?}", since.elapsed());
        assert_eq!(bench.registry.status()["fragile"].generation, 3);
    }
}

#[actix::test]
async fn beyond_the_limit_panics_are_fatal_and_kills_are_not() {
    for (cause, end) in ENDS {
        let mut bench = bench(2);
        for n in 1..=3 {
            instance(&bench.link, n).await;
            assert!(end(&bench.registry, "fragile"));
        }
        if cause == "killed" {
            instance(&bench.link, 4).await;
            assert!(bench.fatal.try_recv().is_err());
            continue;
        }
        let fatal = tokio::time::timeout(Duration::from_secs(10), bench.fatal.recv()).await;
        let fatal = fatal.unwrap().unwrap();
        assert_eq!(fatal.component, "fragile");
        assert!(fatal.reason.contains("panicked: on request"), "{fatal}");
        assert!(bench.link.deliver(Ask).is_err());
    }
}

#[test]
fn each_row_of_the_restart_table() {
    let policy = RestartPolicy {
        max_restarts: 3,
        window: Duration::from_secs(60),
        backoff: Duration::from_millis(20),
    };
    let mut restarts = Restarts::new(policy);
    let (start, panicked) = (Instant::now(), Cause::Panicked("x".into()));
    assert_eq!(restarts.next(&panicked, start), Some(Duration::ZERO));
    assert_eq!(restarts.next(&Cause::Killed, start), Some(Duration::ZERO));
    assert_eq!(restarts.next(&panicked, start), Some(Duration::from_millis(20)));
    assert_eq!(restarts.next(&Cause::Finished, start), Some(Duration::from_millis(40)));
    assert_eq!(restarts.next(&Cause::Killed, start), Some(Duration::ZERO));
    assert_eq!(restarts.next(&panicked, start), None);
    let later = start + Duration::from_secs(61);
    assert_eq!(restarts.next(&panicked, later), Some(Duration::ZERO), "the window has passed");
}

#[actix::test]
async fn requested_kills_do_not_count_towards_the_limit() {
    let mut bench = bench(2);
    for n in 1..=8 {
        assert_eq!(instance(&bench.link, n).await, n);
        assert!(bench.registry.kill("fragile"));
    }
    instance(&bench.link, 9).await;
    assert!(bench.fatal.try_recv().is_err());
    assert!(!bench.registry.kill("nobody"));
}

#[actix::test]
async fn too_many_failures_escalate() {
    let mut bench = bench(2);
    for n in 1..=3 {
        instance(&bench.link, n).await;
        let _ = bench.link.ask(Break).await;
    }
    let fatal = tokio::time::timeout(Duration::from_secs(10), bench.fatal.recv()).await.unwrap();
    assert_eq!(fatal.unwrap().component, "fragile");
    assert!(bench.link.deliver(Ask).is_err());
}

#[actix::test]
async fn stop_waits_until_the_instance_is_gone() {
    let bench = bench(2);
    instance(&bench.link, 1).await;
    bench.registry.stop("fragile").await;
    assert!(bench.link.deliver(Ask).is_err());
    assert!(!bench.registry.status()["fragile"].up);
}
