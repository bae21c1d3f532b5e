//! Every metric the node exports: name, kind, help and the stage it belongs to. Nothing is
//! exported that does not stand here; a test holds the endpoint against this list.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Seconds that only grow. The exporter's counters are integers: it keeps these as gauges, and
    /// they are told as counters.
    Seconds,
    /// Goes up and down.
    Gauge,
    /// Has buckets.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The exported name.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// One line for people; ends up as `# HELP`.
    pub help: &'static str,
    /// The stage whose endpoint shows it; empty: it has a `stage` label.
    pub stage: &'static str,
}

/// The stages, in the order of the flow; also the values of the label `stage`.
pub const STAGES: [&str; 8] = [
    "generator",
    "kafka_ingest",
    "file_upload",
    "batch_accumulator",
    "worker_semaphore",
    "python_worker_supervisor",
    "redis_queue",
    "duckdb_writer",
];

const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0,
    1.5, 2.5, 5.0, 10.0, 30.0,
];
const ROWS: &[f64] = &[1.0, 10.0, 100.0, 1_000.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0, 100_000.0];

const fn counter(name: &'static str, stage: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help, stage }
}

const fn gauge(name: &'static str, stage: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help, stage }
}

const fn total_seconds(name: &'static str, stage: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Seconds, help, stage }
}

const fn seconds(name: &'static str, stage: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram(SECONDS), help, stage }
}

/// Events that came into a stage.
pub const RECEIVED: &str = "millstream_stage_received_events_total";
/// Events that a stage handed on.
pub const SENT: &str = "millstream_stage_sent_events_total";
/// Errors of a stage by type.
pub const ERRORS: &str = "millstream_stage_errors_total";
/// Time a stage took for one batch.
pub const DURATION: &str = "millstream_stage_duration_seconds";
/// Time a stage worked.
pub const BUSY: &str = "millstream_stage_busy_seconds_total";
/// Time a stage waited for the next one.
pub const BLOCKED: &str = "millstream_stage_blocked_seconds_total";
/// Time a stage had nothing to do.
pub const IDLE: &str = "millstream_stage_idle_seconds_total";
/// Batches that wait in a stage.
pub const QUEUE_DEPTH: &str = "millstream_stage_queue_depth";
/// Age of what waits longest in a stage.
pub const QUEUE_OLDEST: &str = "millstream_stage_queue_oldest_seconds";
/// From the record's timestamp to readable online or durable.
pub const END_TO_END: &str = "millstream_end_to_end_seconds";
/// Events a batch.
pub const BATCH_ROWS: &str = "millstream_batch_rows";
/// Why batches closed.
pub const BATCH_CLOSES: &str = "millstream_batch_closes_total";
/// Dead letters.
pub const DEAD_LETTERS: &str = "millstream_dead_letters_total";
/// Records between the log's end and what DuckDB holds.
pub const KAFKA_LAG: &str = "millstream_kafka_lag_records";
/// Age of the oldest record that DuckDB does not hold yet.
pub const KAFKA_LAG_SECONDS: &str = "millstream_kafka_lag_seconds";
/// Rebalances of the consumer group.
pub const KAFKA_REBALANCES: &str = "millstream_kafka_rebalances_total";
/// Offset commits.
pub const KAFKA_COMMITTED: &str = "millstream_kafka_committed_total";
/// Partitions that an operator must look at.
pub const KAFKA_HALTED: &str = "millstream_kafka_halted_partitions";
/// Whether an actor lives.
pub const ACTOR_UP: &str = "millstream_actor_up";
/// Restarts of an actor.
pub const ACTOR_RESTARTS: &str = "millstream_actor_restarts_total";
/// From the end of an actor's instance to the next one.
pub const ACTOR_RECOVERY: &str = "millstream_actor_recovery_seconds";
/// Faults that somebody asked for.
pub const CHAOS_KILLS: &str = "millstream_chaos_kills_total";
/// The global cap.
pub const PERMITS: &str = "millstream_python_permits";
/// Permits of this node's workers.
pub const PERMITS_IN_USE: &str = "millstream_python_permits_in_use";
/// Waiting for a permit.
pub const PERMIT_WAIT: &str = "millstream_python_permit_wait_seconds";
/// Workers that were replaced.
pub const WORKER_RESTARTS: &str = "millstream_python_worker_restarts_total";
/// Workers started, and how long that took.
pub const WORKER_START: &str = "millstream_python_worker_start_seconds";
/// Memory of the workers.
pub const WORKER_RSS: &str = "millstream_python_worker_rss_bytes";
/// Time in the script for one batch.
pub const TRANSFORM: &str = "millstream_transform_seconds";
/// Rows that scripts gave.
pub const TRANSFORM_ROWS: &str = "millstream_transform_rows_total";
/// Which version of which script runs.
pub const SCRIPT_INFO: &str = "millstream_script_info";
/// Whether a stream waits because its script is suspected.
pub const SCRIPT_SUSPECTED: &str = "millstream_script_suspected";
/// Verdicts on versions.
pub const SCRIPT_SWAPS: &str = "millstream_script_swaps_total";
/// From saving a script to the first batch under it.
pub const SCRIPT_SWAP: &str = "millstream_script_swap_seconds";
/// Whether a stream is paused.
pub const SCRIPT_PAUSED: &str = "millstream_script_paused";
/// Writing a batch's critical features to Redis.
pub const REDIS_WRITE: &str = "millstream_redis_write_seconds";
/// Entries on the Redis queue.
pub const QUEUE_ENTRIES: &str = "millstream_queue_depth";
/// Age of the oldest entry on the Redis queue.
pub const QUEUE_ENTRIES_OLDEST: &str = "millstream_queue_oldest_seconds";
/// One transaction of DuckDB, from begin to commit.
pub const DUCKDB_COMMIT: &str = "millstream_duckdb_commit_seconds";
/// Feature rows committed.
pub const DUCKDB_ROWS: &str = "millstream_duckdb_rows_total";
/// Size of the database file.
pub const DUCKDB_FILE: &str = "millstream_duckdb_file_bytes";
/// Room that is left on a disk.
pub const DISK_FREE: &str = "millstream_disk_free_bytes";
/// From a feature's newest event timestamp in DuckDB to now.
pub const FRESHNESS: &str = "millstream_feature_freshness_seconds";
/// How old a stream's values may become.
pub const MAX_AGE: &str = "millstream_stream_max_age_seconds";
/// Parts of writes that were not applied, by answer.
pub const LEDGER_REJECTS: &str = "millstream_ledger_rejects_total";
/// Files that clients sent, by what became of them.
pub const UPLOADS: &str = "millstream_uploads_total";
/// Bytes of files that came in.
pub const UPLOAD_BYTES: &str = "millstream_upload_bytes_total";
/// Bytes of files that are not processed yet.
pub const SPOOL_BYTES: &str = "millstream_spool_bytes";
/// Pieces of files whose features went to the store as Parquet.
pub const UPLOAD_CHUNKS: &str = "millstream_upload_chunks_total";
/// Keys of samples, by how their online value stands to the newest one in DuckDB.
pub const SKEW_KEYS: &str = "millstream_skew_keys_total";
/// Whether a component is ready.
pub const READY: &str = "millstream_ready";
/// Version and commit of the program.
pub const BUILD_INFO: &str = "millstream_build_info";

/// The whole list.
pub const CATALOGUE: &[Metric] = &[
    counter(RECEIVED, "", "Events that came into a stage."),
    counter(SENT, "", "Events that a stage handed on."),
    counter(ERRORS, "", "Errors of a stage by type."),
    seconds(DURATION, "", "Time a stage took for one batch."),
    total_seconds(BUSY, "", "Seconds a stage worked, added up over batches."),
    total_seconds(
        BLOCKED,
        "",
        "Seconds in which something waited in a stage and it could work on nothing.",
    ),
    total_seconds(IDLE, "", "Seconds in which a stage had nothing in hand."),
    gauge(QUEUE_DEPTH, "", "Batches that wait in a stage."),
    gauge(QUEUE_OLDEST, "", "Age of what waits longest in a stage; 0 when nothing waits."),
    seconds(
        END_TO_END,
        "redis_queue",
        "From the record's timestamp to readable online or durable.",
    ),
    Metric {
        name: BATCH_ROWS,
        kind: Kind::Histogram(ROWS),
        help: "Events a batch.",
        stage: "batch_accumulator",
    },
    counter(BATCH_CLOSES, "batch_accumulator", "Batches closed, by reason."),
    counter(
        DEAD_LETTERS,
        "duckdb_writer",
        "Dead letters committed, by the stage that found them and reason.",
    ),
    gauge(KAFKA_LAG, "kafka_ingest", "Records between the log's end and what DuckDB acknowledged."),
    gauge(
        KAFKA_LAG_SECONDS,
        "kafka_ingest",
        "Age of the oldest record that DuckDB has not acknowledged; 0 when there is none.",
    ),
    counter(KAFKA_REBALANCES, "kafka_ingest", "Rebalances of the consumer group."),
    counter(KAFKA_COMMITTED, "kafka_ingest", "Offset commits sent to the broker."),
    gauge(KAFKA_HALTED, "kafka_ingest", "Partitions that wait for an operator."),
    counter(UPLOADS, "file_upload", "Files that clients sent, by what became of them."),
    counter(UPLOAD_BYTES, "file_upload", "Bytes of files that came in."),
    counter(
        UPLOAD_CHUNKS,
        "redis_queue",
        "Pieces of files whose features went to the store as Parquet rather than over the queue.",
    ),
    gauge(SPOOL_BYTES, "file_upload", "Bytes of files in the spool that are not processed yet."),
    gauge(ACTOR_UP, "", "1 while an instance of the actor lives."),
    counter(ACTOR_RESTARTS, "", "Restarts of an actor by cause."),
    seconds(
        ACTOR_RECOVERY,
        "",
        "From the end of one instance of an actor to the moment that the next one is linked.",
    ),
    counter(
        CHAOS_KILLS,
        "",
        "Faults that somebody asked for, by the actor that they struck (or python_worker) and kind.",
    ),
    gauge(PERMITS, "worker_semaphore", "Python workers that may live, over all nodes."),
    gauge(PERMITS_IN_USE, "worker_semaphore", "Permits that this node holds."),
    seconds(PERMIT_WAIT, "worker_semaphore", "Waiting for a permit."),
    counter(WORKER_RESTARTS, "python_worker_supervisor", "Python workers replaced, by cause."),
    seconds(
        WORKER_START,
        "python_worker_supervisor",
        "Starting a worker until its script is loaded.",
    ),
    gauge(
        WORKER_RSS,
        "python_worker_supervisor",
        "Resident memory of this node's Python workers after their last batches.",
    ),
    seconds(TRANSFORM, "python_worker_supervisor", "Time in the script for one batch."),
    counter(TRANSFORM_ROWS, "python_worker_supervisor", "Rows that a script gave."),
    gauge(SCRIPT_INFO, "python_worker_supervisor", "1 for the running version of a script."),
    gauge(
        SCRIPT_SUSPECTED,
        "python_worker_supervisor",
        "1 while a stream waits because its script fails on too many rows.",
    ),
    counter(
        SCRIPT_SWAPS,
        "python_worker_supervisor",
        "Events of a script's history: deployed, refused, rolled_back, paused, resumed, reconfigured.",
    ),
    seconds(
        SCRIPT_SWAP,
        "python_worker_supervisor",
        "From saving a script's file to the first batch under the new version.",
    ),
    gauge(SCRIPT_PAUSED, "python_worker_supervisor", "1 while an operator holds a stream."),
    seconds(REDIS_WRITE, "redis_queue", "Writing a batch's critical features to Redis."),
    gauge(QUEUE_ENTRIES, "redis_queue", "Entries on the Redis queue."),
    gauge(QUEUE_ENTRIES_OLDEST, "redis_queue", "Age of the oldest entry on the Redis queue."),
    seconds(DUCKDB_COMMIT, "duckdb_writer", "One transaction, from begin to commit."),
    counter(DUCKDB_ROWS, "duckdb_writer", "Feature rows committed."),
    gauge(DUCKDB_FILE, "duckdb_writer", "Size of the database file and its log."),
    gauge(
        DISK_FREE,
        "duckdb_writer",
        "Room left on the disk of the database, and on that of the files that were sent.",
    ),
    gauge(
        FRESHNESS,
        "duckdb_writer",
        "From a feature's newest event timestamp in DuckDB to now; 100 features at most.",
    ),
    gauge(
        MAX_AGE,
        "duckdb_writer",
        "How old values of a stream may become, where its configuration says so.",
    ),
    counter(LEDGER_REJECTS, "duckdb_writer", "Parts of writes that were not applied, by answer."),
    counter(
        SKEW_KEYS,
        "redis_queue",
        "Keys of samples that were compared: their online value is equal to the newest in DuckDB, ahead of it, \
         behind it, missing, different, or unreadable.",
    ),
    gauge(READY, "", "1 while the component is ready."),
    gauge(BUILD_INFO, "", "1; version of the program."),
];
