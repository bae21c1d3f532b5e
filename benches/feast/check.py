"""Whether a training set that was read over make_data.py's history is right: compares with the oracle.

Usage: check.py --dir DIR --answers OUT.parquet [--features 5] [--mode event-time|created]

For either side: the columns of `spine.parquet`, and `f0`, `f1`, …. `created` is as known with
`as_known = created_at` (Feast: `--created`). Prints one JSON object: `rows`, `wrong_rows`, `in_order`
(whether the questions came back in their order), `truth_wrong_rows` (of truth.py, which judges large sizes).
In plain Python, so for small sizes: a million values take about ten seconds. Exits 5 when a row is
wrong.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "asof"))
from oracle import AS_KNOWN, EVENT_TIME, History, Options, Question, Row
from truth import right_answers


def rows(wide: pl.DataFrame, names: list[str]) -> list[Row]:
    """The history, a row a feature value. An observation's number is its place."""
    made = []
    for pos, (entity, event_us, created_us, *values) in enumerate(wide.iter_rows()):
        known_us = max(event_us, created_us)
        for sub, (name, value) in enumerate(zip(names, values, strict=True)):
            made.append(Row((entity,), name, value, event_us, created_us, known_us, 1, pos, sub))
    return made


def main() -> int:
    """Compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--features", type=int, default=5)
    parser.add_argument("--mode", choices=("event-time", "created"), default="event-time")
    args = parser.parse_args()
    folder, names = args.dir / str(args.features), [f"f{n}" for n in range(args.features)]
    as_us = pl.selectors.datetime().dt.epoch("us")
    made = pl.read_parquet(folder / "wide.parquet")
    wide = made.with_columns(as_us)
    asked = ["entity_id", "event_timestamp", "label"]
    got = pl.read_parquet(args.answers).select(*asked, *names).with_columns(as_us)
    asking = pl.read_parquet(folder / "spine.parquet").head(got.height)
    spine = asking.with_columns(as_us)
    questions = [Question((entity,), at, {"label": label}) for entity, at, label in spine.rows()]
    mode = EVENT_TIME if args.mode == "event-time" else AS_KNOWN
    answered = History(rows(wide, names)).ask(questions, Options(tuple(names), mode))
    wanted = [
        (*question, *(cell.value for cell in each.cells))
        for question, each in zip(spine.rows(), answered, strict=True)
    ]
    missing = Counter(wanted) - Counter(got.rows())
    wrong_rows = list(missing.elements())
    truth = right_answers(made, asking, names, mode == AS_KNOWN)
    truth = truth.select(*asked, *names).with_columns(as_us)
    truth_wrong = (Counter(wanted) - Counter(truth.rows())).total()
    result = {
        "rows": got.height,
        "wrong_rows": len(wrong_rows),
        "in_order": got.select(asked).equals(spine.select(asked)),
        "truth_wrong_rows": truth_wrong,
        "first_wrong": wrong_rows[:1],
    }
    print(json.dumps(result))
    return 5 if wrong_rows or truth_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
