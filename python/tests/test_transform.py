"""The decorator, the context and the choice of the style."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import millstream
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from millstream import Context, style_of

if TYPE_CHECKING:
    import polars as unresolved  # noqa: F401


def test_the_decorator_returns_the_plain_function():
    def plain(event: dict) -> dict:
        return event

    decorated = millstream.transform(
        name="n", inputs=["a"], outputs=iter(["f"]), timeout=2, params={"k": 1}
    )(plain)
    assert decorated is plain
    info = plain.__millstream__
    assert (info.name, info.inputs, info.outputs) == ("n", ("a",), ("f",))
    assert (info.timeout, dict(info.params)) == (2, {"k": 1})


def test_the_decorator_without_arguments_names_the_module():
    @millstream.transform
    def plain(event: dict) -> dict:
        return event

    info = plain.__millstream__
    assert info.name == __name__.rpartition(".")[2]
    assert (info.inputs, info.outputs, info.timeout, dict(info.params)) == (None, None, None, {})


def test_params_of_the_decorator_are_a_copy():
    params = {"k": 1}
    info = millstream.transform(params=params)(lambda event: event).__millstream__
    params["k"] = 2
    assert info.params["k"] == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"inputs": "abc"}, TypeError),
        ({"outputs": "abc"}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": float("nan")}, ValueError),
    ],
)
def test_the_decorator_refuses_nonsense(options, error):
    with pytest.raises(error):
        millstream.transform(**options)


@pytest.mark.parametrize(
    ("annotation", "style"),
    [
        (pl.DataFrame, "polars"),
        (pa.RecordBatch, "record_batch"),
        (pa.Table, "table"),
        (pd.DataFrame, "pandas"),
        (list[dict], "rows"),
        (list[dict[str, Any]], "rows"),
        (list, "rows"),
        (dict, "event"),
        (dict[str, Any], "event"),
        (Mapping[str, Any], "event"),
        ("pl.DataFrame", "polars"),
        ("unresolved.DataFrame", None),
        ("'pa.RecordBatch'", "record_batch"),
        ("pa.Table", "table"),
        ("list[dict]", "rows"),
        ("dict[str, Nowhere]", "event"),
        ("polars.DataFrame", "polars"),
        (pl.LazyFrame, None),
        (str, None),
        (Any, None),
    ],
)
def test_the_first_annotation_picks_the_style(annotation, style):
    def fn(batch):
        return batch

    fn.__annotations__["batch"] = annotation
    if style is None:
        with pytest.raises(TypeError, match=r"annotate the first parameter"):
            style_of(fn)
    else:
        assert style_of(fn) == style


def test_without_an_annotation_it_is_polars_and_without_a_parameter_an_error():
    assert style_of(lambda batch: batch) == "polars"
    with pytest.raises(TypeError, match="takes no parameter"):
        style_of(lambda: None)


def test_context_collects_rejected_rows_until_the_next_batch():
    ctx = Context()
    ctx.reject(3, "first")
    ctx.reject(3, "second", detail="more")
    ctx.reject(0, "other")
    assert ctx.rejected == {3: "first", 0: "other"}
    ctx.begin(range(2))
    assert ctx.rejected == {}


def test_context_takes_the_numbers_of_frames():
    ctx = Context()
    for number in pl.DataFrame({"_row": [1]}, schema={"_row": pl.UInt32})["_row"]:
        ctx.reject(number, "bad")
    for number in pd.Series([2], dtype="uint32"):
        ctx.reject(number, "bad")
    assert ctx.rejected == {1: "bad", 2: "bad"}


@pytest.mark.parametrize("row", [-1, 2])
def test_rejecting_a_row_that_is_not_there_is_an_error(row):
    ctx = Context()
    ctx.begin(range(2))
    with pytest.raises(ValueError, match=f"the _row {row}"):
        ctx.reject(row, "who")


def test_log_lines_carry_name_level_and_fields(caplog):
    ctx = Context({"k": 1}, name="clicks")
    assert ctx.params["k"] == 1
    with caplog.at_level("DEBUG"):
        ctx.log("odd", level="warning", page="/", n=2)
        ctx.log(5)
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("millstream.clicks", "WARNING", "odd page=/ n=2"),
        ("millstream.clicks", "INFO", "5"),
    ]
