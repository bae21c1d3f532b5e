"""Makes the history that Feast and Millstream are both asked about, from a seed.

Usage: make_data.py --out DIR [--features 5] [--rows 10000000] [--entities 100000] [--questions 100000]

Everything follows from one source of observations: at an instant, all features of one entity. Written
into DIR/<features>/:

* `long.parquet`: Millstream's layout, a row a feature value, in the order of arrival (`created_at`), ready
  for `millstream upload --stream features`: `entity_id, feature_name, value, validated_at, created_at`.
* `wide.parquet`: Feast's layout, a row an observation: `entity_id, event_timestamp, created_at, f0, f1, …`.
* `spine.parquet`: the questions: `entity_id, event_timestamp, label`.
* `meta.json`: what was made.

ROWS counts the rows of the long layout: there are ROWS / features observations. Of these 5 % are late
(made up to two days after their event; the others up to two seconds), 1 % have the event timestamp of
the observation of the same entity before them, with another `created_at`. 1 % of the values are NULL.
No two observations of an entity share event timestamp and `created_at`, so that both sides know
one right answer. Times are UTC microseconds over 90 days. Questions fall into the whole of it and past
its end; every hundredth is of an entity without history.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl

#: 2026-01-01T00:00:00Z.
START_US = 1_767_225_600_000_000
SPAN_US = 90 * 86_400 * 1_000_000
LATE_US = 2 * 86_400 * 1_000_000
LATE, TIED, NULL = 0.05, 0.01, 0.01


def instants(name: str, us: np.ndarray) -> pl.Series:
    """Microseconds as UTC timestamps."""
    return pl.Series(name, us).cast(pl.Datetime("us", "UTC"))


def names(numbers: np.ndarray) -> pl.Series:
    """Entities by their numbers."""
    return pl.select(
        entity_id=pl.lit("user-") + pl.Series(numbers).cast(pl.String),
    ).to_series()


def observations(draw: np.random.Generator, args: argparse.Namespace) -> pl.DataFrame:
    """The wide layout in the order of arrival."""
    rows = args.rows // args.features
    entity = draw.integers(0, args.entities, rows)
    # Distinct instants: one a step of the span, anywhere in the step.
    step = SPAN_US // rows
    event = START_US + np.arange(rows) * step + draw.integers(0, max(1, step - 2), rows)
    late = draw.random(rows) < LATE
    delay = np.where(late, draw.integers(0, LATE_US, rows), draw.integers(0, 2_000_000, rows))
    # The one before it of the same entity, where there is one.
    order = np.lexsort((event, entity))
    has_before = np.flatnonzero(entity[order][1:] == entity[order][:-1]) + 1
    # Not two in a row: the tie is with an instant that stays.
    odd = has_before % 2 == 1
    tied = has_before[odd & (draw.random(len(has_before)) < 2 * TIED)]
    created = event + delay
    event[order[tied]] = event[order[tied - 1]]
    # A correction is made after what it corrects.
    created[order[tied]] = np.maximum(created[order[tied]], created[order[tied - 1]] + 1)
    arrival = np.argsort(created, kind="stable")
    frame = pl.DataFrame(
        [
            names(entity[arrival]),
            instants("event_timestamp", event[arrival]),
            instants("created_at", created[arrival]),
        ]
    )
    values = []
    for n in range(args.features):
        value = draw.integers(0, 1 << 40, rows) / 8
        value[draw.random(rows) < NULL] = np.nan
        values.append(pl.Series(f"f{n}", value).fill_nan(None))
    return frame.with_columns(values)


def long(wide: pl.DataFrame, features: int) -> pl.DataFrame:
    """The long layout: all features of an observation one after the other."""
    columns = [f"f{n}" for n in range(features)]
    observation = np.repeat(np.arange(wide.height), features)
    value = wide.select(columns).to_numpy().ravel()
    return wide.select("entity_id", "event_timestamp", "created_at")[observation].select(
        "entity_id",
        pl.Series("feature_name", columns)[np.tile(np.arange(features), wide.height)],
        pl.Series("value", value).fill_nan(None),
        pl.col("event_timestamp").alias("validated_at"),
        "created_at",
    )


def spine(draw: np.random.Generator, args: argparse.Namespace) -> pl.DataFrame:
    """The questions, in no order."""
    entity = draw.integers(0, args.entities, args.questions)
    strangers = np.arange(args.questions) % 100 == 99
    entity[strangers] += args.entities
    at = START_US + draw.integers(0, SPAN_US + 86_400_000_000, args.questions)
    label = pl.Series("label", draw.integers(0, 2, args.questions))
    return pl.DataFrame([names(entity), instants("event_timestamp", at), label])


def main() -> int:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--features", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    out = args.out / str(args.features)
    out.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(args.seed)
    wide = observations(draw, args)
    wide.write_parquet(out / "wide.parquet")
    long(wide, args.features).write_parquet(out / "long.parquet")
    spine(draw, args).write_parquet(out / "spine.parquet")
    ties = wide.height - wide.n_unique(["entity_id", "event_timestamp"])
    late = (pl.col("created_at") - pl.col("event_timestamp") > pl.duration(seconds=2)).sum()
    nulls = sum(wide[f"f{n}"].null_count() for n in range(args.features))
    meta = {
        **{k: v for k, v in vars(args).items() if k != "out"},
        "observations": wide.height,
        "late": wide.select(late).item(),
        "tied": ties,
        "null_values": nulls,
        "wide_mb": round((out / "wide.parquet").stat().st_size / 1e6, 1),
        "long_mb": round((out / "long.parquet").stat().st_size / 1e6, 1),
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    print(json.dumps(meta))
    return 0


if __name__ == "__main__":
    sys.exit(main())
