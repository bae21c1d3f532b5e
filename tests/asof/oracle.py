"""What an AS OF read must answer, in plain Python: the judge of the Rust implementation.

It shares nothing with the store: no DuckDB, no data frame, only the standard library. It answers the
same question twice over, and its tests hold the two against each other:

* `choose` is the definition. It looks at every row and keeps the greatest version that may be seen.
* `History` gives the same answer by bisection, fast enough for 100,000 questions.

All times are integers: microseconds since 1970-01-01T00:00:00Z, negative before it.

Rules, and what was decided where `point-in-time.md` leaves room
================================================================

Version order
    `(event_timestamp, created_at, source_no, pos, sub)`, compared as integers, the greatest wins.

What a question at T may see
    *as known* (the default): the rows with `available_at <= T`; of these the greatest version, which
    need not be the one that arrived last. *event time*: the rows with `event_timestamp <= T`,
    whenever they arrived. `available_at` is never before `event_timestamp`, so a question as known
    never sees an event of the future either; a history that breaks this is refused.

Strict
    Makes the same comparison exclusive: `available_at < T` as known, `event_timestamp < T` by event
    time. As known this excludes more than an event at T itself: a row that became available at T too.

Watermark W (the stamp of the last commit)
    A question later than W sees what one at W sees: the bound is `min(T, W)`. W itself is never
    excluded by `strict` for a question after it. Each answer says `as_of_us`, which is `min(T, W)`.

Age
    `T - event_timestamp` of the chosen row, in both modes: the age of the fact, not of its arrival.
    T is the instant that was asked about, also when it lies after W: a value that is too old now must
    not look fresh because nothing was committed since. It is also what the online store says at T.

Maximum age (ttl)
    `age <= ttl` is valid. Beyond it the answer is NULL, `OUTSIDE_MAX_AGE`, with the timestamp and age
    of the row that was too old; never an older row, which would be older still. It is looked at before
    the value: a NULL that is too old is `OUTSIDE_MAX_AGE`. No limit is None. Zero and less are refused,
    because others take 0 for "no limit".

NULL
    A newest value that is NULL is the answer, `NULL_VALUE`, with its timestamp and age.

Not found
    No row may be seen: `NOT_FOUND`, without timestamp and age. The question's row is kept.

Entities
    A tuple of strings, one a column, compared column by column. They are bytes: no case folding,
    no trimming, no Unicode normalization. The empty string is a value.

Refused as a whole, naming the question: an entity column or a T that is missing, an entity with another
number of columns. An unknown feature, too: one that no row of the history has, of any entity at any
time. (A feature that starts after T is known, and `NOT_FOUND`.)

Duplicates
    Rows with the same place `(source_no, pos, sub)` are one row, counted once; with different content
    the history is broken and refused. The same event at another place is another row, and wins or
    loses by its place.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

AS_KNOWN = "as-known"
EVENT_TIME = "event-time"

PRESENT = "PRESENT"
NULL_VALUE = "NULL_VALUE"
NOT_FOUND = "NOT_FOUND"
OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"

Entity = tuple[str, ...]
Value = float | str | None
Version = tuple[int, int, int, int, int]


class Refused(ValueError):
    """A request that must be an error. `what` is one of the words below, for comparison.

    `unknown_feature`, `missing_entity`, `missing_time`, `entity_columns`, `bad_options`.
    """

    def __init__(self, what: str, message: str, question: int | None = None) -> None:
        """`question` is the number of the question at fault, from 0."""
        super().__init__(message)
        self.what = what
        self.question = question


class BrokenHistory(ValueError):
    """Rows that the store can never hold."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `features_table`."""

    entity: Entity
    feature_name: str
    value: Value
    event_timestamp_us: int
    created_at_us: int
    available_at_us: int
    source_no: int
    pos: int
    sub: int

    @property
    def version(self) -> Version:
        """Its place in the version order."""
        return (
            self.event_timestamp_us,
            self.created_at_us,
            self.source_no,
            self.pos,
            self.sub,
        )

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it came from; no two rows share it."""
        return (self.source_no, self.pos, self.sub)


@dataclass(frozen=True, slots=True)
class Question:
    """A row of the spine. `extra` is carried through untouched."""

    entity: tuple[str | None, ...]
    at_us: int | None
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Options:
    """How all questions of a request are to be answered."""

    features: tuple[str, ...]
    mode: str = AS_KNOWN
    ttl_us: int | None = None
    strict: bool = False
    watermark_us: int | None = None

    def as_of_us(self, at_us: int) -> int:
        """The instant as of which a question at `at_us` is answered."""
        return at_us if self.watermark_us is None else min(at_us, self.watermark_us)

    def bound_us(self, at_us: int) -> int:
        """The last instant that a question at `at_us` may see, inclusive."""
        return self.as_of_us(at_us - 1 if self.strict else at_us)

    def seen_at_us(self, row: Row) -> int:
        """The instant from which a row may be seen."""
        return row.available_at_us if self.mode == AS_KNOWN else row.event_timestamp_us


@dataclass(frozen=True, slots=True)
class Answer:
    """One cell: a question and a feature."""

    value: Value
    status: str
    event_timestamp_us: int | None
    age_us: int | None


MISSING = Answer(None, NOT_FOUND, None, None)


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its answers, in the order of the features asked for."""

    question: Question
    as_of_us: int
    cells: tuple[Answer, ...]


def answer(row: Row | None, at_us: int, ttl_us: int | None) -> Answer:
    """What a question at `at_us` is told of the row that was chosen for it."""
    if row is None:
        return MISSING
    age_us = at_us - row.event_timestamp_us
    if ttl_us is not None and age_us > ttl_us:
        return Answer(None, OUTSIDE_MAX_AGE, row.event_timestamp_us, age_us)
    status = NULL_VALUE if row.value is None else PRESENT
    return Answer(row.value, status, row.event_timestamp_us, age_us)


def choose(
    rows: Iterable[Row], entity: Entity, feature_name: str, at_us: int, options: Options
) -> Row | None:
    """The definition: the greatest version among the rows that a question at `at_us` may see."""
    chosen = None
    for row in rows:
        if row.entity != entity or row.feature_name != feature_name:
            continue
        if options.seen_at_us(row) > options.bound_us(at_us):
            continue
        if chosen is None or row.version > chosen.version:
            chosen = row
    return chosen


class History:
    """Rows of the store, ready for questions. `rows` are as stored: duplicates by place removed."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Checks the rows and orders them.

        Raises:
            BrokenHistory: The store cannot hold such rows.
        """
        by_place: dict[tuple[int, int, int], Row] = {}
        for row in rows:
            check_row(row)
            known = by_place.setdefault(row.place, row)
            if known != row:
                raise BrokenHistory(f"two rows at {row.place}: {known} and {row}")
        self.rows = list(by_place.values())
        self.features = {row.feature_name for row in self.rows}
        self.entity_columns = {len(row.entity) for row in self.rows}
        if len(self.entity_columns) > 1:
            raise BrokenHistory(f"entities of {sorted(self.entity_columns)} columns in one history")
        by_key: dict[tuple[Entity, str], list[Row]] = defaultdict(list)
        for row in self.rows:
            by_key[row.entity, row.feature_name].append(row)
        # A key is a tuple of a tuple and a string: its parts are compared one by one.
        self._by_event_time = {key: ordered_by_event_time(of) for key, of in by_key.items()}
        self._as_known = {key: improvements(of) for key, of in by_key.items()}

    def ask(self, questions: Sequence[Question], options: Options) -> list[Answered]:
        """Answers all questions, in their order, or none.

        Raises:
            Refused: A question or the options are not sound.
        """
        self.check(questions, options)
        ordered = self._as_known if options.mode == AS_KNOWN else self._by_event_time
        answered = []
        for question in questions:
            bound_us = options.bound_us(question.at_us)
            cells = []
            for feature_name in options.features:
                times, rows = ordered.get((question.entity, feature_name), ((), ()))
                seen = bisect_right(times, bound_us)
                chosen = rows[seen - 1] if seen else None
                cells.append(answer(chosen, question.at_us, options.ttl_us))
            answered.append(Answered(question, options.as_of_us(question.at_us), tuple(cells)))
        return answered

    def online(
        self, entity: Entity, features: Sequence[str], now_us: int, ttl_us: int | None
    ) -> list[Answer]:
        """What the online store says at `now_us`: the newest of all rows, its age checked at read.

        A value whose event lies ahead of now (within the tolerance of the door) has a negative age.
        """
        found = (self._by_event_time.get((entity, f), ((), ()))[1] for f in features)
        return [answer(rows[-1] if rows else None, now_us, ttl_us) for rows in found]

    def check(self, questions: Sequence[Question], options: Options) -> None:
        """Raises `Refused` unless all of the request can be answered."""
        if options.mode not in (AS_KNOWN, EVENT_TIME):
            raise Refused("bad_options", f"no such mode: {options.mode}")
        if options.ttl_us is not None and options.ttl_us <= 0:
            raise Refused("bad_options", "the maximum age must be positive; leave it out for none")
        for feature_name in options.features:
            if feature_name not in self.features:
                raise Refused("unknown_feature", f"unknown feature {feature_name!r}")
        for number, question in enumerate(questions):
            if any(column is None for column in question.entity):
                raise Refused("missing_entity", f"question {number} has no entity", number)
            if question.at_us is None:
                raise Refused("missing_time", f"question {number} has no time", number)
            if self.entity_columns and len(question.entity) not in self.entity_columns:
                wrong = f"question {number} has {len(question.entity)} entity columns"
                raise Refused("entity_columns", wrong, number)


def ordered_by_event_time(rows: Iterable[Row]) -> tuple[list[int], list[Row]]:
    """Rows in version order with their event timestamps, which never go down in it.

    The last one at or before an instant is therefore the greatest version up to that instant.
    """
    ordered = sorted(rows, key=lambda row: row.version)
    return [row.event_timestamp_us for row in ordered], ordered


def improvements(rows: Iterable[Row]) -> tuple[list[int], list[Row]]:
    """Rows in the order in which they became available, without those that changed no answer.

    A row is kept when its version is greater than all that were available before it, so the last
    one at or before an instant is the greatest version that was available then. Among rows that
    became available together only the greatest matters; it comes last.
    """
    times: list[int] = []
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.available_at_us, row.version)):
        if not kept or row.version > kept[-1].version:
            times.append(row.available_at_us)
            kept.append(row)
    return times, kept


def check_row(row: Row) -> None:
    """Raises `BrokenHistory` for a row that the store cannot hold."""
    if not row.entity or any(not isinstance(column, str) for column in row.entity):
        raise BrokenHistory(f"an entity is strings: {row}")
    if row.available_at_us < row.event_timestamp_us:
        raise BrokenHistory(f"available before it was true: {row}")
    if isinstance(row.value, float) and not math.isfinite(row.value):
        raise BrokenHistory(f"not a number: {row}")
