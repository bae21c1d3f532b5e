"""The decorator that describes a transform."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class TransformInfo:
    """What a transform says about itself: its attribute `__millstream__`."""

    name: str
    """The transform's name; by default the name of its module."""
    inputs: tuple[str, ...] | None = None
    """The columns that it reads; None: it does not say."""
    outputs: tuple[str, ...] | None = None
    """The feature names that it makes; None: it does not say."""
    timeout: float | None = None
    """The longest that a batch may take, in seconds; None: the node's own deadline."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Default parameters, read-only; the configuration may override each."""


@overload
def transform(fn: F, /) -> F: ...
@overload
def transform(
    *,
    name: str | None = None,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    timeout: float | None = None,
    params: Mapping[str, Any] | None = None,
) -> Callable[[F], F]: ...
def transform(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    timeout: float | None = None,
    params: Mapping[str, Any] | None = None,
) -> Any:
    """Describes a transform and returns the plain function, unchanged and unwrapped.

    Use it as `@transform` or `@transform(…)`. The description is the function's attribute
    `__millstream__`, a `TransformInfo`, whose fields say what the arguments mean.

    Raises:
        TypeError: `inputs` or `outputs` is one string instead of a list of names.
        ValueError: The timeout is not above zero.
    """
    for option, names in (("inputs", inputs), ("outputs", outputs)):
        if isinstance(names, str):
            raise TypeError(f"{option} is a list of names, not the string {names!r}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout is in seconds and above zero, not {timeout}")

    def describe(function: F) -> F:
        function.__millstream__ = TransformInfo(  # type: ignore[attr-defined]
            name=name or function.__module__.rpartition(".")[2],
            inputs=None if inputs is None else tuple(inputs),
            outputs=None if outputs is None else tuple(outputs),
            timeout=timeout,
            params=MappingProxyType(dict(params or {})),
        )
        return function

    return describe if fn is None else describe(fn)
