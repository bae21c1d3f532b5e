"""Stores and features: how fresh values are, and whether Redis, the queue and DuckDB keep up."""

from boards import parts
from boards.parts import GREEN, ORANGE, YELLOW, Graph, Row, Stat, Table, quantiles

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
                "Room for the database",
                "What is left on the disk of DuckDB's file. When it is used up nothing becomes "
                "durable, until there is room again. Below 10 GiB: make room, or move the file to "
                "a larger disk.",
                "bytes",
                [('min(millstream_disk_free_bytes{NODE, what="database"})', "left")],
                steps=[(1 << 30, YELLOW), (10 << 30, GREEN)],
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
            ),
            Graph(
                "Age of each feature's newest value",
                "By its event timestamp, as DuckDB holds it; the twenty oldest of the first 100 by "
                "name. Above the stream's max_age_s every value of the feature is too old to be "
                "read online. One feature: its script makes it no more. All of a stream: its "
                "producers are silent, or it waits.",
                "s",
                [
                    (
                        "topk(20, max by (stream, feature) "
                        "(millstream_feature_freshness_seconds{NODE}))",
                        "{{stream}} {{feature}}",
                    ),
                    (
                        "max by (stream) (millstream_stream_max_age_seconds{NODE})",
                        "max_age_s of {{stream}}",
                    ),
                ],
            ),
            Row("Does the way to DuckDB keep up?"),
            Graph(
                "Entries on the Redis queue",
                "Entries between the process nodes and the store, looked at every two seconds. A "
                "few are normal, at most four a source. High all the time: DuckDB is the "
                "bottleneck.",
                "short",
                [("sum(millstream_queue_depth{NODE})", "entries")],
            ),
            Graph(
                "Oldest entry on the Redis queue",
                "How long the entry that came first has been there. Tens of milliseconds are "
                "normal, seconds a store that does not keep up. A line that climbs with the clock "
                "is a store that has stopped answering.",
                "s",
                [("max(millstream_queue_oldest_seconds{NODE})", "oldest")],
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
            Row("Is there room, and is a store in trouble?"),
            Graph(
                "Disks: what is used and what is left",
                "database: DuckDB's file with its log. spool: files that were sent and are not "
                "processed yet. left: room on the disk of either, which may be the same one. The "
                "alarm DiskWillFill fires when room at the pace of the last hour is used up within "
                "four.",
                "bytes",
                [
                    ("max(millstream_duckdb_file_bytes{NODE})", "database"),
                    ("sum(millstream_spool_bytes{NODE})", "spool"),
                    ("min by (what) (millstream_disk_free_bytes{NODE})", "left for {{what}}"),
                ],
            ),
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
                "Online values that are not the newest",
                "Keys of samples whose value in Redis is not DuckDB's newest; the store compares "
                "1,000 every five minutes (store.skew_every_s). behind or missing: an online write "
                "was lost. different or unreadable: something else writes there, or a defect. None "
                "is normal: `millstream features skew` names keys.",
                "short",
                [
                    (
                        "sum by (result) (increase(millstream_skew_keys_total{NODE, "
                        'result!~"equal|ahead"}[WINDOW]))',
                        "{{result}}",
                    )
                ],
                bars=True,
                stacked=True,
            ),
            Table(
                "Keys compared since the store started",
                "All keys of all samples, by how their online value stood to DuckDB's newest. equal "
                "and ahead are right: critical features go to Redis first. Empty or all zero: "
                "nothing was compared yet, or store.skew_every_s is 0.",
                "short",
                [("sum by (result) (millstream_skew_keys_total{NODE})", "")],
                names={"Value": "keys"},
            ),
        ],
    )
