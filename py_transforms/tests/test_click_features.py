"""`click_features` in both styles: what each action yields, and that the two agree."""

import random
from datetime import UTC, datetime, timedelta, timezone

import click_features
import click_features_by_event
import pytest
from millstream.testing import run

SCHEMA = {
    "user_id": "int64",
    "action": "string",
    "timestamp": "timestamp",
    "page": "string",
    "duration_ms": "int64",
    "amount": "float64",
}
AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BOTH = pytest.mark.parametrize(
    "transform",
    [click_features.transform, click_features_by_event.transform],
    ids=["polars", "by_event"],
)


def event(action: str, **fields: object) -> dict:
    return {"user_id": 42, "action": action, "timestamp": AT, "page": "/", **fields}


def features(rows: list[dict]) -> list[tuple]:
    return [(row["_row"], row["feature_name"], row["value"]) for row in rows]


@BOTH
@pytest.mark.parametrize(
    ("action", "fields", "expected"),
    [
        ("view", {"duration_ms": 1500}, [("clicks_dwell_seconds", 1.5)]),
        ("view", {"duration_ms": 0}, [("clicks_dwell_seconds", 0.0)]),
        ("view", {"duration_ms": None}, [("clicks_dwell_seconds", None)]),
        ("click", {}, [("clicks_click", 1.0)]),
        ("add_to_cart", {"amount": 3.5}, [("clicks_add_to_cart", 1.0)]),
        ("purchase", {"amount": 9.99}, [("clicks_purchase", 1.0), ("purchase_amount", 9.99)]),
        ("purchase", {"amount": None}, [("clicks_purchase", 1.0), ("purchase_amount", None)]),
        ("scroll", {"duration_ms": 10}, []),
        ("unknown", {}, []),
        ("VIEW", {}, []),
        ("", {}, []),
    ],
)
def test_rows_of_an_action(transform, action, fields, expected):
    rows = run(transform, [event(action, **fields)], schema=SCHEMA)
    assert features(rows) == [(0, name, value) for name, value in expected]


@BOTH
def test_entity_is_the_user_as_text_and_time_the_event_s(transform):
    (row,) = run(transform, [event("click", user_id=9_007_199_254_740_993)], schema=SCHEMA)
    assert row["entity_id"] == "9007199254740993"
    assert row["event_timestamp"] == AT
    assert "created_at" not in row


@BOTH
def test_an_empty_batch_and_one_of_only_filtered_events(transform):
    assert run(transform, [], schema=SCHEMA) == []
    assert run(transform, [event("scroll"), event("scroll")], schema=SCHEMA) == []


@BOTH
def test_rows_stay_in_order_with_fan_out(transform):
    actions = ["purchase", "scroll", "view", "purchase", "click"]
    rows = run(transform, [event(action, amount=2.0) for action in actions], schema=SCHEMA)
    assert features(rows) == [
        (0, "clicks_purchase", 1.0),
        (0, "purchase_amount", 2.0),
        (2, "clicks_dwell_seconds", None),
        (3, "clicks_purchase", 1.0),
        (3, "purchase_amount", 2.0),
        (4, "clicks_click", 1.0),
    ]


@BOTH
def test_rows_keep_their_own_numbers(transform):
    rows = run(transform, [event("click", _row=5), event("view", _row=8)], schema=SCHEMA)
    assert [row["_row"] for row in rows] == [5, 8]


@BOTH
def test_times_are_instants_whatever_their_zone(transform):
    new_york = AT.astimezone(timezone(timedelta(hours=-5)))
    (row,) = run(transform, [event("click", timestamp=new_york)], schema=SCHEMA)
    assert row["event_timestamp"] == AT


@pytest.mark.parametrize("seed", range(5))
def test_both_styles_give_equal_rows(seed):
    rng = random.Random(seed)

    def maybe(value: object) -> object:
        return value if rng.random() < 0.8 else None

    actions = ["view", "click", "scroll", "add_to_cart", "purchase", "hover"]
    events = [
        event(
            rng.choice(actions),
            user_id=rng.randrange(-5, 2**62),
            timestamp=AT + timedelta(microseconds=rng.randrange(10**12)),
            page=maybe("/p"),
            duration_ms=maybe(rng.randrange(10**9)),
            amount=maybe(rng.uniform(-10, 1e6)),
        )
        for _ in range(2_000)
    ]
    batch = run(click_features.transform, events, schema=SCHEMA)
    assert batch == run(click_features_by_event.transform, events, schema=SCHEMA)
    yields = {"scroll": 0, "hover": 0, "purchase": 2}
    assert len(batch) == sum(yields.get(e["action"], 1) for e in events)
    assert [row["_row"] for row in batch] == sorted(row["_row"] for row in batch)


def test_values_do_not_depend_on_the_size_of_the_batch():
    events = [event("view", duration_ms=ms) for ms in range(0, 3_000_000, 997)]
    whole = run(click_features.transform, events, schema=SCHEMA)
    single = [run(click_features.transform, [one], schema=SCHEMA)[0] for one in events[:300]]
    assert [row["value"] for row in whole] == [e["duration_ms"] / 1000 for e in events]
    assert [row["value"] for row in whole[:300]] == [row["value"] for row in single]
