"""Sources and batches: what comes in, how far behind it is, and how it is cut into batches."""

from boards import parts
from boards.overview import DURABLE, LAG, LAG_SECONDS
from boards.parts import RED, WIDTH, YELLOW, Graph, Row, Stat, Table, happened, quantile, quantiles


def board() -> dict:
    return parts.board(
        uid="millstream-sources",
        title="Sources and batches",
        says="What Kafka and files bring, how far behind the stores are, and how batches are cut.",
        items=[
            Row("How far behind?"),
            Stat(
                "Lag",
                "Records in Kafka that DuckDB has not acknowledged, over all partitions.",
                "short",
                [(LAG, "records")],
                steps=[(10_000, YELLOW), (100_000, RED)],
                height=8,
            ),
            Stat(
                "Worked off in",
                "How long the lag lasts at the present rate if nothing new came. Minutes are "
                "worth a look, more than the topic's retention is data at risk. Empty while "
                "nothing is stored.",
                "s",
                [(f"{LAG} / ({DURABLE} > 0)", "time")],
                steps=[(60, YELLOW), (600, RED)],
                decimals=1,
                height=8,
            ),
            Stat(
                "Halted partitions",
                "Partitions that wait for an operator: the topic was made again, its retention "
                "has passed what was not read, or it lies on another cluster. `millstream sources "
                "list` says which and why; `millstream sources adopt SOURCE --at …` lets one go "
                "on.",
                "short",
                [("sum(millstream_kafka_halted_partitions{NODE})", "partitions")],
                steps=[(1, RED)],
                height=8,
            ),
            Graph(
                "Read, durable and made up",
                "read and from files together should be durable; above it they fill the node "
                "until back-pressure holds them. made up is the nodes' own generator, where it "
                "runs.",
                "cps",
                [
                    (
                        'sum(rate(millstream_stage_received_events_total{NODE, stage="kafka_ingest"}[WINDOW]))',
                        "read",
                    ),
                    (
                        'sum(rate(millstream_stage_received_events_total{NODE, stage="file_upload"}[WINDOW]))',
                        "from files",
                    ),
                    (DURABLE, "durable"),
                    (
                        'sum(rate(millstream_stage_sent_events_total{NODE, stage="generator"}[WINDOW]))',
                        "made up",
                    ),
                ],
            ),
            Graph(
                "Lag by topic, in records",
                "Records that DuckDB has not acknowledged. One topic growing alone: look at its "
                "script. All growing: at a shared stage. Kafka's end is not asked for while "
                "partitions pause, so a flat line far above zero may be higher.",
                "short",
                [
                    (
                        "sum by (topic) (max by (topic, partition) "
                        "(millstream_kafka_lag_records{NODE}))",
                        "{{topic}}",
                    )
                ],
            ),
            Graph(
                "Lag by topic, in seconds",
                "The age of the oldest record that is not durable yet, by its timestamp in Kafka. "
                "It climbs with the clock while a topic stands still, however few its records "
                "are. Compare it with the topic's retention.",
                "s",
                [(LAG_SECONDS, "{{topic}}")],
            ),
            Graph(
                "The ten partitions furthest behind",
                "A single partition far above the others has a hot key, or is halted, or was not "
                "opened yet. A partition that moved to another node counts there.",
                "short",
                [
                    (
                        "topk(10, max by (topic, partition) (millstream_kafka_lag_records{NODE}))",
                        "{{topic}}/{{partition}}",
                    )
                ],
                width=WIDTH,
            ),
            Row("What holds reading up?"),
            Graph(
                "Batches that wait, by stage",
                "The stage in front of which batches pile up is slow, or stands. kafka_ingest: "
                "chunks that were read and find no credit (kafka.max_inflight_bytes), so reading "
                "pauses. batch_accumulator: open batches, which wait for more events and hold up "
                "nothing. worker_semaphore: requests for a worker.",
                "short",
                [("sum by (stage) (millstream_stage_queue_depth{NODE})", "{{stage}}")],
            ),
            Graph(
                "A batch in each stage, p99",
                "How long a stage works on a batch, without the waiting before it. A stage that "
                "has become slower without more events a batch: redis_queue: Redis or the "
                "network; duckdb_writer: the disk; python_worker_supervisor: a script.",
                "s",
                [(quantile(0.99, "millstream_stage_duration_seconds", "stage"), "{{stage}}")],
            ),
            Graph(
                "Share of the time without room, by node",
                "In which chunks were read and waited for credit. It grows while it happens. High "
                "on one node only: that node is slow, or its partitions are the busy ones. High on "
                "all: a shared stage, see Bottleneck on the overview.",
                "percentunit",
                [
                    (
                        'sum by (instance) (rate(millstream_stage_blocked_seconds_total{NODE, stage="kafka_ingest"}[WINDOW]))',
                        "{{instance}}",
                    )
                ],
                top=1,
            ),
            Graph(
                "Rebalances",
                "An assignment of partitions and a revocation count one each. A few at a deploy "
                "are normal; a steady beat means that a node joins and leaves: look at its "
                "restarts, or whether it is too busy to poll.",
                "short",
                [(happened("millstream_kafka_rebalances_total", "instance"), "{{instance}}")],
                bars=True,
            ),
            Row("How are batches cut?"),
            Graph(
                "Batches closed, by reason",
                "age: there was nothing more for batch.max_age_ms, the normal case at moderate "
                "rates. rows and bytes: full batches, the normal case under load or after a stop. "
                "pin: the script's version changed between. drain: an ordered stop.",
                "cps",
                [
                    (
                        "sum by (reason) (rate(millstream_batch_closes_total{NODE}[WINDOW]))",
                        "{{reason}}",
                    )
                ],
                stacked=True,
            ),
            Graph(
                "Events a batch",
                "Small batches cost a Python call and a queue entry each. If these are small and "
                "Python or Redis is busy, a larger batch.max_age_ms buys throughput for a little "
                "latency.",
                "short",
                [
                    *quantiles("millstream_batch_rows"),
                    (
                        "sum(rate(millstream_batch_rows_sum{NODE}[WINDOW])) "
                        "/ (sum(rate(millstream_batch_rows_count{NODE}[WINDOW])) > 0)",
                        "mean",
                    ),
                ],
            ),
            Graph(
                "Commits of offsets",
                "Commits sent to Kafka, not offsets: about five a second and node while data "
                "flows, one in five seconds when idle. They are for monitoring tools only; DuckDB "
                "decides where reading starts.",
                "cps",
                [
                    (
                        "sum by (instance) (rate(millstream_kafka_committed_total{NODE}[WINDOW]))",
                        "{{instance}}",
                    )
                ],
            ),
            Table(
                "Dead letters since the store started",
                "Every reason that was met, also one single letter. decode: talk to the "
                "producer. transform: mend the script, then `millstream dlq replay`. Counted when "
                "DuckDB has committed them; the records, and those of earlier lives of the store, "
                "are in DuckDB: `millstream dlq list --reason …`.",
                "short",
                [("sum by (stage, reason) (millstream_dead_letters_total{NODE}) > 0", "")],
                names={"Value": "letters"},
            ),
            Row("Do files come in?"),
            Graph(
                "Files that clients sent",
                "accepted: whole, sound, on the disk and known to the store. duplicate: sent "
                "again, without effect. refused: broken, too large, or the spool is full; the "
                "client was told why. pieces: parts of files whose features went to the store as "
                "Parquet; without a shared spool there are none, and all goes over the queue.",
                "short",
                [
                    (
                        "sum by (result) (increase(millstream_uploads_total{NODE}[WINDOW]))",
                        "{{result}}",
                    ),
                    ("sum(increase(millstream_upload_chunks_total{NODE}[WINDOW]))", "pieces"),
                ],
                bars=True,
            ),
            Graph(
                "Bytes of files that come in",
                "As they are sent, compressed or not. How much lies in the spool and how much room "
                "is left: the dashboard Stores and features.",
                "Bps",
                [
                    (
                        "sum by (instance) (rate(millstream_upload_bytes_total{NODE}[WINDOW]))",
                        "{{instance}}",
                    )
                ],
            ),
        ],
    )
