"""The hand-written loop that Millstream is measured against: Kafka → polars → DuckDB.

Usage: loop.py --brokers ADDRESS --topic T --events N --db FILE [--batch 10000]

What a careful user would write without an engine: one consumer over all partitions from the
beginning, batches, the same polars transform that the node runs (`validate_features`), one
DuckDB transaction a batch straight from the frame, offsets committed afterwards. The fast way is
taken everywhere: partitions are assigned by hand (no wait for a group), a large prefetch queue,
one NDJSON parse a batch, Arrow into DuckDB without copies.

It does less than the node: no validation beyond types, no dead letters, no online store, no event
ids, no arrival times, and a crash between the two commits writes a batch twice.

Stops after N messages and prints one JSON object: `events`, `seconds` (from the assignment of the
partitions to the last commit), `events_per_s`, `cpu_s` (user and system, all threads, same span),
`max_rss_mb` (peak of the process), `rows` (in the table) and `dropped` (no usable event).
Exits 4 when the topic cannot be read or dries up before N messages.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

sys.path.insert(0, str(Path(__file__).parents[2] / "py_transforms"))
from validate_features import transform

EXIT_DEPENDENCY = 4
#: Without a message for this long the topic is taken to hold fewer than were asked for.
DRY_AFTER_S = 20.0
#: How long one call gathers messages before it returns fewer than a full batch.
GATHER_S = 0.2

CONSUMER_OPTIONS = {
    "enable.auto.commit": False,
    "queued.min.messages": 1_000_000,
    "queued.max.messages.kbytes": 65_536,
    "fetch.message.max.bytes": 8_388_608,
    "fetch.wait.max.ms": 50,
}
PAYLOAD_SCHEMA = {
    "entity_id": pl.String,
    "feature_name": pl.String,
    "value": pl.Float64,
    "validated_at": pl.String,
    "created_at": pl.String,
}
CREATE_TABLE = """
CREATE TABLE features_table (
    entity_id VARCHAR, feature_name VARCHAR, value DOUBLE,
    event_timestamp TIMESTAMPTZ, created_at TIMESTAMPTZ)
"""
INSERT = """
INSERT INTO features_table
SELECT entity_id, feature_name, value, event_timestamp, created_at FROM features
"""


def decode(payloads: list[bytes]) -> pl.DataFrame:
    """The payloads as the frame that the transform takes; rows that are no event are left out."""
    # `%+` is RFC 3339, and the fastest of the formats that polars has for it.
    times = pl.col("validated_at", "created_at").str.to_datetime(
        "%+", time_unit="us", time_zone="UTC", strict=False
    )
    try:
        raw = parse(payloads)
    except pl.exceptions.PolarsError:
        # One payload that is no JSON fails the parse of all, so look at each; rare.
        raw = parse([payload for payload in payloads if is_object(payload)])
    return (
        raw.with_columns(times)
        .drop_nulls(["entity_id", "feature_name", "validated_at"])
        .with_row_index("_row")
    )


def parse(payloads: list[bytes]) -> pl.DataFrame:
    """One parse of all payloads; a field of another type becomes NULL."""
    lines = b"\n".join(payloads)
    return pl.read_ndjson(lines, schema=PAYLOAD_SCHEMA, ignore_errors=True)


def is_object(payload: bytes) -> bool:
    """Whether the payload is a JSON object."""
    try:
        return isinstance(json.loads(payload), dict)
    except (ValueError, RecursionError):
        return False


def batches(consumer: Consumer, events: int, size: int) -> Iterator[list[Message]]:
    """Batches of at most `size` messages until `events` messages are there.

    Raises:
        TimeoutError: No message came for a while.
        KafkaException: The broker says no.
    """
    left = events
    last = time.monotonic()
    while left:
        messages = consumer.consume(min(size, left), timeout=GATHER_S)
        if not messages:
            if time.monotonic() - last > DRY_AFTER_S:
                raise TimeoutError(f"{left:,} of {events:,} messages are missing from the topic")
            continue
        last = time.monotonic()
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
        left -= len(messages)
        yield messages


def positions(consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
    """What comes next in each partition that has given a message."""
    return [at for at in consumer.position(partitions) if at.offset >= 0]


def run(brokers: str, topic: str, events: int, db: Path, size: int) -> dict[str, float]:
    """Reads `events` messages of the topic into a new table of `db` and says how it went."""
    con = duckdb.connect(str(db))
    con.execute(CREATE_TABLE)
    options = {"bootstrap.servers": brokers, "group.id": f"python-loop-{time.time_ns()}"}
    consumer = Consumer({**options, **CONSUMER_OPTIONS})
    found = consumer.list_topics(topic, timeout=10).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)

    rows = 0
    started, cpu_started = time.perf_counter(), cpu_seconds()
    partitions = [TopicPartition(topic, p, OFFSET_BEGINNING) for p in found.partitions]
    consumer.assign(partitions)
    for messages in batches(consumer, events, size):
        payloads = [payload for message in messages if (payload := message.value())]
        features = transform(decode(payloads))
        con.begin()
        con.execute(INSERT)  # reads the variable `features`
        con.commit()
        rows += features.height
        consumer.commit(offsets=positions(consumer, partitions), asynchronous=True)
    consumer.commit(offsets=positions(consumer, partitions), asynchronous=False)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu_started
    consumer.close()
    con.close()
    return {
        "events": events,
        "seconds": round(seconds, 3),
        "events_per_s": round(events / seconds),
        "cpu_s": round(cpu, 3),
        "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "rows": rows,
        "dropped": events - rows,
    }


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Parses the arguments, runs the loop, prints the JSON object."""
    parser = argparse.ArgumentParser(description="Kafka → polars → DuckDB by hand.")
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--events", required=True, type=int, help="messages to read")
    parser.add_argument("--db", required=True, type=Path, help="new DuckDB file")
    parser.add_argument("--batch", type=int, default=10_000, help="messages a batch")
    o = parser.parse_args()
    try:
        print(json.dumps(run(o.brokers, o.topic, o.events, o.db, o.batch)))
    except (KafkaException, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_DEPENDENCY)


if __name__ == "__main__":
    main()
