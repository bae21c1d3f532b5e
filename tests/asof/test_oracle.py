"""The oracle against answers written by hand, against its own definition, and against pandas.

A judge that lets a defect pass is worth nothing, so the generated cases must tell each of the wrong
rules in `DEFECTS` from the right one.
"""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cases
import door
import pandas as pd
import pytest
from cases import DAY_US, Size
from oracle import (
    AS_KNOWN,
    EVENT_TIME,
    NOT_FOUND,
    OUTSIDE_MAX_AGE,
    PRESENT,
    Answer,
    BrokenHistory,
    History,
    Options,
    Question,
    Refused,
    Row,
    answer,
    choose,
)

TABLE = [
    case
    for file in sorted((Path(__file__).parent / "table").glob("*.json"))
    for case in json.loads(file.read_text())
]
#: The left column of the table of point-in-time.md.
LINES = {
    "event_timestamp = T",
    "equal event_timestamp",
    "exact duplicate by retry",
    "late row",
    "correction after T",
    "event_timestamp in the future beyond the tolerance",
    "age = ttl",
    "newest value NULL",
    "entity without history, or T before its first row",
    "unknown feature",
    "NULL entity or T in a question",
    "the same question twice",
    "several entity columns",
    "timestamps without a zone",
    "missing event_timestamp",
    "concurrent writers of one key",
    "rows still in the queue",
}
MODES = [
    (mode, strict, ttl_us)
    for mode in (AS_KNOWN, EVENT_TIME)
    for strict in (False, True)
    for ttl_us in (None, DAY_US)
]


def of_kind(kind: str) -> list:
    return [pytest.param(case, id=case["name"]) for case in TABLE if case["kind"] == kind]


def asked(case: dict) -> tuple[list[Row], list[Question], Options]:
    rows = [cases.row_from_json(row) for row in case["history"]]
    questions = [cases.question_from_json(question) for question in case["questions"]]
    return rows, questions, Options(tuple(case["features"]), **case.get("options", {}))


def test_every_line_of_the_table_has_a_case():
    assert {case["line"] for case in TABLE} == LINES
    assert len({case["name"] for case in TABLE}) == len(TABLE)
    assert {case["kind"] for case in TABLE} == {"asof", "refused", "online", "door"}


@pytest.mark.parametrize("case", of_kind("asof"))
def test_answers_written_by_hand(case: dict):
    rows, questions, options = asked(case)
    history = History(rows)
    answered = history.ask(questions, options)
    assert [list(each.cells) for each in answered] == [
        [Answer(**cell) for cell in cells] for cells in case["expected"]
    ]
    assert [each.question for each in answered] == questions
    assert len(history.rows) == case.get("stored_rows", len(rows))
    if "as_of_us" in case:
        assert [each.as_of_us for each in answered] == case["as_of_us"]
    for order in itertools.islice(itertools.permutations(rows), 24):
        assert History(order).ask(questions, options) == answered


@pytest.mark.parametrize("case", of_kind("refused"))
def test_refusals_written_by_hand(case: dict):
    rows, questions, options = asked(case)
    with pytest.raises(Refused) as refused:
        History(rows).ask(questions, options)
    assert (refused.value.what, refused.value.question) == (case["what"], case.get("question"))


@pytest.mark.parametrize("case", of_kind("online"))
def test_online_values_written_by_hand_in_every_order_of_arrival(case: dict):
    rows = [cases.row_from_json(row) for row in case["history"]]
    for order in itertools.permutations(rows):
        says = History(order).online(
            tuple(case["entity"]), case["features"], case["now_us"], case.get("ttl_us")
        )
        assert says == [Answer(**cell) for cell in case["expected"]]


@pytest.mark.parametrize("case", of_kind("door"))
def test_what_the_door_says_written_by_hand(case: dict):
    record = (case["raw"], case["record_us"], case["now_us"], case.get("naive_is_utc", False))
    if "dead_letter" in case:
        with pytest.raises(door.DeadLetter, match=f"^{case['dead_letter']}$"):
            door.admit(*record)
    else:
        assert door.admit(*record) == case["expected"]


def test_histories_that_no_store_can_hold_are_refused():
    row = Row(("u",), "f", 1.0, 100, 100, 110, 1, 0, 0)
    for broken in (
        replace(row, available_at_us=99),
        replace(row, value=float("nan")),
        replace(row, value=float("inf")),
        replace(row, entity=()),
        replace(row, entity=(1,)),
    ):
        with pytest.raises(BrokenHistory):
            History([broken])
    with pytest.raises(BrokenHistory):
        History([row, replace(row, value=2.0)])
    with pytest.raises(BrokenHistory):
        History([row, replace(row, entity=("u", "v"), pos=1)])


#: Few keys, many keys, one entity column and three.
SIZES = [
    Size(history=400, questions=60, hot_share=0.95),
    Size(history=700, questions=60, hot_share=0.0),
    Size(history=500, questions=60, entity_columns=3, features=2),
    Size(history=12, questions=30, features=1),
]


@pytest.mark.parametrize("seed", range(12))
def test_bisection_gives_what_the_definition_gives(seed: int):
    case = cases.make(seed, SIZES[seed % len(SIZES)])
    history = History(case.rows)
    for (mode, strict, ttl_us), watermark_us in itertools.product(MODES, (None, case.watermark_us)):
        options = Options(tuple(case.features), mode, ttl_us, strict, watermark_us)
        for each in history.ask(case.questions, options):
            entity, at_us = each.question.entity, each.question.at_us
            assert each.cells == tuple(
                answer(choose(case.rows, entity, feature, at_us, options), at_us, ttl_us)
                for feature in case.features
            )


def frames(case: cases.Case, feature: str) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """History of a feature in version order, and the questions; entity columns apart."""
    width = len(case.rows[0].entity)
    keys = [f"entity_{n}" for n in range(width)]
    of = sorted((row for row in case.rows if row.feature_name == feature), key=lambda r: r.version)
    history = pd.DataFrame([row.entity for row in of], columns=keys, dtype=object)
    history = history.assign(
        event_us=[row.event_timestamp_us for row in of],
        known_us=[row.available_at_us for row in of],
        rank=range(len(of)),
        row=of,
    )
    questions = pd.DataFrame([q.entity for q in case.questions], columns=keys, dtype=object)
    questions = questions.assign(
        at_us=[q.at_us for q in case.questions], n=range(len(case.questions))
    )
    return history, questions.sort_values("at_us", kind="stable"), keys


def cells_of(joined: pd.DataFrame, case: cases.Case) -> list[Answer]:
    """What a join has found, without a difference between "not found" and "too old"."""
    found = joined.sort_values("n")["row"]
    return [
        answer(row if isinstance(row, Row) else None, q.at_us, None)
        for row, q in zip(found, case.questions, strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("ttl_us", [None, DAY_US])
def test_pandas_merge_asof_agrees_by_event_time(seed: int, strict: bool, ttl_us: int | None):
    """Where both are defined: event time, no watermark, one feature at a time.

    pandas takes the last of equal keys, so its history must come in version order. A row beyond
    its tolerance it does not return, and does not tell from none: both are NOT_FOUND here.
    """
    case = cases.make(seed, replace(SIZES[seed], history=4_000, questions=800))
    options = Options(tuple(case.features), EVENT_TIME, ttl_us, strict)
    answered = History(case.rows).ask(case.questions, options)
    for n, feature in enumerate(case.features):
        history, questions, keys = frames(case, feature)
        joined = pd.merge_asof(
            questions,
            history,
            left_on="at_us",
            right_on="event_us",
            by=keys,
            allow_exact_matches=not strict,
            tolerance=ttl_us,
        )
        ours = [
            Answer(None, NOT_FOUND, None, None) if cell.status == OUTSIDE_MAX_AGE else cell
            for cell in (each.cells[n] for each in answered)
        ]
        assert cells_of(joined, case) == ours


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strict", [False, True])
def test_pandas_agrees_as_known_once_what_changed_nothing_is_left_out(seed: int, strict: bool):
    """The rule that the store's own statement uses: keep the rows whose version is greater than
    all that were available before, the last of each `available_at`, then join on `available_at`."""
    case = cases.make(seed, replace(SIZES[seed], history=4_000, questions=800))
    options = Options(tuple(case.features), AS_KNOWN, None, strict, case.watermark_us)
    answered = History(case.rows).ask(case.questions, options)
    for n, feature in enumerate(case.features):
        history, questions, keys = frames(case, feature)
        history = history.sort_values(["known_us", "rank"])
        history = history[history["rank"] == history.groupby(keys)["rank"].cummax()]
        history = history.drop_duplicates([*keys, "known_us"], keep="last")
        questions["bound_us"] = (questions["at_us"] - strict).clip(upper=case.watermark_us)
        joined = pd.merge_asof(
            questions.sort_values("bound_us", kind="stable"),
            history,
            left_on="bound_us",
            right_on="known_us",
            by=keys,
        )
        assert cells_of(joined, case) == [each.cells[n] for each in answered]


def rule(
    keep=lambda row, at, o: o.seen_at_us(row) <= o.bound_us(at), order=lambda row: row.version
):
    """A way to choose a row: which may be seen, and which of them is the greatest."""

    def chosen(rows, entity, feature, at_us, options):
        own = [row for row in rows if (row.entity, row.feature_name) == (entity, feature)]
        return max((row for row in own if keep(row, at_us, options)), key=order, default=None)

    return chosen


def joined_keys(rows, entity, feature, at_us, options):
    """Entity and feature put together with a separator."""
    flat = [
        replace(row, entity=("_".join((*row.entity, row.feature_name)),), feature_name="")
        for row in rows
    ]
    found = choose(flat, ("_".join((*entity, feature)),), "", at_us, options)
    return found and next(row for row in rows if row.place == found.place)


def older_row_instead(rows, entity, feature, at_us, options):
    """The greatest version that is young enough, and not NULL."""
    young = (row for row in rows if row.value is not None)
    return choose(young, entity, feature, at_us, options)


def folded(rows, entity, feature, at_us, options):
    """Blanks at the end and case ignored."""
    plain = [replace(row, entity=tuple(c.strip().lower() for c in row.entity)) for row in rows]
    found = choose(plain, tuple(c.strip().lower() for c in entity), feature, at_us, options)
    return found and next(row for row in rows if row.place == found.place)


DEFECTS = {
    "the last to arrive wins": rule(order=lambda r: (r.available_at_us, r.version)),
    "created_at is not looked at": rule(
        order=lambda r: (r.event_timestamp_us, r.source_no, r.pos, r.sub)
    ),
    "created_at before event_timestamp": rule(
        order=lambda r: (r.created_at_us, r.event_timestamp_us, *r.place)
    ),
    "the source is not looked at": rule(
        order=lambda r: (r.event_timestamp_us, r.created_at_us, r.pos, r.sub)
    ),
    "sources in the order of their text": rule(
        order=lambda r: (r.event_timestamp_us, r.created_at_us, str(r.source_no), r.pos, r.sub)
    ),
    "positions in the order of their text": rule(
        order=lambda r: (r.event_timestamp_us, r.created_at_us, r.source_no, str(r.pos), r.sub)
    ),
    "sub is not looked at": rule(
        order=lambda r: (r.event_timestamp_us, r.created_at_us, r.source_no, r.pos, -r.sub)
    ),
    "the first of equals wins": rule(
        order=lambda r: (r.event_timestamp_us, *(-n for n in r.version[1:]))
    ),
    "event time though as known": rule(
        keep=lambda row, at, o: row.event_timestamp_us <= o.bound_us(at)
    ),
    "what is at T is left out": rule(keep=lambda row, at, o: o.seen_at_us(row) < o.bound_us(at)),
    "what is just after T is seen": rule(
        keep=lambda row, at, o: o.seen_at_us(row) <= o.bound_us(at) + 1
    ),
    "the last commit is not looked at": rule(keep=lambda row, at, o: o.seen_at_us(row) <= at),
    "milliseconds": rule(
        keep=lambda row, at, o: o.seen_at_us(row) // 1000 <= o.bound_us(at) // 1000
    ),
    "times before 1970 are cut towards zero": rule(
        keep=lambda row, at, o: abs(o.seen_at_us(row)) <= abs(o.bound_us(at))
    ),
    "keys are put together": joined_keys,
    "entities are trimmed and folded": folded,
    "an older value instead of NULL": older_row_instead,
}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_cases_tell_a_wrong_rule_from_the_right_one(name: str):
    for seed in range(20):
        case = cases.make(seed, Size(history=1_500, questions=100, hot_share=0.9))
        options = Options(tuple(case.features), watermark_us=case.watermark_us)
        for each in History(case.rows).ask(case.questions, options):
            entity, at_us = each.question.entity, each.question.at_us
            for feature, cell in zip(case.features, each.cells, strict=True):
                chosen = DEFECTS[name](case.rows, entity, feature, at_us, options)
                if answer(chosen, at_us, None) != cell:
                    return
    pytest.fail(f"no case shows that {name}")


def test_a_case_has_everything_that_it_promises():
    case = cases.make(7, Size(history=20_000, questions=4_000))
    options = Options(tuple(case.features), ttl_us=DAY_US, watermark_us=case.watermark_us)
    answered = History(case.rows).ask(case.questions, options)
    statuses = Counter(cell.status for each in answered for cell in each.cells)
    assert set(statuses) == {PRESENT, "NULL_VALUE", NOT_FOUND, OUTSIDE_MAX_AGE}
    assert min(statuses.values()) > 200
    boundaries = Counter(cell.age_us for each in answered for cell in each.cells)
    assert boundaries[0] and boundaries[DAY_US] and boundaries[DAY_US + 1]
    asked_again = Counter((q.entity, q.at_us) for q in case.questions)
    assert max(asked_again.values()) > 1
    assert any(q.at_us > case.watermark_us for q in case.questions)
    assert any(row.available_at_us == case.watermark_us for row in case.rows)
    assert any(row.available_at_us > case.watermark_us for row in case.rows)
    assert any(row.event_timestamp_us < 0 < row.available_at_us for row in case.rows)
    by_tie = Counter((r.entity, r.feature_name, r.event_timestamp_us) for r in case.rows)
    by_equal = Counter((r.entity, r.feature_name, *r.version[:2]) for r in case.rows)
    assert max(by_tie.values()) > 1 and max(by_equal.values()) > 1
    assert any(row.sub > 0 for row in case.rows)


def test_what_is_written_is_what_is_read_and_a_seed_says_it_all(tmp_path: Path):
    size = Size(history=300, questions=50)
    case = cases.make(3, size)
    assert case == cases.make(3, size) and case != cases.make(4, size)
    cases.write_ndjson(tmp_path / "history.ndjson", map(cases.row_json, case.rows))
    lines = (tmp_path / "history.ndjson").read_text(encoding="utf-8").split("\n")
    assert [cases.row_from_json(json.loads(line)) for line in lines if line] == case.rows
    questions = [json.loads(json.dumps(cases.question_json(q))) for q in case.questions]
    assert [cases.question_from_json(q) for q in questions] == case.questions
