"""Which style a transform is written in: the annotation of its first parameter says so."""

import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_origin

Style = Literal["polars", "record_batch", "table", "pandas", "rows", "event"]

_HELP = (
    "annotate the first parameter of `transform` with pl.DataFrame, pa.RecordBatch, pa.Table, "
    "pd.DataFrame, list[dict], or dict (one event at a time)"
)
_FRAMES: dict[tuple[str, str], Style] = {
    ("polars", "DataFrame"): "polars",
    ("pyarrow", "RecordBatch"): "record_batch",
    ("pyarrow", "Table"): "table",
    ("pandas", "DataFrame"): "pandas",
}
# Annotations that stay text, as when a package is imported for type checkers only.
_TEXTS: tuple[tuple[str, Style], ...] = (
    (r"(pl|polars)\.DataFrame", "polars"),
    (r"(pa|pyarrow)\.RecordBatch", "record_batch"),
    (r"(pa|pyarrow)\.Table", "table"),
    (r"(pd|pandas)\.DataFrame", "pandas"),
    (r"(typing\.)?(list|List)(\[.*\])?", "rows"),
    (r"(typing\.)?(dict|Dict|Mapping)(\[.*\])?", "event"),
)


def style_of(fn: Callable[..., Any]) -> Style:
    """How the transform wants its rows.

    Returns:
        `polars`, `record_batch`, `table` or `pandas` (a batch as that type), `rows` (a batch as
        `list[dict]`) or `event` (one `dict` a call). Without an annotation `polars` when that
        package is installed, else `rows`.

    Raises:
        TypeError: The function has no parameter, or the annotation of its first one names
            no style.
    """
    parameters = list(inspect.signature(fn).parameters.values())
    if not parameters:
        raise TypeError(f"{_name(fn)} takes no parameter; it needs the batch or the event")
    if parameters[0].annotation is inspect.Parameter.empty:
        return "polars" if importlib.util.find_spec("polars") else "rows"
    annotation = _resolved(fn, parameters[0])
    style = _of_text(annotation) if isinstance(annotation, str) else _of_type(annotation)
    if style is None:
        raise TypeError(f"{_name(fn)}: {annotation!r} is no known style: {_HELP}")
    return style


def takes_context(fn: Callable[..., Any]) -> bool:
    """Whether the transform's second parameter is `ctx`, for the `Context`."""
    names = list(inspect.signature(fn).parameters)
    return len(names) > 1 and names[1] == "ctx"


def _resolved(fn: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        # Only the first parameter: another annotation may name what is not imported.
        return eval(parameter.annotation, getattr(fn, "__globals__", {}))
    except Exception:  # any failure means: judge the text itself
        return parameter.annotation


def _of_type(annotation: Any) -> Style | None:
    origin = get_origin(annotation) or annotation
    if origin is typing.Any or not isinstance(origin, type):
        return None
    frame = _FRAMES.get((origin.__module__.partition(".")[0], origin.__name__))
    if frame is not None:
        return frame
    if issubclass(origin, Mapping):
        return "event"
    if issubclass(origin, Sequence) and not issubclass(origin, str | bytes):
        return "rows"
    return None


def _of_text(annotation: str) -> Style | None:
    text = annotation.strip().strip("'\"")
    return next((style for pattern, style in _TEXTS if re.fullmatch(pattern, text)), None)


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", repr(fn))
