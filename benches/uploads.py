"""Files of events: how fast they are taken in, and what that does to live events.

Usage: uploads.py --millstream BIN --config FILE --dir DIR [--rows N] [--beside-mib M] [--rate R]

1. A Parquet file of N rows is uploaded to a node with the roles process and store, and waited for:
   `rows_per_s` from the start of the command to the last commit, `accepted_s` until the receipt,
   `peak_rss_mb` of the node, its Redis, its workers and the check together. Once with no critical
   feature (`parquet`), and once, with a tenth of the rows, where every feature is critical: then
   nearly each row is a write to Redis as well (`parquet_online`).
2. A node makes up R events a second for itself; then a file of M MiB of NDJSON is uploaded beside
   them: p50 and p99 of the live events from their timestamp to readable online and to durable, before
   and while the file is taken in (estimated within histogram buckets).

With MILLSTREAM__KAFKA__BROKERS the live events go through that broker, else through an embedded one,
which is for trying things out and becomes slow by itself.

Prints one JSON object.
"""

import argparse
import json
import os
import re
import sys
import time
import urllib.request
from pathlib import Path

import polars as pl

from node import Node, configured

CALM_S = 20.0


def table(rows: int, first: int) -> pl.DataFrame:
    """Sound events of the stream `features`."""
    number = pl.int_range(first, first + rows)
    names = ["clicks_1d", "clicks_7d", "spend_30d", "sessions_30d", "fraud_score"]
    at = pl.lit(1_760_000_000_000_000) + number * 1_000
    return pl.select(
        entity_id=pl.lit("user-") + (number * 7919 % 100_000).cast(pl.String),
        feature_name=(number % len(names)).replace_strict(dict(enumerate(names))),
        value=number / 8,
        validated_at=at.cast(pl.Datetime("us", "UTC")),
        created_at=(at + 500_000).cast(pl.Datetime("us", "UTC")),
    )


def node(args: argparse.Namespace, name: str, roles: str, env_rate: float, critical: str) -> Node:
    """A node with these critical features, that makes up so many events a second."""
    environment = {
        "MILLSTREAM__GENERATOR__RATE": str(env_rate),
        "MILLSTREAM__GENERATOR__UPLOAD_EVERY_S": "0",
        # What others have put into the topic is not read.
        "MILLSTREAM__KAFKA__START": "latest",
        "MILLSTREAM__KAFKA__GROUP": f"uploads-{name}",
        **os.environ,
    }
    config = configured(args.config, critical)
    return Node(args.millstream, args.dir / name, config, roles, environment)


def buckets(node: Node) -> dict[str, dict[float, float]]:
    """Cumulative counts of end-to-end latency, by path and upper bound."""
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[float, float]] = {"online": {}, "durable": {}}
    pattern = r"millstream_end_to_end_seconds_bucket\{(.*)\} (\S+)"
    for labels, count in re.findall(pattern, text):
        path, bound = (re.search(rf'{k}="([^"]+)"', labels)[1] for k in ("path", "le"))
        found[path][float(bound)] = float(count)
    return found


def quantile(before: dict[float, float], after: dict[float, float], q: float) -> float | None:
    """A quantile in seconds of what came between two readings."""
    bounds = sorted(after)
    counts = [after[b] - before.get(b, 0.0) for b in bounds]
    if not counts or counts[-1] == 0:
        return None
    wanted, low = q * counts[-1], 0.0
    for i, bound in enumerate(bounds):
        if counts[i] >= wanted:
            if bound == float("inf"):
                return bounds[i - 1]
            below = counts[i - 1] if i else 0.0
            return low + (bound - low) * (wanted - below) / (counts[i] - below)
        low = bound
    return None


def upload(node: Node, file: Path) -> dict:
    """`millstream upload`, waited for: its receipt and how long it took."""
    started = time.monotonic()
    sent = node.upload(file, wait=False)
    accepted = time.monotonic() - started
    receipt = node.upload(file)
    if sent["upload_id"] != receipt["upload_id"]:
        raise RuntimeError("the same file became two uploads")
    return {**receipt, "accepted_s": accepted, "seconds": time.monotonic() - started}


def main() -> int:
    """Runs both measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millstream", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--beside-mib", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=2_000.0)
    args = parser.parse_args()
    args.dir.mkdir(parents=True)
    result: dict = {"ok": True}

    for name, rows, critical in (
        ("parquet", args.rows, "[]"),
        ("parquet_online", args.rows // 10, '["*"]'),
    ):
        file = args.dir / "rows.parquet"
        table(rows, 0).write_parquet(file)
        with node(args, name, "process,store", 0, critical) as running:
            done = upload(running, file)
            result[name] = {
                "rows": rows,
                "mib": round(file.stat().st_size / 2**20),
                "accepted_s": round(done["accepted_s"], 1),
                "seconds": round(done["seconds"], 1),
                "rows_per_s": round(rows / done["seconds"]),
                "peak_rss_mb": round(running.peak),
            }
            result["ok"] &= done["rows"] == rows and running.verify()["ok"]
        file.unlink()

    file = args.dir / "rows.ndjson"
    with file.open("wb") as out:
        first, piece = 0, 200_000
        while out.tell() < args.beside_mib << 20:
            table(piece, first).with_columns(
                pl.col("validated_at", "created_at").dt.to_string("%Y-%m-%dT%H:%M:%S%.6fZ")
            ).write_ndjson(out)
            first += piece
    with node(args, "beside", "generate,process,store", args.rate, '["*"]') as running:
        time.sleep(5)
        start = buckets(running)
        time.sleep(CALM_S)
        calm = buckets(running)
        done = upload(running, file)
        busy = buckets(running)
        result["beside"] = {
            "mib": round(file.stat().st_size / 2**20),
            "rows": first,
            "seconds": round(done["seconds"], 1),
            "rows_per_s": round(first / done["seconds"]),
            "peak_rss_mb": round(running.peak),
        }
        for path in ("online", "durable"):
            for name, q in (("p50", 0.5), ("p99", 0.99)):
                for when, before, after in (("before", start, calm), ("while", calm, busy)):
                    value = quantile(before[path], after[path], q)
                    key = f"{path}_{name}_ms_{when}"
                    result["beside"][key] = None if value is None else round(1000 * value)
        result["ok"] &= done["rows"] == first
    print(json.dumps(result, indent=2))
    return 0 if result["ok"] else 5


if __name__ == "__main__":
    sys.exit(main())
