"""Sources and batches: what comes in, how far behind it is, and how it is cut into batches."""

from boards import parts
from boards.overview import DURABLE, LAG
from boards.parts import RED, YELLOW, Graph, Row, Stat, Table, happened, quantiles


def board() -> dict:
    return parts.board(
        uid="millstream-sources",
        title="Sources and batches",
        says="What Kafka holds, how far behind the stores are, and how records become batches.",
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
                "read and durable should lie on each other; read above durable fills the node "
                "until back-pressure holds it. made up is the nodes' own generator, where it "
                "runs.",
                "cps",
                [
                    (
                        'sum(rate(millstream_stage_received_events_total{NODE, stage="kafka_ingest"}[WINDOW]))',
                        "read",
                    ),
                    (DURABLE, "durable"),
                    (
                        'sum(rate(millstream_stage_sent_events_total{NODE, stage="generator"}[WINDOW]))',
                        "made up",
                    ),
                ],
            ),
            Graph(
                "Lag by topic",
                "One topic growing alone: look at its script. All growing: at a shared stage.",
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
                "The ten partitions furthest behind",
                "A single partition far above the others has a hot key, or is halted, or was not "
                "opened yet. After a rebalance the node that gave a partition away shows its last "
                "lag for ever; the larger number is drawn.",
                "short",
                [
                    (
                        "topk(10, max by (topic, partition) (millstream_kafka_lag_records{NODE}))",
                        "{{topic}}/{{partition}}",
                    )
                ],
            ),
            Row("What holds reading up?"),
            Graph(
                "Chunks that wait for room",
                "Chunks that were read and find no credit (kafka.max_inflight_bytes) or no "
                "accumulator. Above zero for longer: something further down is slow, and reading "
                "pauses for it.",
                "short",
                [
                    (
                        'sum by (instance) (millstream_stage_queue_depth{NODE, stage="kafka_ingest"})',
                        "{{instance}}",
                    )
                ],
            ),
            Graph(
                "Share of the time paused",
                "How much of the time back-pressure kept partitions paused. It is counted when a "
                "pause ends: a pause that lasts shows nothing here until then, so trust the panel "
                "beside it.",
                "percentunit",
                [
                    (
                        'sum by (instance) (rate(millstream_stage_blocked_seconds_total{NODE, stage="kafka_ingest"}[WINDOW]))',
                        "{{instance}}",
                    )
                ],
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
            Graph(
                "Trouble of sources",
                "kafka: the broker does not answer. abandoned: batches that came back and are read "
                "again, as after a kill. stalled: the consumer lost its place and was set again. "
                "Occasional ones mend themselves; steady ones need a look at the broker.",
                "cps",
                [
                    (
                        "sum by (stage, error_type) (rate(millstream_stage_errors_total{NODE, "
                        'stage=~"kafka_ingest|batch_accumulator"}[WINDOW]))',
                        "{{stage}} {{error_type}}",
                    )
                ],
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
                "Dead letters since the nodes started",
                "Every reason that was ever met, also one single letter. decode: talk to the "
                "producer. transform: mend the script, then `millstream dlq replay`. The exact "
                "number and the records are in DuckDB: `millstream dlq list --reason …`.",
                "short",
                [("sum by (stage, reason) (millstream_dead_letters_total{NODE})", "")],
                names={"Value": "letters"},
            ),
        ],
    )
