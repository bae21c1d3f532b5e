"""Random histories and questions with the answers of the oracle, made from a seed.

Usage: cases.py --seed N --history ROWS --questions N --out DIR [--help]

Writes into DIR, one JSON object a line:

* `history.ndjson`: the rows of `features_table`, in the order of arrival. `entity` is a list of the
  entity columns; times are integers, microseconds since 1970.
* `spine.ndjson`: the questions: `entity`, `at_us`, `extra` (columns that must come back untouched).
* `expected.ndjson`: a line a question, in their order: `as_of_us`, and the lists `values`, `statuses`,
  `event_timestamps_us`, `ages_us` with an element a feature, in the order of `meta.json`.
* `meta.json`: the seed, the features, the options, which files of answers there are.

With `--all` there are files of answers for every mode, strict or not, with and without a maximum age.

What is in it: late rows, tied event timestamps, equal `created_at`, ties that only source, position or
sub decide, corrections, events that their producer sent twice, NULLs, values too old, events ahead of the
clock, rows of one transaction, a file that counts from `created_at`, times around and before 1970, few
keys with long and many with short history, entities that collide when their parts are put together or
their case, form or blanks are ignored; questions a microsecond beside every kind of boundary, questions
after the last commit, of unknown entities, and the same ones again.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from oracle import AS_KNOWN, EVENT_TIME, Answered, Entity, History, Options, Question, Row, Value

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
DAY_US = 24 * HOUR_US
#: 2026-01-01T00:00:00Z, when the live rows begin to arrive.
LIVE_US = 1_767_225_600 * SECOND_US
TOLERANCE_US = 300 * SECOND_US

#: Beside these there are as many plain ones as are asked for.
FEATURES = ("score", "c", "b_c", "clicks_7d", "quo\"te 'ünï' 特徴")
#: Parts whose concatenations collide, and strings that some normalization makes equal.
PARTS = (
    *("", "a", "b", "ab", "a_b", "b_c", "a,b", "a|b", "a:b", "a\x1fb", "a\x00b", ",", "|", "_", "null", "NULL"),
    *("caf\u00e9", "cafe\u0301", "A", "a ", " a", "\ta", "\u00df", "ss", "\u0130", "i\u0307", "0", "00", "0.0"),
    *('"', "'", "\\", "\\\\", "';--", '["a","b"]', "\U0001f600", "\u200b", "\ufeff", "x" * 300),
)  # fmt: skip
VALUES = (0.0, -0.0, 0.1, -1.5, 5e-324, 1.7976931348623157e308, 2.0**53 + 2, 1e-9)
#: Source numbers of which the text order is not the order.
SOURCES = (1, 2, 9, 10, 11)
FILE_SOURCE = 12


@dataclass(frozen=True, slots=True)
class Size:
    """How much to make."""

    history: int
    questions: int
    features: int = len(FEATURES)
    entity_columns: int = 1
    #: Of the rows, how many belong to few keys with a long history.
    hot_share: float = 0.5
    ttl_us: int = DAY_US


class Maker:
    """Makes one case; everything follows from the seed and the size."""

    def __init__(self, seed: int, size: Size) -> None:
        """Draws the keys."""
        self.random = Random(seed)
        self.size = size
        self.features = [
            FEATURES[n] if n < len(FEATURES) else f"f{n}" for n in range(size.features)
        ]
        self.hot = self.entities(6)
        self.cold = self.entities(max(4, size.history // 12))
        self.next_pos = dict.fromkeys((*SOURCES, FILE_SOURCE), 0)
        #: The last row of each key that was made, for ties, corrections and repetitions.
        self.last: dict[tuple[Entity, str], Row] = {}
        #: The stamp of the last commit.
        self.watermark_us = LIVE_US

    def entities(self, number: int) -> list[Entity]:
        """Different entities, the first of them hostile."""
        made: dict[Entity, None] = {}
        while len(made) < number:
            hostile = len(made) < 60 and self.random.random() < 0.7
            plain = f"user-{len(made)}"
            draw = self.random.choice
            columns = [
                draw(PARTS) if hostile or column else plain
                for column in range(self.size.entity_columns)
            ]
            made.setdefault(tuple(columns) if hostile else (plain, *columns[1:]))
        return list(made)

    def key(self) -> tuple[Entity, str]:
        """An entity and a feature."""
        hot = self.random.random() < self.size.hot_share
        entity = self.random.choice(self.hot if hot else self.cold)
        return entity, self.random.choice(self.features)

    def value(self) -> Value:
        """Mostly an exact fraction, so that a wrong row shows as a wrong value."""
        draw = self.random.random()
        if draw < 0.05:
            return None
        return self.random.choice(VALUES) if draw < 0.07 else self.random.randrange(1 << 40) / 8

    def history(self) -> Iterator[Row]:
        """All rows in the order of arrival."""
        # A first row for each feature, so that none is unknown.
        firsts = [(self.random.choice(self.hot), feature) for feature in self.features]
        from_file, last = self.size.history // 8, 3
        stamp_us, left = LIVE_US, self.size.history - from_file - last
        while left > 0:
            stamp_us += 1 + int(self.random.expovariate(1) * self.random.choice((1, 1e3, 1e6, 3e7)))
            for _ in range(min(left, self.random.choice((1, 1, 2, 5, 40)))):
                yield self.live_row(firsts.pop() if firsts else self.key(), stamp_us)
                left -= 1
        for _ in range(from_file):
            yield self.file_row(self.key())
        # The last commit comes after the file, and one of its rows is ahead of it.
        self.watermark_us = max(stamp_us, LIVE_US + HOUR_US) + 1
        for beside_us in (0, -1, SECOND_US):
            event_us, source_no = self.watermark_us + beside_us, self.random.choice(SOURCES)
            known_us = max(event_us, self.watermark_us)
            yield self.row(self.key(), self.value(), event_us, event_us, known_us, source_no)

    def live_row(self, key: tuple[Entity, str], stamp_us: int) -> Row:
        """A row of the transaction with that stamp."""
        draw, last = self.random.random(), self.last.get(key)
        value, source_no = self.value(), self.random.choice(SOURCES)
        if draw < 0.25 and last is not None and last.event_timestamp_us <= stamp_us + TOLERANCE_US:
            # The same event again: repeated, corrected, or made in the same instant by another.
            event_us = last.event_timestamp_us
            later_us = self.random.choice((0, 0, 0, 1, SECOND_US))
            created_us = last.created_at_us + later_us
            value = last.value if draw < 0.03 else value
        else:
            if draw < 0.35:
                event_us = stamp_us - self.random.randrange(3 * DAY_US)
            elif draw < 0.38:
                event_us = stamp_us + self.random.randrange(1, TOLERANCE_US + 1)
            elif draw < 0.42:
                event_us = stamp_us - self.random.randrange(2)
            else:
                event_us = stamp_us - self.random.randrange(5 * SECOND_US)
            created_us = event_us + self.random.choice((0, 1, -1, 1000, 2 * SECOND_US))
        return self.row(key, value, event_us, created_us, max(event_us, stamp_us), source_no)

    def file_row(self, key: tuple[Entity, str]) -> Row:
        """A row of a file that says `as_known = created_at`, of the years around 1970 or of today."""
        draw = self.random.random()
        if draw < 0.5:
            event_us = self.random.randrange(-2 * HOUR_US, 2 * HOUR_US)
        elif draw < 0.6:
            event_us = self.random.randrange(-3, 4)
        elif draw < 0.65:
            event_us = -2_208_988_800 * SECOND_US + self.random.randrange(DAY_US)
        else:
            event_us = LIVE_US - self.random.randrange(2 * DAY_US)
        created_us = event_us + self.random.choice((0, 1, -1, SECOND_US, HOUR_US))
        known_us = max(event_us, created_us)
        return self.row(key, self.value(), event_us, created_us, known_us, FILE_SOURCE)

    def row(
        self,
        key: tuple[Entity, str],
        value: Value,
        event_us: int,
        created_us: int,
        available_us: int,
        source_no: int,
    ) -> Row:
        """Puts the row at the next place of its source: a new record, or the next of the last one."""
        last = self.last.get(key)
        same_record = (
            last is not None
            and (last.source_no, last.pos) == (source_no, self.next_pos[source_no] - 1)
            and last.available_at_us == available_us
        )
        if same_record:
            pos, sub = last.pos, last.sub + 1
        else:
            pos, sub = self.next_pos[source_no], 0
            self.next_pos[source_no] += 1
        made = Row(*key, value, event_us, created_us, available_us, source_no, pos, sub)
        self.last[key] = made
        return made

    def questions(self, rows: list[Row]) -> list[Question]:
        """The spine, in no order."""
        asked: list[Question] = []
        for number in range(self.size.questions):
            draw = self.random.random()
            extra = {"n": number, "label": self.random.randrange(2)}
            if draw < 0.1 and asked:
                again = self.random.choice(asked)
                same = again.extra if draw < 0.03 else {**again.extra, "again": True}
                asked.append(Question(again.entity, again.at_us, same))
                continue
            row = self.random.choice(rows)
            entity, at_us = row.entity, self.time_near(row)
            if draw < 0.15:
                entity = self.stranger(entity)
            elif draw < 0.25:
                entity = self.random.choice(self.hot + self.cold[:64])
            asked.append(Question(entity, at_us, extra))
        return asked

    def time_near(self, row: Row) -> int:
        """An instant at or beside something that matters."""
        beside = self.random.choice((-1, 0, 0, 1))
        kind = self.random.randrange(12)
        if kind < 3:
            return row.event_timestamp_us + beside
        if kind < 6:
            return row.available_at_us + beside
        if kind < 8:
            return row.event_timestamp_us + self.size.ttl_us + beside
        if kind == 8:
            return row.created_at_us + beside
        if kind == 9:
            return self.watermark_us + self.random.choice((-1, 0, 1, HOUR_US, 400 * DAY_US))
        if kind == 10:
            return self.random.randrange(LIVE_US - DAY_US, self.watermark_us + HOUR_US)
        return self.random.choice((-3 * HOUR_US, -1, 0, 1, LIVE_US - 3 * DAY_US))

    def stranger(self, entity: Entity) -> Entity:
        """Nobody, or someone who looks like another."""
        draw = self.random.choice
        changed = [
            draw((part + " ", part.upper(), part[:-1], part + "\x1f", "nobody")) for part in entity
        ]
        return tuple(changed)


@dataclass(frozen=True, slots=True)
class Case:
    """A history with its questions."""

    rows: list[Row]
    questions: list[Question]
    features: list[str]
    watermark_us: int


def make(seed: int, size: Size) -> Case:
    """The case of a seed."""
    maker = Maker(seed, size)
    rows = list(maker.history())
    return Case(rows, maker.questions(rows), maker.features, maker.watermark_us)


def row_json(row: Row) -> dict:
    """A row of `history.ndjson`."""
    return {name: getattr(row, name) for name in Row.__slots__}


def row_from_json(of: dict) -> Row:
    """Reads what `row_json` gave."""
    return Row(**{**of, "entity": tuple(of["entity"])})


def question_json(question: Question) -> dict:
    """A row of `spine.ndjson`."""
    return {"entity": question.entity, "at_us": question.at_us, "extra": question.extra}


def question_from_json(of: dict) -> Question:
    """Reads what `question_json` gave; `extra` may be missing."""
    return Question(tuple(of["entity"]), of["at_us"], of.get("extra", {}))


def expected_json(answered: Answered) -> dict:
    """A row of `expected.ndjson`."""
    cells = answered.cells
    return {
        "as_of_us": answered.as_of_us,
        "values": [cell.value for cell in cells],
        "statuses": [cell.status for cell in cells],
        "event_timestamps_us": [cell.event_timestamp_us for cell in cells],
        "ages_us": [cell.age_us for cell in cells],
    }


def write_ndjson(path: Path, objects: Iterable[dict]) -> None:
    """One JSON object a line; text as it is, in UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for each in objects:
            out.write(json.dumps(each, ensure_ascii=False, allow_nan=False) + "\n")


def variants(options: Options, ttl_us: int) -> dict[str, Options]:
    """All combinations, by the name of their file."""
    made = {}
    for mode in (AS_KNOWN, EVENT_TIME):
        for strict in (False, True):
            for ttl in (None, ttl_us):
                name = f"expected-{mode}{'-strict' if strict else ''}{'-ttl' if ttl else ''}.ndjson"
                made[name] = Options(options.features, mode, ttl, strict, options.watermark_us)
    return made


def main() -> int:
    """Writes a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--history", type=int, default=10_000, metavar="ROWS")
    parser.add_argument("--questions", type=int, default=1_000)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--features", type=int, default=len(FEATURES))
    parser.add_argument("--entity-columns", type=int, default=1)
    parser.add_argument(
        "--hot-share", type=float, default=0.5, help="rows of keys with much history"
    )
    parser.add_argument("--mode", choices=(AS_KNOWN, EVENT_TIME), default=AS_KNOWN)
    parser.add_argument("--strict", action="store_true", help="what is at T itself does not count")
    parser.add_argument("--ttl-us", type=int, help="maximum age in microseconds (default: none)")
    parser.add_argument(
        "--all", action="store_true", help="answers for all combinations of options"
    )
    args = parser.parse_args()
    ttl_us = args.ttl_us or DAY_US
    size = Size(
        args.history, args.questions, args.features, args.entity_columns, args.hot_share, ttl_us
    )
    case = make(args.seed, size)
    options = Options(tuple(case.features), args.mode, args.ttl_us, args.strict, case.watermark_us)
    asked = {"expected.ndjson": options}
    if args.all:
        asked |= variants(options, ttl_us)
    args.out.mkdir(parents=True, exist_ok=True)
    write_ndjson(args.out / "history.ndjson", map(row_json, case.rows))
    write_ndjson(args.out / "spine.ndjson", map(question_json, case.questions))
    history = History(case.rows)
    for name, each in asked.items():
        write_ndjson(args.out / name, map(expected_json, history.ask(case.questions, each)))
    meta = {
        "seed": args.seed,
        "features": case.features,
        "entity_columns": args.entity_columns,
        "watermark_us": case.watermark_us,
        "expected": {
            name: {"mode": each.mode, "strict": each.strict, "ttl_us": each.ttl_us}
            for name, each in asked.items()
        },
    }
    (args.out / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
