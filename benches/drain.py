"""Lets a node drain a topic that was filled before, and measures it from outside.

Usage: drain.py --millstream BIN --config FILE --events N --dir DIR [--scrape]

Starts `millstream run --roles process,store` (its own redis-server and Python workers come with
it), waits until N events are committed in DuckDB, verifies, stops it. Prints one JSON object:
`events`, `rows`, `seconds` (from the start of the process to the last commit), `flow_seconds` (from
the first commit seen to the last), `events_per_s` (over `flow_seconds`), `cpu_s` (user and system
of the node, its Redis and its workers, verification included), `peak_rss_mb` (greatest sum of
their resident memory, sampled), `ok` (the audit).
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from node import address, resident_mb

DEADLINE_S = 300.0
SAMPLE_S = 0.02


def get(url: str) -> dict:
    """The JSON that the node answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def scrape(url: str) -> None:
    """Asks for the metrics, as Prometheus does; a node that keeps none says so."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise


def main() -> int:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millstream", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--scrape", action="store_true", help="its metrics, every second")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    log = args.dir / "node.log"
    started = time.monotonic()
    with log.open("w") as out:
        command = [args.millstream, "run", "--roles", "process,store", "--config", args.config]
        command += [
            "--data-dir",
            args.dir / "data",
            "--http",
            "127.0.0.1:0",
            "--grpc",
            "127.0.0.1:0",
        ]
        node = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        url = address(node, log)
        first, peak, totals, next_memory, next_scrape = None, 0.0, {"events": 0}, 0.0, 0.0
        while totals["events"] < args.events:
            if node.poll() is not None or time.monotonic() - started > DEADLINE_S:
                raise RuntimeError(f"only {totals} landed:\n{log.read_text()}")
            totals = get(f"{url}/api/status")["totals"]
            now = time.monotonic()
            if first is None and totals["events"] > 0:
                first = (now, totals["events"])
            if now >= next_memory:
                peak, next_memory = max(peak, resident_mb(node.pid)), now + 0.25
            if args.scrape and now >= next_scrape:
                scrape(url)
                next_scrape = now + 1.0
            time.sleep(SAMPLE_S)
        last = time.monotonic()
        verify = [
            args.millstream,
            "verify",
            "--json",
            "--full",
            "--http",
            url.removeprefix("http://"),
        ]
        verdict = json.loads(subprocess.run(verify, capture_output=True, text=True).stdout)
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    flow = last - first[0]
    result = {
        "events": totals["events"],
        "rows": totals["rows"],
        "seconds": round(last - started, 2),
        "flow_seconds": round(flow, 2),
        "events_per_s": round((totals["events"] - first[1]) / flow),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_mb": round(peak),
        "ok": verdict["ok"] and totals["events"] == args.events,
    }
    print(json.dumps(result))
    return 0 if result["ok"] else 5


if __name__ == "__main__":
    sys.exit(main())
