"""Compares what landed in Millstream with what the file of flights says must land.

Usage: check.py FILE.parquet --http ADDRESS [--millstream BINARY] [--json]

What must land is counted here from the file, flight by flight, without the transform. What
landed is asked of the node with `millstream query --json`. Exits 0 when all is equal, 1 when
the node cannot be asked, 5 on any difference.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

EXIT_DIFFERENT = 5

EVENTS_SQL = """
SELECT CAST(sum(n_in) AS BIGINT) AS events, CAST(sum(n_kept) AS BIGINT) AS kept,
       CAST(sum(n_dead) AS BIGINT) AS dead, CAST(sum(n_filtered) AS BIGINT) AS filtered,
       CAST(sum(n_rows) AS BIGINT) AS rows
FROM ingest_ledger
"""
DEAD_SQL = "SELECT reason, count(*) AS n FROM dead_letters GROUP BY reason"
FEATURES_SQL = """
SELECT feature_name, count(*) AS rows, count(DISTINCT entity_id) AS entities,
       CAST(sum(value) AS BIGINT) AS total,
       epoch_us(min(event_timestamp)) AS first_us, epoch_us(max(event_timestamp)) AS last_us
FROM features_table GROUP BY feature_name
"""


@dataclass
class Feature:
    """What is counted of the rows of one feature."""

    rows: int = 0
    total: int = 0
    entities: set[str] = field(default_factory=set)
    first: datetime = datetime.max.replace(tzinfo=UTC)
    last: datetime = datetime.min.replace(tzinfo=UTC)

    def add(self, entity: str, value: int, at: datetime) -> None:
        """Counts one row."""
        self.rows += 1
        self.total += value
        self.entities.add(entity)
        self.first = min(self.first, at)
        self.last = max(self.last, at)


def expected(path: Path) -> dict[str, int]:
    """Everything that must be found, by name, counted flight by flight."""
    events: Counter[str] = Counter()
    features: dict[str, Feature] = {}
    columns = ["tailnum", "carrier", "scheduled_at", "arrived_at", "dep_delay", "arr_delay"]
    table = pl.read_parquet(path, columns=columns).select(columns)
    for tailnum, carrier, scheduled_at, arrived_at, dep_delay, arr_delay in table.iter_rows():
        events["events"] += 1
        if tailnum is None:
            events["dead"] += 1
            continue
        events["kept"] += 1
        if dep_delay is None:
            found = [("cancelled", 1, scheduled_at)]
        else:
            departed_at = scheduled_at + timedelta(minutes=dep_delay)
            found = [("cancelled", 0, departed_at), ("dep_delay_minutes", dep_delay, departed_at)]
        if arr_delay is not None:
            found.append(("arr_delay_minutes", arr_delay, arrived_at))
        for name, value, at in found:
            features.setdefault(name, Feature()).add(tailnum, value, at)
            features.setdefault(f"carrier_{name}", Feature()).add(f"carrier:{carrier}", value, at)
    numbers = {f"events.{name}": events[name] for name in ("events", "kept", "dead", "filtered")}
    numbers["events.rows"] = sum(feature.rows for feature in features.values())
    numbers["dead.missing_entity"] = events["dead"]
    for name, feature in sorted(features.items()):
        numbers[f"{name}.rows"] = feature.rows
        numbers[f"{name}.entities"] = len(feature.entities)
        numbers[f"{name}.total"] = feature.total
        numbers[f"{name}.first_us"] = epoch_us(feature.first)
        numbers[f"{name}.last_us"] = epoch_us(feature.last)
    return numbers


def epoch_us(at: datetime) -> int:
    """Microseconds since 1970-01-01 UTC."""
    return round(at.timestamp()) * 1_000_000 + at.microsecond


def landed(ask: Callable[[str], list[dict[str, Any]]]) -> dict[str, int]:
    """The same numbers as the node has them; `ask` answers a SELECT with its rows."""
    numbers: dict[str, int] = {}
    for name, value in ask(EVENTS_SQL)[0].items():
        numbers[f"events.{name}"] = int(value or 0)
    for row in ask(DEAD_SQL):
        numbers[f"dead.{row['reason']}"] = int(row["n"])
    for row in ask(FEATURES_SQL):
        feature = row.pop("feature_name")
        for name, value in row.items():
            numbers[f"{feature}.{name}"] = int(value)
    return numbers


def ask_node(binary: str, http: str) -> Callable[[str], list[dict[str, Any]]]:
    """A function that asks the running node one SELECT."""

    def ask(sql: str) -> list[dict[str, Any]]:
        command = [binary, "query", "--http", http, "--json", " ".join(sql.split())]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise SystemExit(f"`millstream query` failed with exit code {done.returncode}")
        answer = json.loads(done.stdout)
        return answer["rows"] if isinstance(answer, dict) else answer

    return ask


def main() -> None:
    """Compares, prints a table (or JSON), and exits 5 on any difference."""
    parser = argparse.ArgumentParser(description="Compare what landed with the file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--http", required=True, help="the node's HTTP address")
    parser.add_argument("--millstream", default="millstream", help="the binary")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()

    want = expected(options.file)
    have = landed(ask_node(options.millstream, options.http))
    names = list(dict.fromkeys([*want, *have]))
    different = [name for name in names if want.get(name, 0) != have.get(name, 0)]
    if options.json:
        print(json.dumps({"ok": not different, "expected": want, "landed": have}))
    else:
        print(f"{'':<36}{'in the file':>22}{'landed':>22}")
        for name in names:
            mark = "   DIFFERENT" if name in different else ""
            print(f"{name:<36}{want.get(name, 0):>22,}{have.get(name, 0):>22,}{mark}")
        verdict = f"{len(different)} differ" if different else "every flight is accounted for"
        print(f"\n{verdict}: {len(names)} numbers compared")
    sys.exit(EXIT_DIFFERENT if different else 0)


if __name__ == "__main__":
    main()
