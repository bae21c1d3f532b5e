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

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Leave;

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

impl Handler<Leave> for Fragile {
    type Result = ();
    fn handle(&mut self, _: Leave, context: &mut Self::Context) {
        actix::ActorContext::stop(context);
    }
}

impl Watched {
    fn label(&self) -> Option<&'static str> {
        lock(&self.last_cause).as_ref().map(Cause::label)
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
type FromOutside = fn(&Registry, &str) -> bool;
const ENDS: [(&str, FromOutside); 3] =
    [("killed", Registry::kill), ("panicked", Registry::panic), ("failed", Registry::fail)];

/// How an instance comes to its end.
type Way = fn(&Bench);

#[actix::test]
async fn each_way_to_end_has_its_label_and_all_but_a_kill_count() {
    let rows: [(&str, &str, bool, Way); 4] = [
        ("killed", "killed", false, |b| assert!(b.registry.kill("fragile"))),
        ("panicked", "panicked: on request", true, |b| assert!(b.registry.panic("fragile"))),
        ("failed", "failed: on request", true, |b| assert!(b.registry.fail("fragile"))),
        ("finished", "finished", true, |b| b.link.deliver(Leave).unwrap()),
    ];
    assert_eq!(rows.map(|(label, ..)| label), Cause::LABELS);
    for (label, says, counts, end) in rows {
        // The first one that counts is one too many.
        let mut bench = bench(0);
        instance(&bench.link, 1).await;
        end(&bench);
        if counts {
            let fatal = tokio::time::timeout(Duration::from_secs(10), bench.fatal.recv()).await;
            let fatal = fatal.unwrap().unwrap();
            assert_eq!(fatal.reason, format!("failed again and again, last: {says}"));
        } else {
            instance(&bench.link, 2).await;
            assert!(bench.fatal.try_recv().is_err(), "{label}");
        }
        let status = &bench.registry.status()["fragile"];
        assert_eq!(status.last_cause.as_deref(), Some(says));
        assert_eq!(lock(&bench.registry.actors)["fragile"].label(), Some(label));
    }
}

#[actix::test]
async fn whoever_ends_an_instance_hears_which_one_it_was_and_how_long_it_was_away() {
    let backoff = Duration::from_millis(50);
    let bench = bench_with(5, backoff);
    for (n, how) in (1..).zip([End::Kill, End::Fail, End::Panic]) {
        let ended = bench.registry.end("fragile", how).unwrap();
        assert_eq!(ended.await.unwrap(), n);
        instance(&bench.link, n + 1).await;
    }
    let recovery = &bench.registry.status()["fragile"].recovery;
    assert_eq!(recovery.count, 3);
    // The second failure waited, and the time away covers that.
    assert!(recovery.last_ms >= Some(50.0) && recovery.max_ms == recovery.last_ms, "{recovery:?}");
    assert!(bench.registry.end("nobody", End::Kill).is_none());
}

#[actix::test]
async fn the_first_end_of_any_kind_brings_a_new_instance() {
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
async fn the_second_failure_in_a_row_waits_for_the_backoff_and_a_second_kill_does_not() {
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
        assert_eq!(waited, cause != "killed", "{cause}: {:?}", since.elapsed());
        assert_eq!(bench.registry.status()["fragile"].generation, 3);
    }
}

#[actix::test]
async fn beyond_the_limit_failures_are_fatal_and_kills_are_not() {
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
        assert!(fatal.reason.contains(&format!("{cause}: on request")), "{fatal}");
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
    let failed = Cause::Failed("x".into());
    assert_eq!(restarts.next(&panicked, start), Some(Duration::ZERO));
    assert_eq!(restarts.next(&Cause::Killed, start), Some(Duration::ZERO));
    assert_eq!(restarts.next(&failed, start), Some(Duration::from_millis(20)));
    assert_eq!(restarts.next(&Cause::Finished, start), Some(Duration::from_millis(40)));
    assert_eq!(restarts.next(&Cause::Killed, start), Some(Duration::ZERO));
    assert_eq!(restarts.next(&failed, start), None);
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
