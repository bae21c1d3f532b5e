"""Stores and features: how fresh values are, and whether Redis, the queue and DuckDB keep up."""

from boards import parts
from boards.parts import GREEN, ORANGE, WIDTH, YELLOW, Graph, Row, Stat, happened, quantiles

E2E = "millstream_end_to_end_seconds"
ROWS = "sum(rate(millstream_duckdb_rows_total{NODE}[WINDOW]))"


def board() -> dict:
    return parts.board(
        uid="millstream-stores",
        title="Stores and features",
        says="How soon values are online and durable, and whether Redis, the queue and DuckDB keep up.",
        items=[
            Row("How soon can a feature be read?"),
            Stat(
                "Online within 50 ms",
                "Share of the sampled events whose critical features were readable in Redis "
                "within 50 ms of the record's timestamp. The goal is 99 % at 10,000 events/s.",
                "percentunit",
                [
                    (
                        f'sum(rate({E2E}_bucket{{NODE, path="online", le="0.05"}}[WINDOW])) '
                        f'/ (sum(rate({E2E}_count{{NODE, path="online"}}[WINDOW])) > 0)',
                        "within 50 ms",
                    )
                ],
                steps=[(0.9, YELLOW), (0.99, GREEN)],
                decimals=1,
                height=8,
            ),
            Stat(
                "Feature rows",
                "Rows a second that DuckDB committed. One event may give several, or none.",
                "cps",
                [(ROWS, "rows")],
                height=8,
            ),
            Stat(
                "Database file",
                "DuckDB's file with its log, on the node that plays the role store. No metric "
                "says how much room the disk has: compare with `df` there.",
                "bytes",
                [("max(millstream_duckdb_file_bytes{NODE})", "size")],
                height=8,
            ),
            Graph(
                "Online and durable",
                "From the record's timestamp in Kafka to readable in Redis, and to committed in "
                "DuckDB. The largest bucket is 30 s. Records that are read late count with their "
                "age, so after a stop this is high until the lag is worked off.",
                "s",
                quantiles(E2E, by="path"),
                steps=[(0.05, ORANGE)],
            ),
            Graph(
                "Writing a batch online",
                "One batch's critical features into Redis. Milliseconds are normal. Tens of them: "
                "Redis is busy, its disk is slow (append-only file), or a list of critical "
                "features is longer than it need be.",
                "s",
                quantiles("millstream_redis_write_seconds"),
                width=WIDTH,
            ),
            Row("Does the way to DuckDB keep up?"),
            Graph(
                "Entries on the Redis queue",
                "Entries between the process nodes and the store, as the store saw them at its "
                "last answer. A few are normal, at most four a source. High all the time: DuckDB "
                "is the bottleneck. A line that does not move at all: the store does not answer.",
                "short",
                [("sum(millstream_queue_depth{NODE})", "entries")],
            ),
            Graph(
                "Batches in hand of the senders",
                "Batches that wait for their turn or for the store's answer, by node. It grows "
                "with the queue when the store is slow, and alone when Redis is.",
                "short",
                [
                    (
                        'sum by (instance) (millstream_stage_queue_depth{NODE, stage="redis_queue"})',
                        "{{instance}}",
                    )
                ],
            ),
            Graph(
                "Transactions of DuckDB",
                "From begin to commit. A commit waits for the disk: a p99 of seconds is a slow or "
                "busy disk, or a checkpoint.",
                "s",
                quantiles("millstream_duckdb_commit_seconds"),
            ),
            Graph(
                "Share of the time that the writer is busy",
                "There is one writer. Near 100 % it is the limit: larger batches "
                "(batch.max_age_ms) and larger groups (store.group_wait_ms) make each transaction "
                "do more.",
                "percentunit",
                [
                    (
                        'sum by (instance) (rate(millstream_stage_busy_seconds_total{NODE, stage="duckdb_writer"}[WINDOW]))',
                        "{{instance}}",
                    )
                ],
                top=1,
            ),
            Graph(
                "Rows a transaction",
                "One transaction of 10,000 rows takes far less time than ten of 1,000. Small ones "
                "with a busy writer waste it; small ones with an idle writer are just low load.",
                "short",
                [
                    (
                        f"{ROWS} / (sum(rate(millstream_duckdb_commit_seconds_count{{NODE}}[WINDOW])) > 0)",
                        "rows",
                    )
                ],
            ),
            Graph(
                "Growth of the database file",
                "Averaged over an hour; below zero after a checkpoint that gave room back. Free "
                "room divided by this is the time that is left.",
                "Bps",
                [("max(deriv(millstream_duckdb_file_bytes{NODE}[1h]))", "growth")],
            ),
            Row("Is a store in trouble?"),
            Graph(
                "Trouble of the stores",
                "redis_queue redis: Redis does not answer. rebuild: values are being put back "
                "after Redis lost data. duckdb_writer commit: the file could not be written, "
                "often a full disk; nothing is acknowledged meanwhile. statement: DuckDB refused "
                "rows. quarantine: an entry killed the store three times.",
                "cps",
                [
                    (
                        "sum by (stage, error_type) (rate(millstream_stage_errors_total{NODE, "
                        'stage=~"redis_queue|duckdb_writer|worker_semaphore"}[WINDOW]))',
                        "{{stage}} {{error_type}}",
                    )
                ],
            ),
            Graph(
                "Writes that the ledger did not apply",
                "None of these changed data. They come with restarts and rebalances. A steady "
                "stream without them is a defect: run `millstream verify`.",
                "short",
                [(happened("millstream_ledger_rejects_total", "answer"), "{{answer}}")],
                bars=True,
                stacked=True,
            ),
        ],
    )
