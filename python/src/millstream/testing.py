"""Run a transform in a test, without a node, and hold its output against the contract.

The contract of a transform's output:

- columns `entity_id` (text or integers, not empty), `feature_name` (text, not empty), `value`
  (finite numbers or booleans, may be null) and `event_timestamp` (with a time zone, never
  null); `created_at` (with a time zone, may be null) and `_row` may be there, others may not;
- with `_row`, every output row names the input row that it came from, so rows may be filtered
  and one event may yield many; without it, there is exactly one row for each input row, in
  the input's order;
- a transform of one event returns a dict, a list of dicts, or None when it yields nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from millstream._context import Context
from millstream._frames import ROW, from_batch, infer_schema, to_batch, typed_rows
from millstream._style import style_of, takes_context

_REQUIRED = ("entity_id", "feature_name", "value", "event_timestamp")
_OPTIONAL = ("created_at", ROW)
_KINDS = {
    "entity_id": ("string", "int"),
    "feature_name": ("string",),
    "value": ("float", "int", "bool", "null"),
    "event_timestamp": ("timestamp",),
    "created_at": ("timestamp", "null"),
    ROW: ("int",),
}


class ContractError(AssertionError):
    """The output of a transform is not what a node would take."""


def run(
    fn: Callable[..., Any],
    rows: Iterable[Mapping[str, Any]],
    *,
    schema: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    ctx: Context | None = None,
) -> list[dict[str, Any]]:
    """Runs a transform of any style on rows, as a node does, and checks what it returns.

    Args:
        fn: The transform; the annotation of its first parameter picks its style.
        rows: The input, one dict a row. A missing field is None; rows may carry `_row`
            (integers, each once), else they are numbered from 0.
        schema: The stream's schema as the configuration has it: column to `string`, `int64`,
            `float64`, `bool` or `timestamp`; times are given as datetimes or RFC 3339 text.
            Without it the types are taken from the values, which needs at least one row.
        params: Parameters over those that the `transform` decorator gives.
        ctx: The context for a transform whose second parameter is `ctx`, to look at
            `ctx.rejected` afterwards; its own parameters are then used.

    Returns:
        The output rows in the transform's order, without those of rejected rows. Each has
        `_row`, `entity_id` (text), `feature_name`, `value` (float or None),
        `event_timestamp` (aware, UTC) and, when the transform gave it, `created_at`.

    Raises:
        ContractError: The output breaks the contract; the message names row and column.
        TypeError: The transform names no style.
        ValueError: The input does not fit the schema, or the transform rejected a row that is
            not in the input.
    """
    style = style_of(fn)
    rows = list(rows)
    schema = infer_schema(rows) if schema is None else schema
    typed = typed_rows(rows, schema)
    if ctx is None:
        defaults = getattr(getattr(fn, "__millstream__", None), "params", {})
        ctx = Context({**defaults, **(params or {})}, name=fn.__module__)
    extra = (ctx,) if takes_context(fn) else ()
    numbers = [row[ROW] for row in typed]
    ctx.begin(numbers)

    if style == "event":
        output = [row for event in typed for row in _of_event(fn(dict(event), *extra), event)]
    else:
        returned = fn(to_batch(typed, schema, style), *extra)
        output = _of_batch(returned, numbers)
    return [_checked(row) for row in output if row[ROW] not in ctx.rejected]


def _of_event(returned: Any, event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that one event yielded, with the event's row number."""
    if returned is None:
        return []
    outputs = [returned] if isinstance(returned, Mapping) else returned
    if not isinstance(outputs, list) or not all(isinstance(row, Mapping) for row in outputs):
        raise ContractError(
            f"row {event[ROW]}: return a dict, a list of dicts or None, not {returned!r}"
        )
    for row in outputs:
        if row.get(ROW, event[ROW]) != event[ROW]:
            raise ContractError(f"row {event[ROW]}: an output names row {row[ROW]!r}")
    return [{**row, ROW: event[ROW]} for row in outputs]


def _of_batch(returned: Any, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The rows that a batch yielded, each with the number of its input row."""
    try:
        output, kinds = from_batch(returned)
    except TypeError as error:
        raise ContractError(str(error)) from error
    if kinds is not None:
        _check_columns(kinds)
    carries_row = ROW in kinds if kinds is not None else any(ROW in row for row in output)
    if not carries_row:
        if kinds is None and not output:
            return []  # an empty list says that every event was filtered
        if len(output) != len(numbers):
            raise ContractError(
                f"without `_row` the output must have the input's {len(numbers)} rows in their "
                f"order, not {len(output)}"
            )
        return [{**row, ROW: number} for row, number in zip(output, numbers, strict=True)]
    known = set(numbers)
    for place, row in enumerate(output):
        number = row.get(ROW)
        if isinstance(number, bool) or not isinstance(number, int) or number not in known:
            raise ContractError(f"output row {place}: `_row` {number!r} is no row of the input")
    return output


def _check_columns(kinds: Mapping[str, str]) -> None:
    """Names and types of a frame's columns, which also an empty frame must have."""
    _check_names(kinds.keys(), "the output")
    for name, kind in kinds.items():
        if kind not in _KINDS[name]:
            raise ContractError(f"column {name} is {kind}, not {' or '.join(_KINDS[name])}")


def _check_names(names: Iterable[str], where: str) -> None:
    names = set(names)
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise ContractError(f"{where} lacks {', '.join(missing)}")
    unknown = names.difference(_REQUIRED, _OPTIONAL)
    if unknown:
        raise ContractError(f"{where} has unknown columns: {', '.join(sorted(unknown))}")


def _checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its values checked and made plain."""
    where = f"row {row[ROW]}"
    _check_names(row.keys(), where)
    entity = row["entity_id"]
    if isinstance(entity, int) and not isinstance(entity, bool):
        entity = str(entity)
    checked: dict[str, Any] = {
        ROW: row[ROW],
        "entity_id": _text(entity, f"{where}: entity_id"),
        "feature_name": _text(row["feature_name"], f"{where}: feature_name"),
        "value": _value(row["value"], where),
        "event_timestamp": _time(row["event_timestamp"], f"{where}: event_timestamp"),
    }
    if "created_at" in row:
        created_at = row["created_at"]
        checked["created_at"] = (
            None if created_at is None else _time(created_at, f"{where}: created_at")
        )
    return checked


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ContractError(f"{where} is {value!r}, not a text with at least one character")
    return value


def _value(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise ContractError(f"{where}: value {value!r} is no number")
    if not math.isfinite(value):
        raise ContractError(f"{where}: value {value!r} is not finite; use None for missing")
    return float(value)


def _time(value: Any, where: str) -> datetime:
    if not isinstance(value, datetime):
        raise ContractError(f"{where} is {value!r}, not a time")
    if value.tzinfo is None:
        raise ContractError(f"{where} {value!r} has no time zone")
    return value.astimezone(UTC)
