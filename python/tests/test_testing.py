"""`millstream.testing.run`: every style runs, and every breach of the contract is found."""

import math
from datetime import UTC, datetime, timedelta

import millstream
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from millstream import Context
from millstream.testing import ContractError, run

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SCHEMA = {"id": "int64", "x": "float64", "at": "timestamp"}
ROWS = [
    {"id": 1, "x": 0.5, "at": AT},
    {"id": 2, "x": None, "at": AT + timedelta(seconds=1)},
    {"id": 3, "x": 2, "at": "2026-01-02T03:04:05.000001+09:00"},
]
EXPECTED = [
    {"_row": 0, "entity_id": "1", "feature_name": "f", "value": 0.5, "event_timestamp": AT},
    {
        "_row": 1,
        "entity_id": "2",
        "feature_name": "f",
        "value": None,
        "event_timestamp": AT + timedelta(seconds=1),
    },
    {
        "_row": 2,
        "entity_id": "3",
        "feature_name": "f",
        "value": 2.0,
        "event_timestamp": datetime(2026, 1, 1, 18, 4, 5, 1, tzinfo=UTC),
    },
]


def polars_style(batch: pl.DataFrame) -> pl.DataFrame:
    assert batch.schema["_row"] == pl.UInt32
    assert batch.schema["at"] == pl.Datetime("us", "UTC")
    return batch.select(
        "_row",
        entity_id="id",
        feature_name=pl.lit("f"),
        value="x",
        event_timestamp="at",
    )


def pyarrow_style(batch: pa.RecordBatch) -> pa.Table:
    assert batch.schema.field("at").type == pa.timestamp("us", "UTC")
    return pa.table(
        {
            "entity_id": batch["id"],
            "feature_name": pa.array(["f"] * batch.num_rows, pa.string()),
            "value": batch["x"],
            "event_timestamp": batch["at"],
        }
    )


def pandas_style(batch: pd.DataFrame) -> pd.DataFrame:
    out = batch.rename(columns={"id": "entity_id", "x": "value", "at": "event_timestamp"})
    return out.assign(feature_name="f")


def rows_style(batch: list[dict]) -> list[dict]:
    return [
        {"entity_id": r["id"], "feature_name": "f", "value": r["x"], "event_timestamp": r["at"]}
        for r in batch
    ]


def event_style(event: dict) -> dict:
    assert event["at"].utcoffset() == timedelta(0)
    return rows_style([event])[0]


def table_style(batch: pa.Table) -> pa.Table:
    return batch.rename_columns(["entity_id", "value", "event_timestamp", "_row"]).append_column(
        "feature_name", pa.array(["f"] * batch.num_rows, pa.string())
    )


STYLES = [polars_style, pyarrow_style, table_style, pandas_style, rows_style, event_style]


@pytest.mark.parametrize("fn", STYLES)
def test_every_style_gives_the_same_rows(fn):
    assert run(fn, ROWS, schema=SCHEMA) == EXPECTED


@pytest.mark.parametrize("fn", STYLES)
def test_every_style_takes_an_empty_batch(fn):
    assert run(fn, [], schema=SCHEMA) == []


@pytest.mark.parametrize("fn", STYLES)
def test_rows_keep_the_numbers_they_carry(fn):
    rows = [{**row, "_row": number} for row, number in zip(ROWS, [9, 4, 7], strict=True)]
    assert [row["_row"] for row in run(fn, rows, schema=SCHEMA)] == [9, 4, 7]


def test_types_are_taken_from_the_values():
    def fn(batch: pl.DataFrame) -> pl.DataFrame:
        assert batch.schema == {
            "id": pl.Int64,
            "x": pl.Float64,
            "c": pl.Boolean,
            "at": pl.Datetime("us", "UTC"),
            "e": pl.String,
            "_row": pl.UInt32,
        }
        return polars_style(batch)

    rows = [
        {"id": 1, "x": 1, "c": True, "at": AT},
        {"id": 2, "x": 0.5, "c": None, "at": AT, "e": None},
    ]
    assert [row["value"] for row in run(fn, rows)] == [1.0, 0.5]


def test_anything_with_an_arrow_stream_is_taken_back():
    class Stream:
        def __init__(self, table: pa.Table) -> None:
            self.table = table

        def __arrow_c_stream__(self, requested_schema=None):
            return self.table.__arrow_c_stream__(requested_schema)

    def fn(batch: pa.RecordBatch) -> Stream:
        return Stream(pyarrow_style(batch))

    assert run(fn, ROWS, schema=SCHEMA) == EXPECTED


def test_a_record_batch_is_taken_back():
    def fn(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pyarrow_style(batch).to_batches()[0]

    assert run(fn, ROWS, schema=SCHEMA) == EXPECTED


def test_filter_and_fan_out_by_event():
    def fn(event: dict) -> list[dict] | None:
        return [event_style(event)] * event["id"] if event["id"] != 2 else None

    assert [row["_row"] for row in run(fn, ROWS, schema=SCHEMA)] == [0, 2, 2, 2]


def test_rejected_rows_leave_no_rows():
    def fn(batch: pl.DataFrame, ctx: Context) -> pl.DataFrame:
        for number in batch.filter(pl.col("x").is_null())["_row"]:
            ctx.reject(number, "no_x")
        return polars_style(batch).drop("_row")

    ctx = Context()
    assert [row["_row"] for row in run(fn, ROWS, schema=SCHEMA, ctx=ctx)] == [0, 2]
    assert ctx.rejected == {1: "no_x"}


def test_rejecting_a_row_that_is_not_there_is_a_breach():
    def fn(event: dict, ctx: Context) -> None:
        ctx.reject(99, "who")

    with pytest.raises(ValueError, match="99"):
        run(fn, ROWS, schema=SCHEMA)


def test_params_override_those_of_the_decorator():
    seen = {}

    @millstream.transform(params={"a": 1, "b": 2})
    def fn(event: dict, ctx: Context) -> None:
        seen.update(ctx.params)

    run(fn, ROWS, schema=SCHEMA, params={"b": 3})
    assert seen == {"a": 1, "b": 3}


GOOD = {"entity_id": "e", "feature_name": "f", "value": 1.0, "event_timestamp": AT}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entity_id": None}, "entity_id"),
        ({"entity_id": ""}, "entity_id"),
        ({"entity_id": 1.5}, "entity_id"),
        ({"entity_id": True}, "entity_id"),
        ({"feature_name": None}, "feature_name"),
        ({"feature_name": ""}, "feature_name"),
        ({"value": "1"}, "no number"),
        ({"value": math.nan}, "not finite"),
        ({"value": math.inf}, "not finite"),
        ({"event_timestamp": None}, "event_timestamp"),
        ({"event_timestamp": "2026-01-01T00:00:00Z"}, "not a time"),
        ({"event_timestamp": AT.replace(tzinfo=None)}, "no time zone"),
        ({"created_at": AT.replace(tzinfo=None)}, "no time zone"),
        ({"other": 1}, "unknown columns: other"),
        ({"_row": 7}, "names row 7"),
    ],
)
def test_bad_rows_of_an_event_are_found(change, message):
    def fn(event: dict) -> dict:
        return {**GOOD, **change}

    with pytest.raises(ContractError, match=message):
        run(fn, ROWS[:1], schema=SCHEMA)


def test_a_missing_column_is_found():
    def fn(event: dict) -> dict:
        return {name: GOOD[name] for name in GOOD if name != "value"}

    with pytest.raises(ContractError, match="lacks value"):
        run(fn, ROWS[:1], schema=SCHEMA)


@pytest.mark.parametrize("returned", ["text", 1, [1], ({},)])
def test_an_event_yields_dicts_or_none(returned):
    def fn(event: dict) -> object:
        return returned

    with pytest.raises(ContractError, match="a list of dicts or None"):
        run(fn, ROWS[:1], schema=SCHEMA)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (pl.col("value").cast(pl.String), "value is string"),
        (pl.col("event_timestamp").dt.date(), "event_timestamp is Date"),
        (pl.col("event_timestamp").dt.replace_time_zone(None), "event_timestamp is"),
        (pl.lit(1).alias("feature_name"), "feature_name is int"),
        (pl.col("_row").cast(pl.Float64), "_row is float"),
        (pl.lit(1).alias("other"), "unknown columns: other"),
        (pl.col("_row") + 1, "_row"),
    ],
)
def test_bad_columns_of_a_frame_are_found(expression, message):
    def fn(batch: pl.DataFrame) -> pl.DataFrame:
        return polars_style(batch).with_columns(expression)

    with pytest.raises(ContractError, match=message):
        run(fn, ROWS, schema=SCHEMA)


@pytest.mark.parametrize(
    "expression",
    [
        pl.col("value").cast(pl.Float32),
        pl.col("feature_name").cast(pl.Categorical),
        pl.col("event_timestamp").dt.convert_time_zone("Asia/Tokyo"),
        pl.col("event_timestamp").dt.cast_time_unit("ns"),
        pl.col("_row").cast(pl.Int64),
    ],
)
def test_what_the_node_casts_is_no_breach(expression):
    def fn(batch: pl.DataFrame) -> pl.LazyFrame:
        return polars_style(batch).lazy().with_columns(expression)

    assert run(fn, ROWS, schema=SCHEMA) == EXPECTED


def test_an_empty_list_filters_every_event():
    def fn(batch: list[dict]) -> list[dict]:
        return []

    assert run(fn, ROWS, schema=SCHEMA) == []


def test_numbers_and_booleans_become_floats():
    def fn(event: dict) -> dict:
        return {**GOOD, "value": event["id"] == 1}

    assert [row["value"] for row in run(fn, ROWS[:2], schema=SCHEMA)] == [1.0, 0.0]


def test_columns_are_checked_on_an_empty_output_too():
    def fn(batch: pl.DataFrame) -> pl.DataFrame:
        return polars_style(batch).drop("value").clear()

    with pytest.raises(ContractError, match="lacks value"):
        run(fn, ROWS, schema=SCHEMA)


@pytest.mark.parametrize("fn", [polars_style, pandas_style, rows_style])
def test_without_row_numbers_the_length_must_match(fn):
    def shorter(batch):
        out = fn(batch)
        return out[1:] if isinstance(out, list) else out.drop(columns="_row", errors="ignore")[1:]

    def shorter_polars(batch: pl.DataFrame) -> pl.DataFrame:
        return polars_style(batch).drop("_row")[1:]

    broken = shorter_polars if fn is polars_style else shorter
    broken.__annotations__["batch"] = fn.__annotations__["batch"]
    with pytest.raises(ContractError, match="the input's 3 rows"):
        run(broken, ROWS, schema=SCHEMA)


def test_row_numbers_on_some_rows_only_are_a_breach():
    def fn(batch: list[dict]) -> list[dict]:
        first, *rest = rows_style(batch)
        return [{**first, "_row": 0}, *rest]

    with pytest.raises(ContractError, match="`_row` None"):
        run(fn, ROWS, schema=SCHEMA)


def test_returning_nothing_from_a_batch_is_a_breach():
    def fn(batch: list[dict]) -> None:
        return None

    with pytest.raises(ContractError, match="returned NoneType"):
        run(fn, ROWS, schema=SCHEMA)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1"}], "no int64"),
        ([{"id": True}], "no int64"),
        ([{"at": AT.replace(tzinfo=None)}], "no zone"),
        ([{"who": 1}], "not in the schema: who"),
        ([{"id": 1, "_row": 1}, {"id": 2, "_row": 1}], "repeat"),
        ([{"id": 1, "_row": 1}, {"id": 2}], "either every row or none"),
    ],
)
def test_input_that_does_not_fit_the_schema_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        run(polars_style, rows, schema=SCHEMA)


def test_an_unknown_type_in_the_schema_is_refused():
    with pytest.raises(ValueError, match="int32"):
        run(polars_style, [], schema={"id": "int32"})
