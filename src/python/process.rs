//! The parent's end of one worker: requests and answers.
//!
//! Two tasks own the socket, one writing and one reading, so that heartbeats pass while a transform
//! runs and a dropped call never leaves half a frame behind. They run on the runtime in which
//! [`WorkerProcess::spawn`] is called; it must outlive the worker. Everything else may be awaited
//! from any runtime that has a timer.

use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::{Schema, UInt32Type};
use arrow::record_batch::RecordBatch;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::error::{Exit, WorkerError};
use super::launch::{ExitWatch, Launched, Life, ProcessHandle, WorkerSpec, launch};
use super::logs::{Logs, Stream};
use super::schema;
use super::script::{Script, Style};
use super::wire::{
    self, Beat, Failure, Fault, Frame, Init, Kind, Load, LoadReply, Rejected, RowsReply, WireError,
};

/// Requests waiting to be written: one call and a few heartbeats. When a stuck worker has let them
/// pile up, further heartbeats have no use.
const QUEUED_FRAMES: usize = 8;
/// How long a worker may take to end after it closed its socket. A crash closes it on its way out.
const EXIT_AFTER_CLOSE: Duration = Duration::from_secs(2);
/// How long the last lines of a dead worker may take to come out of its pipes.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// One Python worker process, seen from the node. Dropping it kills the process group; use
/// [`WorkerProcess::exit_watch`] to learn when that is done.
///
/// A call ([`load`](Self::load), [`transform`](Self::transform)) whose future is dropped before it
/// ends leaves the worker in the middle of it: from then on every call answers
/// [`WorkerError::Poisoned`], and all that is left to do is [`kill`](Self::kill) or drop.
#[derive(Debug)]
pub struct WorkerProcess {
    life: Life,
    requests: mpsc::Sender<Frame>,
    replies: mpsc::Receiver<Result<Frame, WireError>>,
    logs: Logs,
    log_tasks: Vec<JoinHandle<()>>,
    in_call: bool,
}

/// A script is loaded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loaded {
    /// How it wants its events.
    pub style: Style,
    /// How long the worker took, imports and `setup` included.
    pub seconds: f64,
    /// The longest that it says a batch may take.
    pub timeout: Option<Duration>,
}

/// What became of a batch.
#[derive(Debug, Clone)]
pub struct TransformOutput {
    /// Feature rows in the layout of [`schema::canonical`], sorted by `_row`, none of a rejected
    /// event. Events in neither this nor `rejected` were filtered by the script.
    pub rows: RecordBatch,
    /// Events that are to become dead letters, sorted by `_row`, each at most once.
    pub rejected: Vec<Rejected>,
    /// Time spent in the interpreter, conversions included; the socket is not.
    pub python_seconds: f64,
}

/// Sends signs of life to a worker, from any task, also while a call is running.
#[derive(Debug, Clone)]
pub struct Heartbeat(mpsc::WeakSender<Frame>);

impl Heartbeat {
    /// Tells the worker that its permit was renewed at `renewed_at`: the moment *before* the renewal
    /// was requested, since the lease may count from then. The worker leaves when 0.7 of its lease
    /// has passed since the newest such moment. Never waits.
    ///
    /// Returns false once the worker is gone.
    pub fn beat(&self, renewed_at: Instant) -> bool {
        let Some(requests) = self.0.upgrade() else {
            return false;
        };
        let Ok(frame) = Frame::new(Kind::Heartbeat, &beat_of(renewed_at)) else {
            return false;
        };
        !matches!(requests.try_send(frame), Err(mpsc::error::TrySendError::Closed(_)))
    }
}

fn beat_of(moment: Instant) -> Beat {
    let age_ms = u64::try_from(moment.elapsed().as_millis()).unwrap_or(u64::MAX);
    Beat { at_boot_ms: wire::boot_ms().saturating_sub(age_ms) }
}

impl WorkerProcess {
    /// Starts a worker and waits until its interpreter is up. The lease counts from this call, so
    /// heartbeats are due as soon as it returns.
    ///
    /// # Errors
    /// [`WorkerError::Spawn`] when there is no process; [`WorkerError::Exited`] when it ended
    /// before it was ready (no usable Python); [`WorkerError::Protocol`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn spawn(spec: &WorkerSpec) -> Result<Self, WorkerError> {
        Self::spawn_under(spec, Instant::now()).await
    }

    /// The same under a lease that was renewed last at `renewed_at`, from where it counts.
    ///
    /// # Errors
    /// As for [`Self::spawn`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn spawn_under(spec: &WorkerSpec, renewed_at: Instant) -> Result<Self, WorkerError> {
        let beat = beat_of(renewed_at);
        let Launched { life, socket, stdout, stderr } =
            launch(spec).await.map_err(WorkerError::Spawn)?;
        socket.set_nonblocking(true).map_err(WorkerError::Spawn)?;
        let (reading, writing) =
            tokio::net::UnixStream::from_std(socket).map_err(WorkerError::Spawn)?.into_split();
        let logs = Logs::new(&spec.worker_id);
        let follow = |stream, pipe| logs.follow(stream, pipe).map_err(WorkerError::Spawn);
        let log_tasks = vec![follow(Stream::Stdout, stdout)?, follow(Stream::Stderr, stderr)?];
        let (requests, to_write) = mpsc::channel(QUEUED_FRAMES);
        let (answers, replies) = mpsc::channel(1);
        tokio::spawn(write_frames(writing, to_write));
        tokio::spawn(read_frames(reading, answers, logs.clone()));

        let mut worker = Self { life, requests, replies, logs, log_tasks, in_call: false };
        let init = Init {
            site_dirs: spec.site_dirs.iter().map(|dir| wire::path_to_bytes(dir)).collect(),
            lease_ms: u64::try_from(spec.lease.as_millis()).unwrap_or(u64::MAX),
            beat: Some(beat),
        };
        let init =
            Frame::new(Kind::Init, &init).map_err(|error| WorkerError::Input(error.to_string()))?;
        worker.call(init, Kind::Ready).await?;
        Ok(worker)
    }

    /// The process's id, which is also that of its group.
    pub fn pid(&self) -> u32 {
        self.life.pid()
    }

    /// A handle by which the process can be reached from outside.
    pub fn handle(&self) -> ProcessHandle {
        self.life.handle()
    }

    /// False once a call was given up, or ended with [`WorkerError::Protocol`] or
    /// [`WorkerError::Exited`]: the worker must be replaced.
    pub fn is_usable(&self) -> bool {
        !self.in_call
    }

    /// A handle for the task that sends heartbeats.
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat(self.requests.downgrade())
    }

    /// A handle that tells when the process is reaped, however it ends.
    pub fn exit_watch(&self) -> ExitWatch {
        self.life.watch()
    }

    /// Loads a script: runs its text, finds its style, runs its `setup(ctx)`. A script loaded
    /// before is torn down first.
    ///
    /// `input_schema` is that of the batches to come; the dict styles refuse columns here that
    /// have no Python value.
    ///
    /// # Errors
    /// [`WorkerError::Import`] when the script is to blame, else as for [`Self::transform`].
    pub async fn load(
        &mut self,
        script: &Script,
        input_schema: &Schema,
    ) -> Result<Loaded, WorkerError> {
        self.logs.name_script(&script.name);
        let load = Load {
            name: script.name.clone(),
            path: wire::path_to_bytes(&script.path),
            source: script.source.to_string(),
            params_json: serde_json::Value::Object(script.params.clone()).to_string(),
            modules: script.modules.iter().map(wire::module_of).collect(),
        };
        let body = wire::encode_schema(input_schema)
            .map_err(|error| WorkerError::Input(error.to_string()))?;
        let frame = Frame::with_body(Kind::Load, &load, body)
            .map_err(|error| WorkerError::Input(error.to_string()))?;
        let reply = self.call(frame, Kind::Loaded).await?;
        let reply: LoadReply = self.understood(reply.header())?;
        let style = self.understood(wire::style_of(&reply))?;
        let timeout = Duration::try_from_secs_f64(reply.timeout_seconds).unwrap_or_default();
        let timeout = (!timeout.is_zero()).then_some(timeout);
        Ok(Loaded { style, seconds: reply.seconds, timeout })
    }

    /// Runs the script over a batch. Its column `_row: UInt32` must count from 0.
    ///
    /// No deadline of its own: drop the future when it takes too long (the worker is then
    /// unusable) and kill the worker.
    ///
    /// # Errors
    /// [`WorkerError::Script`] or [`WorkerError::Contract`] for a batch failure after which the
    /// worker is still usable; [`WorkerError::Exited`], [`WorkerError::Protocol`],
    /// [`WorkerError::Poisoned`] when it is not; [`WorkerError::Input`] when nothing was sent.
    pub async fn transform(&mut self, batch: &RecordBatch) -> Result<TransformOutput, WorkerError> {
        let n_in = count_rows(batch).map_err(WorkerError::Input)?;
        let body =
            wire::encode_batch(batch).map_err(|error| WorkerError::Input(error.to_string()))?;
        let frame = Frame::with_body(Kind::Transform, &(), body)
            .map_err(|error| WorkerError::Input(error.to_string()))?;
        let reply = self.call(frame, Kind::Rows).await?;
        let RowsReply { rejected, python_seconds } = self.understood(reply.header())?;
        let rejected = rejected.into_iter().map(Rejected::from).collect::<Vec<_>>();
        let decoded = wire::decode(reply.into_body()).map_err(|error| error.to_string());
        let checked = decoded.and_then(|(_, rows)| {
            let rows = rows.ok_or("an answer without rows")?;
            schema::check(&rows, n_in)?;
            check_rejected(&rejected, n_in)?;
            Ok(rows)
        });
        let rows = self.understood(checked)?;
        Ok(TransformOutput { rows, rejected, python_seconds })
    }

    /// Asks the worker to end (the script's `teardown(ctx)` runs), kills its process group if it
    /// has not within `grace`, and returns once it is reaped.
    pub async fn stop(self, grace: Duration) -> Exit {
        let mut exit = self.life.watch();
        if let Ok(frame) = Frame::new(Kind::Stop, &()) {
            // A full queue means that it does not read: the grace then ends in a kill.
            let _ = self.requests.try_send(frame);
        }
        match tokio::time::timeout(grace, exit.wait()).await {
            Ok(exit) => exit,
            Err(_) => self.kill().await,
        }
    }

    /// Kills the process group and returns once the worker is reaped.
    pub async fn kill(self) -> Exit {
        self.life.kill();
        self.life.watch().wait().await
    }

    /// Sends one request and waits for its answer.
    async fn call(&mut self, request: Frame, expected: Kind) -> Result<Frame, WorkerError> {
        if self.in_call {
            return Err(WorkerError::Poisoned);
        }
        // Stays set when this future is dropped, or when the worker is not to be trusted again.
        self.in_call = true;
        if self.requests.send(request).await.is_err() {
            return Err(self.ended().await);
        }
        match self.replies.recv().await {
            Some(Ok(reply)) if reply.kind == expected => {
                self.in_call = false;
                Ok(reply)
            }
            Some(Ok(reply)) if reply.kind == Kind::Failed => match reply.header() {
                Ok(failure) => Err(self.failed(failure)),
                Err(error) => Err(WorkerError::Protocol(error.to_string())),
            },
            Some(Ok(reply)) => {
                Err(WorkerError::Protocol(format!("{:?} instead of {expected:?}", reply.kind)))
            }
            Some(Err(WireError::Malformed(why))) => Err(WorkerError::Protocol(why)),
            Some(Err(WireError::Closed | WireError::Io(_))) | None => Err(self.ended().await),
        }
    }

    fn failed(&mut self, failure: Failure) -> WorkerError {
        let fault = failure.fault();
        let Failure { kind, message, traceback, .. } = failure;
        self.in_call = matches!(fault, Fault::Request | Fault::Unspecified);
        match fault {
            Fault::Import => {
                WorkerError::Import { message: format!("{kind}: {message}"), traceback }
            }
            Fault::Exception => WorkerError::Script { kind, message, traceback },
            Fault::Contract => WorkerError::Contract(message),
            Fault::Request => WorkerError::Protocol(format!("{kind}: {message}")),
            Fault::Unspecified => {
                WorkerError::Protocol("a failure that does not say what failed".into())
            }
        }
    }

    /// An answer that cannot be understood: the worker is not to be used again.
    fn understood<T, E: ToString>(&mut self, result: Result<T, E>) -> Result<T, WorkerError> {
        result.map_err(|error| {
            self.in_call = true;
            WorkerError::Protocol(error.to_string())
        })
    }

    /// The socket is closed: waits for the process to be reaped, then for its last words.
    async fn ended(&mut self) -> WorkerError {
        let mut exit = self.life.watch();
        let Ok(exit) = tokio::time::timeout(EXIT_AFTER_CLOSE, exit.wait()).await else {
            self.life.kill();
            exit.wait().await;
            return WorkerError::Protocol("the socket was closed by a worker that lived on".into());
        };
        for task in &mut self.log_tasks {
            // A process that escaped from the group may hold the pipe open for ever.
            if !task.is_finished() {
                let _ = tokio::time::timeout(LAST_WORDS, task).await;
            }
        }
        WorkerError::Exited { exit, stderr: self.logs.last_stderr() }
    }
}

/// The number of events, when `_row` counts them from 0.
fn count_rows(batch: &RecordBatch) -> Result<u32, String> {
    let rows = batch
        .column_by_name(schema::ROW)
        .and_then(|column| column.as_primitive_opt::<UInt32Type>());
    let rows = rows.ok_or_else(|| format!("no column {:?} of type UInt32", schema::ROW))?;
    let n_in = u32::try_from(batch.num_rows())
        .map_err(|_| "more rows than a UInt32 can count".to_owned())?;
    if rows.values().iter().copied().eq(0..n_in) {
        Ok(n_in)
    } else {
        Err(format!("the column {:?} does not count from 0", schema::ROW))
    }
}

fn check_rejected(rejected: &[Rejected], n_in: u32) -> Result<(), String> {
    let ascending = rejected.is_sorted_by(|a, b| a.row < b.row);
    if ascending && rejected.last().is_none_or(|last| last.row < n_in) {
        Ok(())
    } else {
        Err("rejected rows that are out of order or no rows of the batch".into())
    }
}

async fn write_frames(mut socket: OwnedWriteHalf, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        // The reading side notices the same end and reports it.
        if frame.send_to(&mut socket).await.is_err() {
            return;
        }
    }
}

async fn read_frames(
    socket: OwnedReadHalf,
    answers: mpsc::Sender<Result<Frame, WireError>>,
    logs: Logs,
) {
    let mut socket = tokio::io::BufReader::with_capacity(64 << 10, socket);
    loop {
        let received = Frame::receive_from(&mut socket).await;
        match received {
            Ok(frame) if frame.kind == Kind::Log => {
                if let Ok(line) = frame.header() {
                    logs.told(&line);
                }
            }
            received => {
                let over = received.is_err();
                if answers.send(received).await.is_err() || over {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, UInt32Array};

    use super::*;

    #[test]
    fn row_numbers_must_count_from_zero() {
        let batch = |array| RecordBatch::try_from_iter([("_row", array)]).unwrap();
        assert_eq!(count_rows(&batch(Arc::new(UInt32Array::from(vec![0, 1, 2])) as _)), Ok(3));
        assert!(count_rows(&batch(Arc::new(UInt32Array::from(vec![1, 2])) as _)).is_err());
        assert!(count_rows(&batch(Arc::new(Int64Array::from(vec![0, 1])) as _)).is_err());
    }

    #[test]
    fn rejected_rows_must_be_rows_of_the_batch() {
        let rejected = |rows: &[u32]| -> Vec<Rejected> {
            rows.iter()
                .map(|row| Rejected { row: *row, reason: String::new(), detail: String::new() })
                .collect()
        };
        assert!(check_rejected(&rejected(&[0, 2]), 3).is_ok());
        assert!(check_rejected(&rejected(&[0, 3]), 3).is_err());
        assert!(check_rejected(&rejected(&[1, 1]), 3).is_err());
    }
}
