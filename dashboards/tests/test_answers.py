"""Every query gets an answer from a real Prometheus that holds what nodes export.

The series are made up from the catalogue: three nodes of one cluster, one for each role, two
hours. It shows what parsing cannot: joins that match nothing or too much, labels that one side
lacks, a division whose sides never meet.
"""

import itertools
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from catalogue import metrics, stages
from queries import board_queries, filled_in, named_ids

STEP = 15
NODES = ["process:7070", "store:7070", "generate:7070"]
VALUES = {
    "stage": [*stages(), "decode", "transform"],
    "error_type": ["abandoned", "commit", "import"],
    "cause": ["killed", "panicked"],
    "path": ["online", "durable"],
    "actor": ["kafka_ingest", "duckdb_writer"],
    "result": ["deployed", "refused", "accepted", "equal", "behind"],
    "alertstate": ["firing"],
    "component": ["redis"],
    "what": ["database", "spool"],
}  # fmt: skip


def made_up(now: int) -> str:
    """Two hours of all metrics as OpenMetrics: counters grow, gauges stay at 1."""
    moments = [now - back for back in range(7200, -1, -STEP)]
    lines = []

    def series(name: str, labels: dict[str, str], slope: int) -> None:
        text = ",".join(f'{key}="{value}"' for key, value in labels.items())
        for number, moment in enumerate(moments):
            lines.append(f"{name}{{{text}}} {number * slope or 1} {moment}")

    for name, metric in metrics().items():
        labels = sorted(metric.labels)
        choices = [VALUES.get(label, ["x"]) for label in labels]
        for node, *values in itertools.product(NODES, *choices):
            of = {"job": "millstream", "instance": node} | dict(zip(labels, values, strict=True))
            if metric.kind == "histogram":
                # As many observations in each bucket; none above the last bound.
                bounds = metric.buckets
                for rank, bound in enumerate([*bounds, "+Inf"], 1):
                    in_bucket = min(rank, len(bounds))
                    series(f"{name}_bucket", of | {"le": bound}, in_bucket)
                series(f"{name}_sum", of, 1)
                series(f"{name}_count", of, len(bounds))
            elif metric.kind == "counter":
                series(name, of, 1)
            else:
                series(name, of, 0)
    return "\n".join([*lines, "# EOF", ""])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def ask(promtool, prometheus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prometheus")
    # On a full step, so that the last samples are at the moment that is asked for.
    now = int(time.time()) // STEP * STEP
    text = folder / "metrics.txt"
    text.write_text(made_up(now))
    data = folder / "data"
    subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", text, data],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    config = folder / "prometheus.yml"
    config.write_text("{}")
    port = free_port()
    command = [
        prometheus, f"--config.file={config}", f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)

        def asked(query: str) -> list:
            parameters = urllib.parse.urlencode({"query": query, "time": now})
            url = f"http://127.0.0.1:{port}/api/v1/query?{parameters}"
            try:
                with urllib.request.urlopen(url, timeout=30) as answer:
                    return json.load(answer)["data"]["result"]
            except urllib.error.HTTPError as error:
                pytest.fail(error.read().decode())

        yield asked
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.parametrize("where,query", board_queries(), ids=named_ids(board_queries()))
def test_a_query_is_answered(ask, where, query):
    answer = ask(filled_in(query))
    assert answer, where
    for series in answer:
        assert series["value"][1] != "NaN", where


def test_the_bottleneck_is_one_stage_by_name(ask):
    (query,) = [query for where, query in board_queries() if where == "overview.json: Bottleneck"]
    (answer,) = ask(filled_in(query))
    assert answer["metric"].keys() == {"stage"}


def test_a_query_that_matches_nothing_is_seen(ask):
    assert ask('millstream_actor_up{job="millstream", actor="nobody"}') == []
