"""The example's data, transform and check, without a node."""

import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import check
import flight_delays
import polars as pl
import prepare
import pytest
from millstream.testing import run

CONFIG = tomllib.loads((Path(__file__).parents[1] / "flights.toml").read_text())
(STREAM,) = CONFIG["streams"]
AT = datetime(2013, 7, 1, 12, 0, tzinfo=UTC)
ARRIVED = AT + timedelta(hours=3)


def flight(**fields: object) -> dict:
    return {
        "tailnum": "N1",
        "carrier": "UA",
        "scheduled_at": AT,
        "arrived_at": ARRIVED,
        "dep_delay": -4,
        "arr_delay": 12,
        **fields,
    }


def landed(*flights: dict) -> list[tuple]:
    rows = run(flight_delays.transform, flights, schema=STREAM["schema"])
    return [
        (r["_row"], r["entity_id"], r["feature_name"], r["value"], r["event_timestamp"])
        for r in rows
    ]


def test_a_flight_that_arrived():
    left = AT - timedelta(minutes=4)
    assert landed(flight()) == [
        (0, "N1", "cancelled", 0.0, left),
        (0, "N1", "dep_delay_minutes", -4.0, left),
        (0, "N1", "arr_delay_minutes", 12.0, ARRIVED),
        (0, "carrier:UA", "carrier_cancelled", 0.0, left),
        (0, "carrier:UA", "carrier_dep_delay_minutes", -4.0, left),
        (0, "carrier:UA", "carrier_arr_delay_minutes", 12.0, ARRIVED),
    ]


def test_a_cancelled_flight_is_a_feature_too():
    assert landed(flight(), flight(arrived_at=None, dep_delay=None, arr_delay=None))[6:] == [
        (1, "N1", "cancelled", 1.0, AT),
        (1, "carrier:UA", "carrier_cancelled", 1.0, AT),
    ]


@pytest.mark.parametrize("arrived_at", [None, ARRIVED])
def test_a_diverted_flight_has_no_arrival_delay(arrived_at):
    names = [row[2] for row in landed(flight(arr_delay=None, arrived_at=arrived_at))]
    assert names == [
        "cancelled",
        "dep_delay_minutes",
        "carrier_cancelled",
        "carrier_dep_delay_minutes",
    ]


def test_an_empty_batch():
    assert landed() == []


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return prepare.flights(prepare.package_data())


def test_times_are_right_across_time_zones(table):
    assert table.height == 336_776
    assert table["tailnum"].null_count() == 2_512
    assert table["scheduled_at"].is_sorted()
    # A mixed-up zone would make a long flight hours too short or too long.
    arrived = table.filter(pl.col("arr_delay").is_not_null()).select(
        hours=(pl.col("arrived_at") - pl.col("scheduled_at")).dt.total_minutes() / 60
        - pl.col("dep_delay") / 60,
        miles="distance",
    )
    speed = arrived.filter(pl.col("miles") > 2_000).select(pl.col("miles") / pl.col("hours"))
    assert speed.min().item() > 200
    assert speed.max().item() < 600


def test_the_first_flight(table):
    first = table.row(0, named=True)
    assert first["tailnum"] == "N14228"
    assert first["scheduled_at"] == datetime(2013, 1, 1, 10, 15, tzinfo=UTC)
    assert first["arrived_at"] == datetime(2013, 1, 1, 14, 30, tzinfo=UTC)


def test_the_check_counts_what_the_transform_makes(table, tmp_path):
    sample = table.gather_every(37)
    path = tmp_path / "flights.parquet"
    sample.write_parquet(path)
    want = check.expected(path)
    kept = sample.filter(pl.col("tailnum").is_not_null()).with_row_index("_row")
    rows = flight_delays.transform(kept)
    assert want["events.events"] == sample.height
    assert want["events.kept"] == kept.height
    assert want["events.rows"] == rows.height
    for (name,), part in rows.group_by("feature_name"):
        assert want[f"{name}.rows"] == part.height
        assert want[f"{name}.total"] == part["value"].sum()
        assert want[f"{name}.entities"] == part["entity_id"].n_unique()
        assert want[f"{name}.last_us"] == part["event_timestamp"].max().timestamp() * 1e6


def test_the_check_reads_what_landed():
    answers = {
        check.EVENTS_SQL: [{"events": 3, "kept": 2, "dead": 1, "filtered": None, "rows": 2}],
        check.DEAD_SQL: [{"reason": "missing_entity", "n": 1}],
        check.FEATURES_SQL: [{"feature_name": "f", "rows": 2, "total": 5, "last_us": 7}],
    }
    assert check.landed(answers.__getitem__) == {
        "events.events": 3,
        "events.kept": 2,
        "events.dead": 1,
        "events.filtered": 0,
        "events.rows": 2,
        "dead.missing_entity": 1,
        "f.rows": 2,
        "f.total": 5,
        "f.last_us": 7,
    }
