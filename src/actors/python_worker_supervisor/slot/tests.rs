//! Workers that are not started: what counts here is who has them, and where their permits are.

use super::{
    super::{aging::AgeLimits, board::Current, runner::Recipe},
    *,
};
use crate::{
    messages::Permit,
    protocol::script_history::ScriptState,
    python::{Script, WorkerSpec},
};
use std::path::Path;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const LEASE: Duration = Duration::from_secs(60);

struct Bench {
    slot: Arc<WorkerSlot>,
    leases: Arc<HeldLeases>,
    status: Arc<PythonStatus>,
    released: UnboundedSender<Arc<str>>,
    releases: UnboundedReceiver<Arc<str>>,
}

fn bench() -> Bench {
    let (released, releases) = unbounded_channel();
    let (leases, status) = (Arc::<HeldLeases>::default(), Arc::<PythonStatus>::default());
    let slot = Arc::new(WorkerSlot::new(leases.clone(), status.clone()));
    Bench { slot, leases, status, released, releases }
}

fn lane(stream: usize) -> LaneKey {
    LaneKey { stream, pinned: None }
}

impl Bench {
    /// A worker of a script with this text, under the lease `lease-<number>`.
    fn hire(&self, key: LaneKey, text: &str) -> u64 {
        let number = self.slot.next_number();
        let lease: Arc<str> = format!("lease-{number}").into();
        self.leases.renewed(lease.clone(), Instant::now());
        let script = Script::new("s", Path::new("s.py"), text);
        let status = WorkerStatus {
            stream: "s".into(),
            script_sha256: script.sha256.clone(),
            ..WorkerStatus::default()
        };
        let recipe = Recipe {
            spec: WorkerSpec {
                worker_id: String::new(),
                program: "none".into(),
                site_dirs: Vec::new(),
                lease: LEASE,
                memory_limit: None,
                fork_server: None,
            },
            script: Arc::new(script),
            input: Arc::new(arrow::datatypes::Schema::empty()),
            deadline: LEASE,
            load_deadline: LEASE,
            announce: Arc::new(|_, _| {}),
            leases: self.leases.clone(),
            limits: AgeLimits { batches: 0, growth: 0 },
            starts: self.slot.starts().clone(),
            trust: None,
        };
        let worker = Worker::new(recipe, Permit::new(lease, LEASE, self.released.clone()));
        self.slot.add(key, number, worker, status);
        number
    }

    async fn released(&mut self) -> Arc<str> {
        let released = tokio::time::timeout(Duration::from_secs(10), self.releases.recv()).await;
        released.expect("a permit comes back").unwrap()
    }

    fn busy(&self) -> Vec<bool> {
        lock(&self.status.workers).values().map(|w| w.busy).collect()
    }
}

#[actix::test]
async fn a_worker_goes_from_batch_to_batch_and_keeps_its_permit() {
    let mut bench = bench();
    let number = bench.hire(lane(0), "a");
    assert!(bench.slot.take(&lane(1)).is_none(), "it is another lane's");
    let (shift, worker) = bench.slot.take(&lane(0)).unwrap();
    assert!(bench.slot.take(&lane(0)).is_none());
    assert_eq!((bench.slot.live(&lane(0)), bench.busy()), (1, vec![true]));
    shift.give_back(worker);
    bench.slot.noticed().await;
    let news = bench.slot.news();
    assert!(matches!(&news[0], News::Free(key, Some((n, _))) if *key == lane(0) && *n == number));
    assert_eq!((bench.slot.live(&lane(0)), bench.busy()), (1, vec![false]));
    assert!(bench.releases.try_recv().is_err());

    assert_eq!(bench.slot.dismiss_if(|_, idle| idle.number == number), 1);
    assert_eq!(&*bench.released().await, "lease-1");
    assert_eq!((bench.slot.live(&lane(0)), bench.busy()), (0, vec![]));
}

#[actix::test]
async fn a_task_that_panics_leaks_neither_worker_nor_permit() {
    let mut bench = bench();
    bench.hire(lane(0), "a");
    let (shift, worker) = bench.slot.take(&lane(0)).unwrap();
    let task = tokio::task::spawn_local(async move {
        let _both = (shift, worker);
        panic!("in the middle of a batch");
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(&*bench.released().await, "lease-1");
    assert_eq!((bench.slot.live(&lane(0)), bench.busy()), (0, vec![]));
    assert!(matches!(&bench.slot.news()[..], [News::Free(_, None)]));
}

#[actix::test]
async fn a_worker_whose_lease_was_lost_gets_no_batch() {
    let mut bench = bench();
    bench.hire(lane(0), "a");
    bench.hire(lane(0), "a");
    bench.leases.lost("lease-2");
    let (_shift, worker) = bench.slot.take(&lane(0)).unwrap();
    assert!(worker.is_leased());
    assert_eq!(&*bench.released().await, "lease-2");
    assert_eq!(bench.slot.live(&lane(0)), 1);

    // Renewed, but so long ago that a process would have left.
    bench.leases.renewed("lease-1".into(), Instant::now() - LEASE.mul_f64(0.8));
    assert!(!worker.is_leased());
}

#[actix::test]
async fn a_new_version_replaces_idle_workers_but_not_those_of_pinned_batches() {
    let mut bench = bench();
    let old = Script::new("s", Path::new("s.py"), "old").sha256;
    let pinned = LaneKey { stream: 0, pinned: Some(old.as_str().into()) };
    bench.hire(lane(0), "old");
    bench.hire(pinned.clone(), "old");
    bench.hire(lane(1), "old");
    let script = Arc::new(Script::new("s", Path::new("s.py"), "new"));
    let state = ScriptState::default();
    let since = Instant::now();
    bench
        .slot
        .board
        .show(0, Current { state, script, fallbacks: Vec::new(), since, saved_at: None });
    bench.slot.retire_others(0);
    assert_eq!(&*bench.released().await, "lease-1");
    assert_eq!([lane(0), pinned.clone(), lane(1)].map(|key| bench.slot.live(&key)), [0, 1, 1]);
    bench.slot.dismiss_longest_idle(|key, _| *key != lane(1));
    assert_eq!(&*bench.released().await, "lease-2");
    assert_eq!(bench.slot.crews(), [(lane(1), 1)]);
}
