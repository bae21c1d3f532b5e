"""A stage that is slowed is the one that the panel Bottleneck names."""

import subprocess

import pytest
import yaml
from queries import board_queries, filled_in

BUSY = "millstream_stage_busy_seconds_total"
BLOCKED = "millstream_stage_blocked_seconds_total"
IDLE = "millstream_stage_idle_seconds_total"
# In the order of the flow.
STAGES = [
    "kafka_ingest", "file_upload", "batch_accumulator", "python_worker_supervisor", "redis_queue",
    "duckdb_writer",
]  # fmt: skip


def named(promtool, tmp_path, nodes: dict[str, dict[str, tuple[float, float]]], stage, share):
    """Has promtool ask the panel's query. Each stage of each node has a share of the time at work, and
    one blocked; stages that are not named are idle."""
    series = []
    for node, shares in nodes.items():
        for of in STAGES:
            work, blocked = shares.get(of, (0.0, 0.0))
            # The thread that polls has no batch in hand: its work is not left out of its idle time.
            idle = 1 - blocked - work
            for name, a_second in ((BUSY, work), (BLOCKED, blocked), (IDLE, idle)):
                labels = f'job="millstream", instance="{node}", stage="{of}"'
                values = f"0+{15 * a_second:.6f}x40"
                series.append({"series": f"{name}{{{labels}}}", "values": values})
    (query,) = [query for where, query in board_queries() if where == "overview.json: Bottleneck"]
    expected = [{"labels": f'{{stage="{stage}"}}', "value": share}]
    asked = {"expr": f"round({filled_in(query)}, 0.01)", "eval_time": "8m", "exp_samples": expected}
    test = {"interval": "15s", "input_series": series, "promql_expr_test": [asked]}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    command = [promtool, "test", "rules", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("slow", STAGES)
def test_the_slowed_stage_is_named_wherever_its_node_is(promtool, tmp_path, slow):
    at = STAGES.index(slow)
    shares = {stage: (0.2, 0.75) for stage in STAGES[:at]}
    shares |= {slow: (0.97, 0.0)} | {stage: (0.1, 0.0) for stage in STAGES[at + 1 :]}
    store = {stage: shares.pop(stage) for stage in ("duckdb_writer",)}
    nodes = {"process": shares, "store": store, "generate": {}}
    done = named(promtool, tmp_path, nodes, slow, 0.97)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_stage_is_named_while_little_flows(promtool, tmp_path):
    nodes = {"process": {"redis_queue": (0.02, 0.01), "kafka_ingest": (0.01, 0.0)}}
    done = named(promtool, tmp_path, nodes, "redis_queue", 0.02)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stage_that_only_waits_is_not_named(promtool, tmp_path):
    nodes = {"process": {"redis_queue": (0.05, 0.95), "duckdb_writer": (0.5, 0.0)}}
    done = named(promtool, tmp_path, nodes, "redis_queue", 0.05)
    assert done.returncode != 0 and "duckdb_writer" in done.stdout + done.stderr
