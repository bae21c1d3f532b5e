"""Which records become rows: the lines of the table of `point-in-time.md` that are not about reads.

A model of what `src/decode` decides for a record of features, small enough to be read at a glance. The
reasons are those of `src/decode/reasons.rs`. Times are microseconds since 1970.
"""

import json
import re
from datetime import UTC, datetime, timedelta, timezone

FUTURE_TOLERANCE_US = 300 * 1_000_000
#: 1900-01-01T00:00:00Z.
EARLIEST_US = -2_208_988_800_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)


class DeadLetter(ValueError):
    """A record that must become a dead letter, for the reason `str(self)`."""


def instant(text: str, naive_is_utc: bool = False) -> int:
    """RFC 3339 text as microseconds, floored.

    Raises:
        DeadLetter: It is no timestamp, or has no zone and the stream does not say UTC.
    """
    found = TIMESTAMP.fullmatch(text)
    if found is None or (found[4] is None and not naive_is_utc):
        raise DeadLetter("invalid_timestamp")
    day, time, fraction, zone = found.groups()
    try:
        whole = datetime.fromisoformat(f"{day}T{time}").replace(tzinfo=offset(zone))
    except ValueError:
        raise DeadLetter("invalid_timestamp") from None
    seconds = (whole - EPOCH) // timedelta(seconds=1)
    # The fraction counts upwards from the second before 1970 too, so cutting it off is the floor.
    return seconds * 1_000_000 + int((fraction or "").ljust(6, "0")[:6])


def offset(zone: str | None) -> timezone:
    """`Z`, `+hh:mm` or `-hh:mm`; none is UTC."""
    if zone in (None, "Z", "z"):
        return UTC
    away = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
    return timezone(-away if zone[0] == "-" else away)


def admit(raw: str, record_us: int, now_us: int, naive_is_utc: bool = False) -> dict:
    """The row that a record of features becomes, as its fields.

    `record_us` is the record's own timestamp, which stands for a `created_at` that is missing;
    `now_us` is the clock of the node.

    Raises:
        DeadLetter: It becomes none.
    """
    try:
        record = json.loads(raw, parse_constant=refuse)
    except ValueError:
        raise DeadLetter("invalid_json") from None
    if record.get("entity_id") is None:
        raise DeadLetter("missing_entity")
    if record["entity_id"] == "":
        raise DeadLetter("empty_entity")
    if record.get("event_timestamp") is None:
        raise DeadLetter("missing_event_timestamp")
    value = record.get("value")
    if value is not None and type(value) not in (int, float):
        raise DeadLetter("wrong_type")
    if value is not None and abs(value) == float("inf"):
        raise DeadLetter("number_out_of_range")
    event_us = instant(record["event_timestamp"], naive_is_utc)
    if event_us > now_us + FUTURE_TOLERANCE_US:
        raise DeadLetter("future_timestamp")
    if event_us < EARLIEST_US:
        raise DeadLetter("timestamp_out_of_range")
    made = record.get("created_at")
    return {
        "entity": [record["entity_id"]],
        "feature_name": record["feature_name"],
        "value": value,
        "event_timestamp_us": event_us,
        "created_at_us": record_us if made is None else instant(made, naive_is_utc),
    }


def refuse(name: str) -> None:
    """`NaN` and `Infinity` are no JSON."""
    raise ValueError(name)
