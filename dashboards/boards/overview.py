"""Overview: is data flowing, which stage holds it up, is anything lost, who is to be woken?"""

from boards import parts
from boards.parts import (
    GREEN,
    ORANGE,
    RED,
    WIDTH,
    YELLOW,
    Graph,
    Row,
    Stat,
    Table,
    quantile,
    quantiles,
)

# In the order of the flow. The semaphore counts permits, not events, and uploads have no stage yet.
FLOW = 'stage=~"generator|kafka_ingest|batch_accumulator|python_worker_supervisor|redis_queue|duckdb_writer"'

DURABLE = 'sum(rate(millstream_stage_sent_events_total{NODE, stage="duckdb_writer"}[WINDOW]))'
# After a rebalance the former owner still shows the last lag of a partition: the larger one counts.
LAG = "sum(max by (topic, partition) (millstream_kafka_lag_records{NODE}))"
DEAD_SHARE = (
    "sum(rate(millstream_dead_letters_total{NODE}[WINDOW])) "
    '/ (sum(rate(millstream_stage_received_events_total{NODE, stage="kafka_ingest"}[WINDOW])) > 0)'
)


def board() -> dict:
    return parts.board(
        uid="millstream-overview",
        title="Overview",
        says="One look: is data flowing, which stage holds it up, is anything lost?",
        items=[
            Row("Is everything well?"),
            Stat(
                "Durable now",
                "Events a second whose effect DuckDB has committed. Zero while there is lag means "
                "that the pipeline stands: look at the alarms, then at the waiting batches below. "
                "Zero without lag means that nobody produces.",
                "cps",
                [(DURABLE, "events")],
            ),
            Stat(
                "Not yet durable",
                "Records in Kafka that DuckDB has not acknowledged. A number near one second of "
                "the rate is the batches on their way. One that grows means that events come "
                "faster than they are stored: find the stage with the waiting batches.",
                "short",
                [(LAG, "records")],
                steps=[(10_000, YELLOW), (100_000, RED)],
            ),
            Stat(
                "Durable after, p99",
                "From the record's timestamp in Kafka to DuckDB's commit. The largest bucket is "
                "30 s: 30 s means 30 s or more. Old records that are read now, after a stop or "
                "from a file, count with their age.",
                "s",
                [(quantile(0.99, "millstream_end_to_end_seconds", where='path="durable"'), "p99")],
                steps=[(1, YELLOW), (10, RED)],
                decimals=2,
            ),
            Stat(
                "Dead letters",
                "Share of the events read that became dead letters. They are kept with their "
                "reason, not lost: `millstream dlq list` shows them, `dlq replay` sends them "
                "again once the script or the data is mended.",
                "percentunit",
                [(DEAD_SHARE, "share")],
                steps=[(0.02, YELLOW), (0.2, RED)],
                decimals=2,
            ),
            Stat(
                "Waiting for you",
                "Halted partitions, streams whose script is suspected or that are paused. Their "
                "events wait in Kafka until an operator decides: `millstream sources list`, "
                "`millstream transforms list`. Mind the topic's retention.",
                "short",
                [
                    (
                        "sum(millstream_kafka_halted_partitions{NODE}) "
                        "+ (sum(max by (stream) (millstream_script_suspected{NODE})) or vector(0)) "
                        "+ (sum(max by (stream) (millstream_script_paused{NODE})) or vector(0))",
                        "halted or waiting",
                    )
                ],
                steps=[(1, RED)],
            ),
            Stat(
                "Nodes that answer",
                "Share of the scraped nodes of this cluster that answered the last scrape. Below "
                "100 % a node is down or cannot be reached; its peers take over its partitions, "
                "but nobody takes over the store.",
                "percentunit",
                [('avg(up{job="$job"})', "answering")],
                steps=[(1, GREEN)],
            ),
            Row("Is data flowing, and which stage holds it up?"),
            Graph(
                "Events out of each stage",
                "In the order of the flow every stage should hand on what the one before it does. "
                "The first stage that stays below the one before it is the bottleneck, or is "
                "broken. All at zero with lag: the last stage stands, and back-pressure has "
                "stopped the others.",
                "cps",
                [
                    (
                        f"sum by (stage) (rate(millstream_stage_sent_events_total{{NODE, {FLOW}}}[WINDOW]))",
                        "{{stage}}",
                    )
                ],
            ),
            Graph(
                "Batches that wait, by stage",
                "The stage in front of which batches pile up is the bottleneck. kafka_ingest: "
                "there is no room for more, the trouble is further down. "
                "python_worker_supervisor: the scripts. redis_queue: the store, or Redis. "
                "worker_semaphore counts requests for a worker.",
                "short",
                [("sum by (stage) (millstream_stage_queue_depth{NODE})", "{{stage}}")],
            ),
            Graph(
                "Work in each stage",
                "How many batches a stage works on at a time, on average; waiting for Redis "
                "counts. duckdb_writer has one thread: near 1 it is the limit, and larger batches "
                "or a faster disk help. The scripts' limit is the number of Python workers.",
                "short",
                [
                    (
                        "sum by (stage) (rate(millstream_stage_busy_seconds_total{NODE, "
                        'stage=~"batch_accumulator|python_worker_supervisor|redis_queue|duckdb_writer"}[WINDOW]))',
                        "{{stage}}",
                    )
                ],
            ),
            Graph(
                "Lag by topic",
                "Records that DuckDB has not acknowledged. One topic growing alone: its script is "
                "slow, suspected or broken. All growing: a shared stage. A flat line far above "
                "zero while nothing is durable is a stall; Kafka's end is not asked for while "
                "partitions pause.",
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
                "From event to readable",
                "online: in Redis. durable: in DuckDB. The goal is 50 ms for p99 online at 10,000 "
                "events/s. Both up: Kafka, the scripts or Redis. Only durable up: the queue or "
                "DuckDB. 30 s is the largest bucket.",
                "s",
                quantiles("millstream_end_to_end_seconds", by="path"),
                steps=[(0.05, ORANGE)],
                width=WIDTH,
            ),
            Row("Is anything lost or in trouble?"),
            Graph(
                "Dead letters by reason",
                "Nothing here is lost. decode: producers send what the stream's schema does not "
                "allow. transform: the script raised, timed out or rejected. A batch that is read "
                "again after a crash counts twice here, but is stored once; DuckDB's table has "
                "the exact number.",
                "cps",
                [
                    (
                        "sum by (stage, reason) "
                        "(rate(millstream_dead_letters_total{NODE}[WINDOW]))",
                        "{{stage}} {{reason}}",
                    )
                ],
                stacked=True,
            ),
            Graph(
                "Errors by stage",
                "Trouble of the machinery, not of the data; each kind is retried. abandoned: "
                "batches that are read again, as after a kill. kafka and redis: the broker or "
                "Redis does not answer. commit: DuckDB's file, often a full disk. import: a "
                "script does not load or is suspected.",
                "cps",
                [
                    (
                        "sum by (stage, error_type) "
                        "(rate(millstream_stage_errors_total{NODE}[WINDOW])) > 0",
                        "{{stage}} {{error_type}}",
                    )
                ],
                stacked=True,
            ),
            Table(
                "Alarms",
                "Alarms of Prometheus that fire or are about to. Each has a section in "
                "docs/runbook.md that says how to look and what to do.",
                "none",
                [('ALERTS{job="$job"}', "")],
                names={
                    "alertname": "alarm",
                    "alertstate": "state",
                    "__name__": "",
                    "job": "",
                    "Value": "",
                },
                width=WIDTH,
                height=6,
            ),
        ],
    )
