"""`validate_features`: one row out for each event, values untouched."""

from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import validate_features
from millstream.testing import run

SCHEMA = {
    "entity_id": "string",
    "feature_name": "string",
    "value": "float64",
    "validated_at": "timestamp",
    "created_at": "timestamp",
}
AT = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def event(**fields: object) -> dict:
    return {
        "entity_id": "user_1",
        "feature_name": "score",
        "value": 0.5,
        "validated_at": AT,
        "created_at": AT + timedelta(milliseconds=3),
        **fields,
    }


def test_passes_every_field_through():
    assert run(validate_features.transform, [event()], schema=SCHEMA) == [
        {
            "_row": 0,
            "entity_id": "user_1",
            "feature_name": "score",
            "value": 0.5,
            "event_timestamp": AT,
            "created_at": AT + timedelta(milliseconds=3),
        }
    ]


def test_keeps_null_value_and_null_created_at():
    (row,) = run(validate_features.transform, [event(value=None, created_at=None)], schema=SCHEMA)
    assert row["value"] is None
    assert row["created_at"] is None


def test_empty_batch_gives_an_empty_frame_with_all_columns():
    assert run(validate_features.transform, [], schema=SCHEMA) == []


def test_trims_names_but_not_entities():
    (row,) = run(
        validate_features.transform,
        [event(feature_name="  score\t", entity_id=" user 1 ")],
        schema=SCHEMA,
    )
    assert row["feature_name"] == "score"
    assert row["entity_id"] == " user 1 "


def test_one_row_for_each_event_in_order_with_any_row_numbers():
    numbers = [7, 3, 4_000_000_000, 0]
    events = [event(_row=number, value=float(number)) for number in numbers]
    rows = run(validate_features.transform, events, schema=SCHEMA)
    assert [row["_row"] for row in rows] == numbers
    assert [row["value"] for row in rows] == [float(number) for number in numbers]


def test_times_are_instants_whatever_their_zone():
    tokyo = AT.astimezone(timezone(timedelta(hours=9)))
    (row,) = run(validate_features.transform, [event(validated_at=tokyo)], schema=SCHEMA)
    assert row["event_timestamp"] == AT
    assert row["event_timestamp"].utcoffset() == timedelta(0)


def test_duplicates_are_not_its_business():
    assert len(run(validate_features.transform, [event()] * 3, schema=SCHEMA)) == 3


def test_row_number_keeps_its_type():
    batch = pl.DataFrame([event()]).with_row_index("_row")
    assert validate_features.transform(batch).schema["_row"] == pl.UInt32
