"""What a transform may talk to while it runs."""

import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, SupportsIndex


class Context:
    """The side channel of a transform: parameters in, rejected rows and log lines out.

    A transform gets it when its second parameter is called `ctx`:
    `def transform(batch: pl.DataFrame, ctx: Context)`. The node hands over one of its own that
    behaves the same; in a test or a notebook make one of these.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, name: str = "transform") -> None:
        """Makes a context.

        Args:
            params: The values that the configuration gives to this transform.
            name: The transform's name; its log lines go to the logger `millstream.<name>`.
        """
        self._params = dict(params or {})
        self._logger = logging.getLogger(f"millstream.{name}")
        self._rejected: dict[int, str] = {}
        self._rows: frozenset[int] | None = None

    @property
    def params(self) -> dict[str, Any]:
        """The transform's parameters."""
        return self._params

    @property
    def rejected(self) -> Mapping[int, str]:
        """The rows rejected so far in this batch: reason by input row number."""
        return MappingProxyType(self._rejected)

    def log(self, message: object, level: str = "info", **fields: object) -> None:
        """Writes a line to the log under the transform's name.

        Args:
            message: What happened.
            level: `debug`, `info`, `warning` or `error`.
            fields: Further facts, written as `name=value` behind the message.
        """
        number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
        facts = "".join(f" {name}={value}" for name, value in fields.items())
        self._logger.log(number, "%s%s", message, facts)

    def reject(self, row: SupportsIndex, reason: str, detail: str = "") -> None:
        """Makes one event a dead letter; output rows for it are dropped.

        The first reason that is given for a row stays.

        Args:
            row: The event's row number, `_row`.
            reason: A short word of a small set: it becomes a label.
            detail: The particulars, for whoever reads the dead letter.

        Raises:
            ValueError: No event of this batch has that row number.
        """
        number = row.__index__()
        if number < 0 or (self._rows is not None and number not in self._rows):
            raise ValueError(f"no event of this batch has the _row {number}")
        self._rejected.setdefault(number, reason)

    def begin(self, rows: Iterable[int]) -> None:
        """Starts a batch with these row numbers, none of them rejected. For test helpers."""
        self._rows = frozenset(rows)
        self._rejected.clear()
