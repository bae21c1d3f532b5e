use super::*;
use crate::{
    generate::{Builtin, Mix},
    upload_client::test_node::TestNode,
};
use std::thread::JoinHandle;
use tonic::Status;

const SEED: u64 = 42;

fn maker(stream: Builtin) -> EventMaker {
    EventMaker::new(stream, SEED, &Mix::default())
}

struct Running {
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Two producer tasks are before it.
    fn start(node: &TestNode) -> Self {
        let tally = Arc::new(Tally::new(4, true));
        let (stop, held): (Arc<AtomicBool>, Arc<AtomicBool>) =
            (Arc::default(), Arc::new(true.into()));
        let task = UploadTask {
            to: node.address.clone(),
            every: Duration::from_millis(1),
            patience: Duration::from_secs(30),
            events: 300,
            run: 9,
            streams: vec![(2, maker(Builtin::Features)), (3, maker(Builtin::Clicks))],
            tally: tally.clone(),
            stop: stop.clone(),
            held: held.clone(),
        };
        Self { tally, stop, held, thread: std::thread::spawn(|| task.run()) }
    }

    async fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(|| self.thread.join().unwrap()).await.unwrap()
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let holding = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let within = tokio::time::timeout(Duration::from_secs(60), holding).await;
    within.unwrap_or_else(|_| panic!("{what}: not so within a minute"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_show_both_formats_of_both_streams_and_count_once_they_are_taken() {
    let node = TestNode::start().await;
    let running = Running::start(&node);
    let tally = running.tally.clone();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(node.kept().attempts.is_empty(), "held tasks make nothing");
    running.held.store(false, Ordering::Relaxed);
    until("eight files", || node.kept().attempts.iter().filter(|a| a.whole).count() >= 8).await;
    running.end().await.unwrap();

    let attempts = node.kept().attempts.clone();
    let shapes: Vec<_> = attempts
        .iter()
        .take(4)
        .map(|a| (a.header.stream.as_str(), a.header.format.as_str()))
        .collect();
    let expected =
        [("features", "json"), ("clicks", "parquet"), ("clicks", "json"), ("features", "parquet")];
    assert_eq!(shapes, expected);
    assert_eq!(tally.refused(), 0);
    let expected = tally.expected(|task| maker([Builtin::Features, Builtin::Clicks][task % 2]));
    let ids = expected.rows.len() + expected.dead.len();
    assert!(expected.produced >= 8 * 295, "{}", expected.produced);
    assert!(ids as u64 + expected.filtered <= expected.produced);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_sent_under_one_key_until_it_is_taken_also_after_the_stop() {
    let node = TestNode::start().await;
    let busy = || Status::unavailable("starting");
    node.kept().refusals = [busy(), Status::internal("no"), busy()].into();
    let running = Running::start(&node);
    running.held.store(false, Ordering::Relaxed);
    until("a failed attempt", || !node.kept().attempts.is_empty()).await;
    assert_eq!(running.tally.acknowledged(), 0, "nothing counts before the receipt");
    let tally = running.tally.clone();
    running.end().await.unwrap();
    let attempts = node.kept().attempts.clone();
    assert_eq!(attempts.len(), 4, "the file in hand, and no other");
    assert!(attempts[3].whole);
    assert!(attempts.iter().all(|attempt| attempt.header == attempts[0].header));
    assert!(tally.acknowledged() >= 295);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_file_does_not_count_and_a_node_without_uploads_gets_none() {
    let node = TestNode::start().await;
    node.kept().refusals =
        [Status::invalid_argument("torn"), Status::unimplemented("no files")].into();
    let running = Running::start(&node);
    running.held.store(false, Ordering::Relaxed);
    until("the end", || running.thread.is_finished()).await;
    assert_eq!(running.tally.acknowledged(), 0);
    assert!(running.tally.refused() >= 295);
    let attempts = node.kept().attempts.clone();
    assert_eq!(attempts.len(), 2);
    assert_ne!(attempts[0].header.idempotency_key, attempts[1].header.idempotency_key);
    running.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_behind_gets_no_more_files() {
    let node = TestNode::start().await;
    let accepted = crate::proto::UploadStatus { state: "accepted".into(), ..<_>::default() };
    node.kept().states = vec![accepted];
    let running = Running::start(&node);
    running.held.store(false, Ordering::Relaxed);
    until("as many as may wait", || node.kept().attempts.len() == MAX_PENDING).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(node.kept().attempts.len(), MAX_PENDING);
    node.kept().states = Vec::new();
    until("more files", || node.kept().attempts.len() > MAX_PENDING).await;
    running.end().await.unwrap();
}
