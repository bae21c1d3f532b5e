"""Rows of plain Python to and from the frames of polars, pyarrow and pandas.

The packages are imported only when a transform's style or its output needs them.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from millstream._style import Style

#: The types of a stream's schema, and what a transform sees of each. The last three differ only
#: in how the raw event writes the time.
TYPES = {
    "string": "string",
    "int64": "int64",
    "float64": "float64",
    "bool": "bool",
    "timestamp": "timestamp",
    "timestamp_s": "timestamp",
    "timestamp_ms": "timestamp",
    "timestamp_us": "timestamp",
}
#: The column that numbers the input rows of a batch.
ROW = "_row"


def infer_schema(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The type of each column by its values; a column without values is of strings."""
    schema: dict[str, str] = {}
    for name in dict.fromkeys(name for row in rows for name in row if name != ROW):
        kinds = {type(row[name]) for row in rows if row.get(name) is not None}
        if kinds and kinds <= {int}:
            schema[name] = "int64"
        elif kinds and kinds <= {int, float}:
            schema[name] = "float64"
        elif kinds == {bool}:
            schema[name] = "bool"
        elif kinds and all(issubclass(kind, datetime) for kind in kinds):
            schema[name] = "timestamp"
        else:
            schema[name] = "string"
    return schema


def typed_rows(
    rows: Sequence[Mapping[str, Any]], schema: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows as a node hands them over: every column of the schema, and `_row`.

    Missing fields become None and times aware datetimes in UTC. Rows without `_row` are
    numbered from 0.

    Raises:
        ValueError: A value does not fit its column, a column is not in the schema, or the
            row numbers repeat or are given for some rows only.
    """
    for name, kind in schema.items():
        if kind not in TYPES:
            raise ValueError(f"column {name}: {kind!r} is none of {', '.join(TYPES)}")
    numbered = [ROW in row for row in rows]
    if any(numbered) and not all(numbered):
        raise ValueError("either every row or none carries `_row`")
    typed = []
    for index, row in enumerate(rows):
        unknown = row.keys() - schema.keys() - {ROW}
        if unknown:
            raise ValueError(f"row {index}: not in the schema: {', '.join(sorted(unknown))}")
        values = {name: _typed(row.get(name), name, TYPES[kind]) for name, kind in schema.items()}
        typed.append({**values, ROW: row.get(ROW, index)})
    if len({row[ROW] for row in typed}) != len(typed):
        raise ValueError("input row numbers repeat")
    return typed


def _typed(value: Any, name: str, kind: str) -> Any:
    if value is None:
        return None
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "string" and isinstance(value, str):
        return value
    if kind == "int64" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "float64" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind == "timestamp" and isinstance(value, str | datetime):
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
        if at.tzinfo is None:
            raise ValueError(f"column {name}: the time {value!r} has no zone")
        return at.astimezone(UTC)
    raise ValueError(f"column {name}: {value!r} is no {kind}")


def to_batch(rows: list[dict[str, Any]], schema: Mapping[str, str], style: Style) -> Any:
    """The typed rows as the batch that a transform of this style takes.

    `_row` comes last, as UInt32; times are microseconds in UTC.
    """
    if style == "rows":
        return rows
    columns = {name: [row[name] for row in rows] for name in (*schema, ROW)}
    if style == "polars":
        import polars as pl

        of_kind: dict[str, Any] = {
            "string": pl.String,
            "int64": pl.Int64,
            "float64": pl.Float64,
            "bool": pl.Boolean,
            "timestamp": pl.Datetime("us", "UTC"),
        }
        types = {name: of_kind[TYPES[kind]] for name, kind in schema.items()}
        return pl.DataFrame(columns, schema={**types, ROW: pl.UInt32})

    import pyarrow as pa

    fields = {
        "string": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", "UTC"),
    }
    arrow_schema = pa.schema(
        [(name, fields[TYPES[kind]]) for name, kind in schema.items()] + [(ROW, pa.uint32())]
    )
    batch = pa.RecordBatch.from_pydict(columns, schema=arrow_schema)
    if style == "pandas":
        return batch.to_pandas()
    return pa.Table.from_batches([batch]) if style == "table" else batch


def from_batch(output: Any) -> tuple[list[dict[str, Any]], dict[str, str] | None]:
    """The rows that a transform returned, and the kind of each column.

    Args:
        output: A list of dicts, a frame of pandas or polars, or anything that exports Arrow
            (`__arrow_c_stream__` or `__arrow_c_array__`).

    Returns:
        The rows, and for frames the columns' kinds: `string`, `int`, `float`, `bool`,
        `timestamp` (with a zone), `null`, or the package's own name of any other type.

    Raises:
        TypeError: The output is none of the above.
    """
    if isinstance(output, list) and all(isinstance(row, Mapping) for row in output):
        return [dict(row) for row in output], None
    root = type(output).__module__.partition(".")[0]
    if root == "polars" and hasattr(output, "collect"):
        output = output.collect()
    if root == "polars" and hasattr(output, "to_dicts"):
        return output.to_dicts(), {name: _polars_kind(t) for name, t in output.schema.items()}

    exports = hasattr(output, "__arrow_c_stream__") or hasattr(output, "__arrow_c_array__")
    if root != "pandas" and not exports:
        raise TypeError(
            f"returned {type(output).__name__}: return a frame, anything with "
            "__arrow_c_stream__, or a list of dicts"
        )
    import pyarrow as pa

    # pandas marks what is missing with NaN, which `from_pandas` turns into NULL.
    table = (
        pa.Table.from_pandas(output, preserve_index=False) if root == "pandas" else pa.table(output)
    )
    return table.to_pylist(), {field.name: _arrow_kind(field.type) for field in table.schema}


def _polars_kind(dtype: Any) -> str:
    import polars as pl

    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return "timestamp"
    if dtype.is_integer():
        return "int"
    if dtype.is_float():
        return "float"
    if isinstance(dtype, pl.Categorical | pl.Enum | pl.String):
        return "string"
    return {pl.Boolean: "bool", pl.Null: "null"}.get(dtype, str(dtype))


def _arrow_kind(dtype: Any) -> str:
    import pyarrow.types as types

    if types.is_dictionary(dtype):
        dtype = dtype.value_type
    if types.is_string(dtype) or types.is_large_string(dtype) or types.is_string_view(dtype):
        return "string"
    if types.is_integer(dtype):
        return "int"
    if types.is_floating(dtype):
        return "float"
    if types.is_timestamp(dtype) and dtype.tz is not None:
        return "timestamp"
    return str(dtype)
