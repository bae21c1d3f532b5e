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
    let (sender, fatal) = FatalSender::channel();
    let registry = Registry::new(sender);
    let link = Link::default();
    let policy = RestartPolicy {
        max_restarts,
        backoff: Duration::from_millis(1),
        ..RestartPolicy::default()
    };
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
