"""Reads a reply of `POST /get-online-features` the way Feast's client does, and says what is wrong with it.

Usage: client.py --url URL --features view:feature,… --entities KEY=a,b,…

Only the standard library. Feast's client (`feast.infra.online_stores.remote`, 0.67) takes

* `metadata.feature_names` and, at the same index, `results`: `values` and `statuses`, an element an entity,
  in the order of the request. Names may come in any order, so it is the names that count;
* a `values` element by its JSON type: `1` becomes an INT64 and `1.0` a DOUBLE, null becomes "no value";
* a status by its name; one that it does not know is INVALID. Only `online_read` looks at it: a value whose
  status is not PRESENT is dropped there. `get_online_features` gives the value whatever the status;
* `event_timestamps` in `online_read` alone, and there only the first of `results[1]`, for all entities:
  hence the join key must be `results[0]`. It is read by `datetime.fromisoformat`, `Z` taken for +00:00;
* of a reply that is no success: the body must be JSON, else the client fails over that. A string that holds
  the JSON of `{"module": …, "class": …, "message": …}` is raised as that class. After a status
  500, 502, 503 or 504 it asks three times more and then loses the message, so 500 is for what may pass.

`problems` holds a reply against the rules of Millstream, which are stricter than Feast's own server:
the features in the order asked for, no value but where the status is PRESENT, NULL_VALUE for NULL.
"""

import argparse
import json
import re
import sys
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime

STATUSES = ("PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")
#: What stands for "no timestamp": the default of the protobuf message.
NO_TIME = "1970-01-01T00:00:00Z"
#: None, three, six or nine digits of a second, as few as say it exactly.
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.(?!000)\d{3}|\.\d{3}(?!000)\d{3}|)Z")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Cell:
    """A feature of an entity."""

    value: object
    status: str
    #: Microseconds since 1970; None where the server had none.
    event_timestamp_us: int | None


def read(reply: dict) -> dict[str, list[Cell]]:
    """Name → a cell an entity, in the order of the request; the join keys are among the names.

    Raises:
        KeyError, ValueError, TypeError, AttributeError: Feast's client could not read it.
    """
    names, results = reply["metadata"]["feature_names"], reply["results"]
    return {
        name: [
            Cell(value, status if status in STATUSES else "INVALID", microseconds(at))
            for value, status, at in zip(
                result["values"], result["statuses"], result["event_timestamps"], strict=True
            )
        ]
        for name, result in zip(names, results, strict=True)
    }


def microseconds(text: str) -> int | None:
    """A timestamp of a reply."""
    if text == NO_TIME:
        return None
    return (datetime.fromisoformat(text.replace("Z", "+00:00")) - EPOCH) // EPOCH.resolution


def problems(request: dict, reply: dict) -> list[str]:
    """What is wrong with a reply of Millstream to a request; nothing is the good answer."""
    try:
        cells = read(reply)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        return [f"a client cannot read it: {type(error).__name__} {error}"]
    found = []
    full = request.get("full_feature_names", False)
    asked = [
        feature.replace(":", "__", 1) if full else feature.split(":")[-1]
        for feature in request["features"]
    ]
    keys = request["entities"]
    names = reply["metadata"]["feature_names"]
    if names != [*keys, *asked]:
        found.append(f"feature_names are {names}, not the join keys and then {asked}")
    if extra := set(reply) - {"results", "metadata", "status"}:
        found.append(f"unknown keys {sorted(extra)}")
    number = len(next(iter(keys.values())))
    for name, column in cells.items():
        if len(column) != number:
            found.append(f"{name}: {len(column)} cells for {number} entities")
        if name in keys:
            if column != [Cell(value, "PRESENT", None) for value in keys[name]]:
                found.append(f"{name}: not the entities of the request, PRESENT, without a time")
            continue
        found += [f"{name}[{n}]: {what}" for n, cell in enumerate(column) for what in wrong(cell)]
    for name, result in zip(names, reply["results"], strict=True):
        for at in result["event_timestamps"]:
            if not TIMESTAMP.fullmatch(at):
                found.append(f"{name}: {at} has other digits than protobuf writes")
    return found


def wrong(cell: Cell) -> list[str]:
    """What is wrong with one cell of a feature of numbers."""
    found = []
    if cell.status == "INVALID":
        found.append("a status that is none of the four")
    if (cell.value is None) != (cell.status != "PRESENT"):
        found.append(f"{cell.status}, but the value is {cell.value}")
    if cell.value is not None and type(cell.value) is not float:
        found.append(f"{cell.value!r} will not be taken for a DOUBLE")
    if (cell.event_timestamp_us is None) != (cell.status == "NOT_FOUND"):
        found.append(f"{cell.status}, but the timestamp is {cell.event_timestamp_us}")
    return found


def main() -> int:
    """Asks a server and says what is wrong with its reply."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--features", required=True, type=lambda text: text.split(","))
    parser.add_argument("--entities", required=True, help="KEY=a,b,…")
    parser.add_argument("--full-feature-names", action="store_true")
    args = parser.parse_args()
    key, _, entities = args.entities.partition("=")
    request = {
        "features": args.features,
        "entities": {key: entities.split(",")},
        "full_feature_names": args.full_feature_names,
    }
    sent = urllib.request.Request(
        f"{args.url}/get-online-features",
        json.dumps(request).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(sent, timeout=30) as answer:
        reply = json.load(answer)
    print(json.dumps(reply, indent=1, ensure_ascii=False))
    found = problems(request, reply)
    print("\n".join(found) or "nothing wrong", file=sys.stderr)
    return 5 if found else 0


if __name__ == "__main__":
    sys.exit(main())
