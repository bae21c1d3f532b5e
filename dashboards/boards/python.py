"""Python and scripts: is there a worker to be had, which script costs most, what did a swap do?"""

from boards import parts
from boards.parts import Graph, Row, Table, happened, quantile, quantiles

TRANSFORM = "millstream_transform_seconds"


def board() -> dict:
    return parts.board(
        uid="millstream-python",
        title="Python and scripts",
        says="Workers and permits, the cost of each script, its failures, and its versions.",
        items=[
            Row("Is there a worker to be had?"),
            Graph(
                "Workers and their cap",
                "Permits that each node holds, and the cap over all nodes (python.max_workers). "
                "At the cap all the time with batches waiting: raise the cap if there are cores, "
                "else make the slowest script faster. Zero when idle is right: workers leave "
                "after python.idle_stop_s.",
                "short",
                [
                    ("sum by (instance) (millstream_python_permits_in_use{NODE})", "{{instance}}"),
                    ("max(millstream_python_permits{NODE})", "cap"),
                ],
            ),
            Graph(
                "What waits for Python",
                "batches: read, and waiting for a worker. permits: lanes that asked for a worker "
                "and found the cap reached. Batches without permits: workers are slow, not "
                "missing. Both: the cap is the limit, or Redis gives no permits, as for one lease "
                "time after it lost its data.",
                "short",
                [
                    (
                        'sum(millstream_stage_queue_depth{NODE, stage="python_worker_supervisor"})',
                        "batches",
                    ),
                    (
                        'sum(millstream_stage_queue_depth{NODE, stage="worker_semaphore"})',
                        "permits",
                    ),
                ],
            ),
            Graph(
                "Waiting for a permit",
                "Of those that got one. Long waits while permits are free point to Redis. Those "
                "that still wait are in the panel above.",
                "s",
                quantiles("millstream_python_permit_wait_seconds"),
            ),
            Graph(
                "Starting a worker",
                "Process, interpreter and import of the script. Seconds here are a heavy import: "
                "the first batch after an idle time, a swap or a crash waits so long.",
                "s",
                quantiles("millstream_python_worker_start_seconds"),
            ),
            Graph(
                "Memory of the workers",
                "Resident memory of all the workers of a node, after their last batches. A saw is "
                "a leak that recycling cuts off (python.recycle_growth_mib); look for the script "
                "among those that are replaced with recycled_memory.",
                "bytes",
                [("sum by (instance) (millstream_python_worker_rss_bytes{NODE})", "{{instance}}")],
            ),
            Graph(
                "Workers replaced, by cause",
                "recycled_*: old age, harmless. exception and contract: a batch failed, and is "
                "tried in a fresh process. signal, exit, timeout, out_of_memory: the script "
                "crashes or hangs. The rows at fault become dead letters; the others land.",
                "short",
                [(happened("millstream_python_worker_restarts_total", "cause"), "{{cause}}")],
                bars=True,
                stacked=True,
            ),
            Row("Which script?"),
            Graph(
                "Workers that each script keeps busy",
                "The sum can be at most the cap. The largest share is the script that is worth "
                "making faster, or giving fewer rows.",
                "short",
                [(f"sum by (script) (rate({TRANSFORM}_sum{{NODE}}[WINDOW]))", "{{script}}")],
                stacked=True,
            ),
            Graph(
                "A batch in its script",
                "From handing a batch over to having its rows, with the start of a worker and all "
                "tries of a failing batch. A p99 far above p50 with failures below is a batch "
                "that was taken apart to find the bad rows.",
                "s",
                quantiles(TRANSFORM, by="script"),
            ),
            Graph(
                "Rows that scripts give",
                "Feature rows a second. A script that falls to zero while its topic flows filters "
                "all, or fails: see the dead letters of its stage and the table below.",
                "cps",
                [
                    (
                        "sum by (script) (rate(millstream_transform_rows_total{NODE}[WINDOW]))",
                        "{{script}}",
                    )
                ],
            ),
            Graph(
                "Time a row",
                "What a feature row costs in its script. Compare before and after a swap. A "
                "script in the one-event style costs more than one in the batch style.",
                "s",
                [
                    (
                        f"sum by (script) (rate({TRANSFORM}_sum{{NODE}}[WINDOW])) "
                        "/ (sum by (script) (rate(millstream_transform_rows_total{NODE}[WINDOW])) "
                        "> 0)",
                        "{{script}}",
                    )
                ],
            ),
            Graph(
                "Failures of scripts",
                "batch_failure: a batch failed and was tried again. import: a script does not "
                "load or is suspected, counted at every try while its stream waits. refused: a new "
                "version did not pass its trial. defect: a defect of Millstream, please report it. "
                "Which script it is says `millstream transforms list`.",
                "cps",
                [
                    (
                        "sum by (error_type) (rate(millstream_stage_errors_total{NODE, "
                        'stage="python_worker_supervisor"}[WINDOW]))',
                        "{{error_type}}",
                    )
                ],
            ),
            Graph(
                "Dead letters that scripts made",
                "exception, contract: the script raised or gave wrong columns. timeout, "
                "out_of_memory, worker_*: its process. rejected_by_script: it said so itself. The "
                "store counts them when they are committed. A jump at a swap mark: roll the script "
                "back, then `millstream dlq replay`.",
                "cps",
                [
                    (
                        'sum by (reason) (rate(millstream_dead_letters_total{NODE, stage="transform"}[WINDOW]))',
                        "{{reason}}",
                    )
                ],
                stacked=True,
            ),
            Row("Which version, and did its swap go well?"),
            Graph(
                "What happened to scripts",
                "deployed: a new version passed its trial and took over. refused: it did not "
                "load, or did worse than the running one on the last real batch; the old one goes "
                "on. rolled_back: an earlier version took over again, by itself because rows "
                "failed that did not fail before, or by an operator. The reasons are in DuckDB's "
                "table transform_history.",
                "short",
                [
                    (
                        happened("millstream_script_swaps_total", "script, result"),
                        "{{script}} {{result}}",
                    )
                ],
                bars=True,
                stacked=True,
            ),
            Graph(
                "From saving a file to its first batch",
                "The trial on the last real batch, the note in the store, and the wait for the "
                "next batch. A quiet stream waits for that batch, so high numbers there are no "
                "fault.",
                "s",
                [(quantile(0.99, "millstream_script_swap_seconds", "script"), "{{script}} p99")],
            ),
            Table(
                "Versions that run",
                "The first digits of each script's SHA-256. All process nodes should show the same "
                "version of a script. Two on one node: batches that were promised online under an "
                "earlier version ran under it once more, after a crash or a swap. The ledger says "
                "which version made which batch.",
                "short",
                [("max by (script, version, instance) (millstream_script_info{NODE} == 1)", "")],
                names={"Value": ""},
            ),
            Table(
                "Streams that wait",
                "1: the stream's events wait in Kafka. suspected: the script fails on too many "
                "rows; mend it, or say that the data is at fault with `millstream transforms "
                "resume STREAM --dead-letter`. paused: an operator holds it, and should know "
                "until when: mind the topic's retention.",
                "short",
                [
                    ("max by (stream) (millstream_script_suspected{NODE})", ""),
                    ("max by (stream) (millstream_script_paused{NODE})", ""),
                ],
                names={"Value #A": "suspected", "Value #B": "paused"},
            ),
        ],
    )
