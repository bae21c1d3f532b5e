"""AS OF reads of a running node, for reads.py: how long they take, in how much memory, and whether they are right.

A training set is asked for twice: by the command (`command_s`: reading the spine, asking, writing the
answer, all of the process), and by a POST of the spine as an Arrow IPC stream (`node_s`: from the first byte
sent to the last received, of which `first_byte_s` until the answer begins). Small ones are asked for
several times, and the median counts. Memory is the greatest resident memory while it was asked for, of the
node's process and of its Redis; `base_mb` is the node's before. `cpu_s` is the node's own part in the
POST, without that of Redis and of the workers.
"""

import http.client
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from node import Node, family

sys.path.insert(0, str(Path(__file__).parent / "feast"))
from truth import compare, right_answers

#: Up to this many questions are asked for several times.
SMALL, TIMES = 10_000, 5
TIMEOUT_S = 900
MODES = ("event-time", "as-known")


def watched(node: Node) -> dict[str, int]:
    """The processes whose memory is told."""
    found = {"node": node.process.pid}
    for pid in family(node.process.pid):
        if Path(f"/proc/{pid}/comm").read_text().startswith("redis-server"):
            found["redis"] = pid
    return found


def memory_mb(pid: int, what: str) -> float:
    """`VmHWM` or `VmRSS` of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {what} of process {pid}")


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def by_command(node: Node, spine: Path, names: list[str], mode: str, out: Path) -> dict:
    """`millstream features asof`."""
    command = [node.program, "features", "asof", "--spine", spine, "--features", ",".join(names)]
    command += ["--mode", mode, "-o", out, "--http", node.http]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"features asof: {done.stdout}{done.stderr}")
    return {"command_s": seconds}


def by_post(node: Node, spine: bytes, names: list[str], mode: str, out: Path) -> dict:
    """`POST /get-historical-features`."""
    connection = http.client.HTTPConnection(node.http, timeout=TIMEOUT_S)
    connection.connect()
    cpu, started = cpu_s(node.process.pid), time.perf_counter()
    path = f"/get-historical-features?features={','.join(names)}&mode={mode}"
    connection.request("POST", path, spine, {"Content-Type": "application/vnd.apache.arrow.stream"})
    answer = connection.getresponse()
    first = time.perf_counter() - started
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {answer.read(2000)!r}")
    pieces = []
    while piece := answer.read(1 << 20):
        pieces.append(piece)
    told = {
        "node_s": time.perf_counter() - started,
        "first_byte_s": first,
        "cpu_s": cpu_s(node.process.pid) - cpu,
    }
    connection.close()
    out.write_bytes(b"".join(pieces))
    return told


def median(ask: Callable[[], dict], times: int) -> dict:
    """Asks so many times: the median of each number."""
    told = [ask() for _ in range(times)]
    return {name: round(statistics.median(t[name] for t in told), 3) for name in told[0]}


def read(file: Path) -> pl.DataFrame:
    """An answer. Arrow's own reader fails on a stream that has no end."""
    with pa.OSFile(str(file)) as source:
        return pl.from_arrow(pa.ipc.open_stream(source).read_all())


def measure(node: Node, data: Path, folder: Path, mode: str, questions: int) -> dict:
    """A training set of the first questions of make_data.py's folder.

    Args:
        node: Has the history.
        data: Folder with `spine.parquet` and `wide.parquet`.
        folder: For the spine and the answers.
        mode: One of `MODES`.
        questions: How many.
    """
    table = pa.parquet.read_table(data / "spine.parquet").slice(0, questions)
    if table.num_rows < questions:
        raise RuntimeError(f"{data} has only {table.num_rows} questions")
    spine = folder / f"spine-{questions}.parquet"
    pa.parquet.write_table(table, spine)
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    names = [name for name in pa.parquet.read_schema(data / "wide.parquet").names if name[0] == "f"]
    out = {how: folder / f"{mode}-{questions}-{how}.arrow" for how in ("command", "post")}

    processes = watched(node)
    base = memory_mb(processes["node"], "VmRSS")
    for pid in processes.values():
        # The greatest memory is counted anew.
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    times = TIMES if questions <= SMALL else 1
    body = buffer.getvalue()
    told = median(lambda: by_post(node, body, names, mode, out["post"]), times)
    told |= median(lambda: by_command(node, spine, names, mode, out["command"]), times)
    peaks = {f"{name}_peak_mb": memory_mb(pid, "VmHWM") for name, pid in processes.items()}

    answers = {how: read(file) for how, file in out.items()}
    right = right_answers(
        pl.read_parquet(data / "wide.parquet"), pl.from_arrow(table), names, mode == "as-known"
    )
    checked = compare(answers["post"], right)
    return {
        "mode": mode,
        "questions": questions,
        **told,
        "base_mb": round(base),
        **{name: round(peak) for name, peak in peaks.items()},
        "answer_mb": round(out["post"].stat().st_size / 1e6, 1),
        **checked,
        "same_by_command": answers["command"].equals(answers["post"]),
    }


def of_feast(file: Path, data: Path, mode: str) -> dict:
    """Whether a training set that Feast has read is right."""
    got = pl.read_parquet(file)
    names = [name for name in pl.read_parquet_schema(data / "wide.parquet") if name[0] == "f"]
    spine = pl.read_parquet(data / "spine.parquet").head(got.height)
    right = right_answers(pl.read_parquet(data / "wide.parquet"), spine, names, mode == "as-known")
    return compare(got, right)
