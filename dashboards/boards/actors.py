"""Actors and chaos: who lives, who fell, how fast it came back, and what it cost."""

from boards import parts
from boards.overview import DURABLE
from boards.parts import (
    ORANGE,
    RED,
    WIDTH,
    YELLOW,
    Graph,
    Row,
    Stat,
    States,
    Table,
    happened,
    quantile,
    quantiles,
)

RESTARTS = "millstream_actor_restarts_total"
RECOVERY = "millstream_actor_recovery_seconds"
FAULTS = "millstream_chaos_kills_total"


def board() -> dict:
    return parts.board(
        uid="millstream-actors",
        title="Actors and chaos",
        says="Who lives, who fell and why, how fast it came back, and whether data noticed.",
        items=[
            Row("Who lives?"),
            Stat(
                "Actors down",
                "Actors that have no living instance at this moment. One for an instant is a "
                "restart. One for longer: its factory fails, or the node is stopping; look at its "
                "log.",
                "short",
                [("sum(1 - millstream_actor_up{NODE})", "actors")],
                steps=[(1, RED)],
                height=6,
            ),
            Stat(
                "Shortest uptime",
                "The youngest node. A node that is younger than it should be was restarted, by "
                "you, by its supervisor, or because an actor failed 11 times in 60 s.",
                "s",
                [("min(time() - process_start_time_seconds{NODE})", "uptime")],
                height=6,
            ),
            Stat(
                "Recovery, p99",
                "From the end of an instance to the moment that the next one is linked. The first "
                "restart is immediate, later ones back off from 20 ms; seconds mean that one fails "
                "again and again.",
                "s",
                [(quantile(0.99, RECOVERY), "p99")],
                steps=[(0.1, YELLOW), (1, RED)],
                decimals=3,
                height=6,
            ),
            Table(
                "Restarts since the nodes started",
                "killed: on purpose, as by a chaos run. panicked, failed: on purpose where Faults on "
                "request shows as many, else a defect; the log has the message. finished: the actor "
                "ended by itself, also a defect. The number is exact, also for one single restart.",
                "short",
                [(f"sum by (actor, cause) ({RESTARTS}{{NODE}}) > 0", "")],
                names={"Value": "restarts"},
                height=6,
            ),
            States(
                "Actors by node",
                "One line an actor and node. A red stripe is a restart, and normal in a chaos "
                "run; a line that stays red needs a look. An actor that is missing everywhere "
                "means that no node plays its role.",
                "short",
                [
                    (
                        "min by (instance, actor) (millstream_actor_up{NODE})",
                        "{{actor}} {{instance}}",
                    )
                ],
                height=9,
            ),
            States(
                "What is ready, by node",
                "As /readyz says, looked at every two seconds. redis: it answers, and holds what "
                "it must. actors: each has a living instance. kafka: every partition of the node "
                "is read, so it is red for a moment after a start or a rebalance. Red for longer: "
                "`curl` the node's /readyz, it says why.",
                "short",
                [
                    (
                        "min by (instance, component) (millstream_ready{NODE})",
                        "{{component}} {{instance}}",
                    )
                ],
                one="ready",
                zero="not ready",
                height=6,
            ),
            Row("Who fell, and why?"),
            Graph(
                "Restarts by actor and cause",
                "The same actor panicking again and again: the 11th failure within 60 s stops the "
                "node, so read its log now. Kills spread over all actors are a chaos run.",
                "short",
                [(happened(RESTARTS, "actor, cause"), "{{actor}} {{cause}}")],
                bars=True,
                stacked=True,
            ),
            Graph(
                "Faults on request",
                "What somebody asked for with `millstream kill`, the page or a chaos run; a node does it "
                "only where chaos.allow is true. Restarts of the same actor at the same moment are "
                "these; restarts without one are the actor's own. Nobody knows of it: the node's log "
                "has the address that asked.",
                "short",
                [(happened(FAULTS, "actor, kind"), "{{actor}} {{kind}}")],
                bars=True,
                stacked=True,
            ),
            Graph(
                "Recovery by actor",
                "How long each actor was away. It covers the back-off and the building of the next "
                "instance until messages reach it, not the reading again of what the last one had in "
                "hand. A p99 far above the p50 is one that backs off.",
                "s",
                quantiles(RECOVERY, "actor"),
                width=WIDTH,
            ),
            Row("Did data notice?"),
            Graph(
                "Durable events while things fall",
                "A dip at a restart mark that fills up at once is as it should be: the batches in "
                "hand are read again. A dip that stays means that something did not come back.",
                "cps",
                [(DURABLE, "durable")],
            ),
            Graph(
                "Durable after, p99",
                "The price of a restart in latency. Within a second of a kill events are durable "
                "again; longer stretches point to Redis, the broker or the store.",
                "s",
                [(quantile(0.99, "millstream_end_to_end_seconds", where='path="durable"'), "p99")],
                steps=[(1, ORANGE)],
            ),
            Graph(
                "Batches that came back",
                "Batches whose next actor was gone. Their sources are read again from DuckDB's "
                "position, so they are neither lost nor doubled. Without kills or restarts there "
                "should be none.",
                "short",
                [
                    (
                        happened(
                            "millstream_stage_errors_total", "stage", 'error_type="abandoned"'
                        ),
                        "{{stage}}",
                    )
                ],
                bars=True,
                stacked=True,
            ),
            Graph(
                "Writes that the ledger did not apply",
                "Exactly-once at work; none of these changed data. duplicate: sent again after a "
                "crash. fenced: an old owner woke up. gap and overlap: sent across a restart, "
                "read again. A steady stream without restarts is a defect: run `millstream "
                "verify`.",
                "short",
                # All answers start at 0, so the first rejection counts, and none is a line at 0.
                [
                    (
                        "sum by (answer) (increase(millstream_ledger_rejects_total{NODE}[WINDOW]))",
                        "{{answer}}",
                    )
                ],
                bars=True,
                stacked=True,
            ),
            Row("Are the nodes' processes well?"),
            Graph(
                "Memory of the nodes",
                "Resident memory of the node's process, without its Python workers. Flat under "
                "load and under back-pressure; DuckDB takes up to store.memory_limit_mib. A slope "
                "over hours is a leak.",
                "bytes",
                [("process_resident_memory_bytes{NODE}", "{{instance}}")],
            ),
            Graph(
                "Processor time of the nodes",
                "Cores that the node's process uses, without its Python workers. All cores busy "
                "with lag growing: the machine is too small, or share the work with another "
                "process node.",
                "short",
                [("rate(process_cpu_seconds_total{NODE}[WINDOW])", "{{instance}}")],
            ),
        ],
    )
