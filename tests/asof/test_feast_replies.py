"""The recorded replies of Feast's server, and how `feast/client.py` reads them.

The fixtures are real exchanges (`feast/record.py`), but for `wanted.json`, which is what Millstream must
say. A checker that finds nothing is worth nothing: each defect of `DEFECTS` must be found.
"""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "feast"))
import client

FOLDER = Path(client.__file__).parent
RECORDED = ("redis", "sqlite", "precomputed", "errors")


def exchanges(name: str) -> list[dict]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def told(name: str, what: str) -> dict[str, list[client.Cell]]:
    """The reply of the exchange whose `what` begins so."""
    (reply,) = (
        each["response"]["body"] for each in exchanges(name) if each["what"].startswith(what)
    )
    return client.read(reply)


@pytest.mark.parametrize("name", RECORDED)
def test_replies_are_read_as_feasts_own_client_reads_them(name: str):
    for each in exchanges(name):
        if each["response"]["status"] != 200 or "client_says" not in each:
            continue
        cells, says = client.read(each["response"]["body"]), each["client_says"]
        values = {k: v for k, v in says["to_dict"].items() if not k.endswith("__ts")}
        assert {n: [c.value for c in column] for n, column in cells.items()} == values
        assert {n: [c.status for c in column] for n, column in cells.items()} == says["statuses"]
        # The client loses the timestamps on its way.
        assert all(v == [] for k, v in says["to_dict"].items() if k.endswith("__ts"))


def test_feast_on_redis_says_present_of_everything():
    cells = told("redis", "values")
    assert {cell.status for column in cells.values() for cell in column} == {"PRESENT"}
    nobody, empty = cells["score"][7], cells["score"][5]
    assert nobody == client.Cell(None, "PRESENT", None)
    assert empty.value is None and empty.event_timestamp_us == 1_767_268_800_000_000
    assert told("redis", "a value that is older")["score"][0].status == "PRESENT"


def test_feast_on_sqlite_says_not_found_and_forgets_what_is_finer_than_a_second():
    cells = told("sqlite", "values")["score"]
    assert [cell.status for cell in cells] == [*["PRESENT"] * 7, "NOT_FOUND", "PRESENT"]
    assert cells[2].event_timestamp_us == 1_767_268_800_000_000
    assert told("redis", "values")["score"][2].event_timestamp_us == 1_767_268_800_123_456


def test_feast_hands_out_a_value_that_it_says_is_too_old():
    cell = told("precomputed", "a service whose vectors are made beforehand, by full")
    assert cell["stale__score"][0].status == "OUTSIDE_MAX_AGE"
    assert cell["stale__score"][0].value == 1.0


def test_the_bodies_of_errors_are_json_and_a_500_is_asked_four_times():
    for each in exchanges("errors"):
        status, attempts = each["response"]["status"], each.get("attempts")
        assert "body" in each["response"]
        if attempts:
            assert attempts == (4 if status == 500 else 1)
    (missing,) = (e for e in exchanges("errors") if e["what"] == "a view that is not there")
    assert missing["response"]["status"] == 404
    assert json.loads(missing["response"]["body"])["class"] == "FeatureViewNotFoundException"
    assert missing["client_says"]["error"].startswith("FeatureViewNotFoundException: ")


def test_what_millstream_must_say_has_nothing_wrong_and_all_four_statuses():
    (wanted,) = exchanges("wanted")
    request, reply = wanted["request"]["body"], wanted["response"]["body"]
    assert client.problems(request, reply) == []
    cells = client.read(reply)
    assert {cell.status for cell in cells["score"]} == set(client.STATUSES)


def put(result: int, key: str, row: int, value: object) -> Callable[[dict], None]:
    """Spoils a cell."""

    def spoil(reply: dict) -> None:
        reply["results"][result][key][row] = value

    return spoil


def swap_features(reply: dict) -> None:
    names = reply["metadata"]["feature_names"]
    names[1], names[2] = names[2], names[1]
    results = reply["results"]
    results[1], results[2] = results[2], results[1]


def swap_rows(reply: dict) -> None:
    for result in reply["results"]:
        for column in result.values():
            column[0], column[1] = column[1], column[0]


DEFECTS = {
    "a value that is too old": put(1, "values", 2, 7.0),
    "a NULL that is present": put(1, "statuses", 1, "PRESENT"),
    "a number without a point": put(1, "values", 0, 1),
    "a number as text": put(1, "values", 0, "1.0"),
    "a status that is not known": put(1, "statuses", 0, "FOUND"),
    "a time of what is not there": put(1, "event_timestamps", 4, "2026-01-01T12:00:00Z"),
    "no time of what is there": put(1, "event_timestamps", 0, "1970-01-01T00:00:00Z"),
    "a time without a zone": put(1, "event_timestamps", 0, "2026-01-01T12:00:00"),
    "a time as a number": put(1, "event_timestamps", 0, 1767268800),
    "a time with zeros behind": put(1, "event_timestamps", 1, "2026-01-01T12:00:00.500000Z"),
    "other entities": put(0, "values", 0, "someone"),
    "features in another order": swap_features,
    "entities in another order": swap_rows,
    "a cell too few": lambda reply: reply["results"][2]["values"].pop(),
    "a row too few": lambda reply: [c.pop() for c in reply["results"][2].values()],
    "a feature too few": lambda reply: reply["results"].pop(),
    "no timestamps": lambda reply: reply["results"][1].pop("event_timestamps"),
    "no metadata": lambda reply: reply.pop("metadata"),
    "no join key": lambda reply: (
        reply["results"].pop(0),
        reply["metadata"]["feature_names"].pop(0),
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_wrong_reply_is_found_out(name: str):
    (wanted,) = exchanges("wanted")
    reply = copy.deepcopy(wanted["response"]["body"])
    DEFECTS[name](reply)
    assert client.problems(wanted["request"]["body"], reply)
