"""Just enough of PromQL to see which series and labels a query names. Whether it is a correct
query, `promtool` says."""

import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
    r"""|(?P<number>\d[\d.]*(?:ms|[smhdwy])?)"""
    r"""|(?P<name>[a-zA-Z_:][\w:]*)"""
    r"""|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^=<>(){}\[\],:@])"""
)
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan", "atan2"} | GROUPING


@dataclass
class Named:
    """What a query names."""

    # Each series with the labels and values of its braces.
    series: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    # Labels in `by (…)`, `on (…)` and the like.
    grouping: set[str] = field(default_factory=set)


def named(query: str) -> Named:
    tokens = [m.group() for m in TOKEN.finditer(query)]
    found = Named()
    at = 0
    while at < len(tokens):
        token, after = tokens[at], tokens[at + 1] if at + 1 < len(tokens) else ""
        at += 1
        if not re.match(r"[a-zA-Z_:]", token):
            continue
        if token in GROUPING and after == "(":
            end = tokens.index(")", at)
            found.grouping.update(t for t in tokens[at + 1 : end] if t != ",")
            at = end
        elif token not in WORDS and after not in ("(", "by", "without"):
            matchers = []
            if after == "{":
                end = tokens.index("}", at)
                inside = tokens[at + 1 : end]
                matchers = [
                    (inside[i], inside[i + 2].strip("\"'")) for i in range(0, len(inside), 4)
                ]
                at = end
            found.series.append((token, matchers))
    return found


def windows(query: str, functions: str) -> list[tuple[str, str, str]]:
    """For each call of one of the functions: its name, the series, and the range in brackets."""
    call = re.compile(rf"\b({functions})\(\s*([a-zA-Z_:][\w:]*)(?:\{{[^}}]*\}})?\[([^\]]*)\]")
    calls = call.findall(query)
    assert len(calls) == len(re.findall(rf"\b(?:{functions})\(", query)), query
    return calls
