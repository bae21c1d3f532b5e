"""Overview: is data flowing, which stage holds it up, is anything lost, who is to be woken?"""

from boards import parts
from boards.parts import (
    GRAPH_HEIGHT,
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

# In the order of the flow, but for the semaphore, which counts permits and not events.
FLOW = (
    'stage=~"generator|kafka_ingest|file_upload|batch_accumulator|python_worker_supervisor|'
    'redis_queue|duckdb_writer"'
)
# Stages that say how they spend their time; nobody waits for the generator.
STAGES = FLOW.replace("generator|", "")
# The share of the time in which a stage works on something. A node that does not play the role is
# idle all the time, so the busiest node counts.
WORKING = (
    f"max by (stage) (1 - rate(millstream_stage_idle_seconds_total{{NODE, {STAGES}}}[WINDOW])"
    f" - rate(millstream_stage_blocked_seconds_total{{NODE, {STAGES}}}[WINDOW]))"
)
BLOCKED = "max by (stage) (rate(millstream_stage_blocked_seconds_total{NODE}[WINDOW]))"

DURABLE = 'sum(rate(millstream_stage_sent_events_total{NODE, stage="duckdb_writer"}[WINDOW]))'
# A partition belongs to one node; where it was before, it shows 0.
LAG = "sum(max by (topic, partition) (millstream_kafka_lag_records{NODE}))"
LAG_SECONDS = "max by (topic) (millstream_kafka_lag_seconds{NODE})"
# Both are counted when DuckDB commits.
DEAD_SHARE = f"sum(rate(millstream_dead_letters_total{{NODE}}[WINDOW])) / ({DURABLE} > 0)"


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
                "that the pipeline stands: look at the alarms, then at what waits longest below. "
                "Zero without lag means that nobody produces.",
                "cps",
                [(DURABLE, "events")],
            ),
            Stat(
                "Not yet durable",
                "Records in Kafka that DuckDB has not acknowledged. A number near one second of "
                "the rate is the batches on their way. One that grows means that events come "
                "faster than they are stored: the panel Bottleneck says where.",
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
                "Share of the events that DuckDB committed as dead letters. They are kept with "
                "their reason, not lost: `millstream dlq list` shows them, `dlq replay` sends "
                "them again once the script or the data is mended.",
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
            Stat(
                "Bottleneck",
                "The stage that works the largest share of the time, and that share. There is "
                "always one; it matters only while kafka_ingest is blocked or lag grows. Near "
                "100 % then, the stage is the limit: see its dashboard. Far below, nothing "
                "here works hard: producers, Kafka or Redis are slow, or a stream waits for you.",
                "percentunit",
                [(f"topk(1, {WORKING})", "{{stage}}")],
                decimals=0,
                named=True,
                width=6,
                height=GRAPH_HEIGHT,
            ),
            Graph(
                "Share of the time at work, by stage",
                "In which a stage works on at least one batch; of kafka_ingest, processor time of "
                "its polling thread. Near 100 % it is the limit, unless it works on several "
                "batches at a time: python_worker_supervisor is at its limit once permits are "
                "waited for, too.",
                "percentunit",
                [(WORKING, "{{stage}}")],
                width=9,
                top=1,
            ),
            Graph(
                "Share of the time blocked, by stage",
                "In which something waited in a stage and it worked on nothing, because the next "
                "stage, a permit or Redis had no room. kafka_ingest high: back-pressure reaches "
                "the source, and the trouble is further down. redis_queue counts waiting for the "
                "store's answer.",
                "percentunit",
                [(BLOCKED, "{{stage}}")],
                width=9,
                top=1,
            ),
            Graph(
                "Events out of each stage",
                "kafka_ingest and file_upload bring events in; from there on every stage should "
                "hand on what the one before it does. The first that stays below is broken, or "
                "holds up the others. All at zero with lag: the last stage stands, and "
                "back-pressure has stopped the others.",
                "cps",
                [
                    (
                        f"sum by (stage) (rate(millstream_stage_sent_events_total{{NODE, {FLOW}}}[WINDOW]))",
                        "{{stage}}",
                    )
                ],
            ),
            Graph(
                "What waits longest, by stage",
                "The age of what has waited longest in a stage. A line that climbs with the clock "
                "is a stage that stands. kafka_ingest: no room further down. "
                "python_worker_supervisor: no worker is free. worker_semaphore: no permit. "
                "redis_queue: the store does not answer.",
                "s",
                [("max by (stage) (millstream_stage_queue_oldest_seconds{NODE})", "{{stage}}")],
            ),
            Graph(
                "Lag by topic, in seconds",
                "The age of the oldest record that is not durable yet, by its timestamp in Kafka. "
                "One topic growing alone: its script is slow, suspected or broken. All growing: a "
                "shared stage. It climbs with the clock while a topic stands still. In records: "
                "the dashboard Sources and batches.",
                "s",
                [(LAG_SECONDS, "{{topic}}")],
            ),
            Graph(
                "From event to readable",
                "online: in Redis. durable: in DuckDB. The goal is 50 ms for p99 online at 10,000 "
                "events/s. Both up: Kafka, the scripts or Redis. Only durable up: the queue or "
                "DuckDB. 30 s is the largest bucket.",
                "s",
                quantiles("millstream_end_to_end_seconds", by="path"),
                steps=[(0.05, ORANGE)],
            ),
            Row("Is anything lost or in trouble?"),
            Graph(
                "Dead letters by reason",
                "Nothing here is lost. decode: producers send what the stream's schema does not "
                "allow. transform: the script raised, timed out or rejected. store: DuckDB refused "
                "rows. Each is counted once, when it is committed, so they add up to what the "
                "table dead_letters holds.",
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
                "Redis does not answer. stalled: the consumer lost its place and was set again. "
                "commit: DuckDB's file, often a full disk. import: a script does not load or is "
                "suspected.",
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
